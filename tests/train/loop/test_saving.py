"""Saving in the background, and checkpoints whose files are divided among ranks."""

import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.manifests.graceful_shutdown import Terminated
from openuni.manifests.storage.checksums import file_checksum
from openuni.training.loop.saving import _copies
from openuni.training.loop.tensor_files import read_tensors, write_tensors
from openuni.training.loop.trainer import train
from openuni.training.loop.training_checkpoint import list_checkpoints, save
from openuni.training.run import Run
from openuni.training.run_files import TENSORS, part_name
from tests.train.loop.test_checkpoint_integrity import flip
from tests.train.loop.test_stopped_runs import handler_of
from tests.train.loop.test_trainer import assert_same, recipe, state
from tests.train.small_runs import steps_saved

WRITER = "openuni-checkpoint"
FSYNC = os.fsync


@contextmanager
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What the writing thread syncs takes until the event is set."""
    done = threading.Event()

    def fsync(file: int) -> None:
        if threading.current_thread().name == WRITER:
            assert done.wait(30)
        FSYNC(file)

    monkeypatch.setattr(os, "fsync", fsync)
    yield done
    monkeypatch.setattr(os, "fsync", FSYNC)


def at_step(step: int, call: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    def progress(row: dict[str, Any]) -> None:
        if row["step"] == step and "loss" in row:
            call()

    return progress


# ---------------------------------------------------------------- in the background


def test_training_goes_on_while_a_checkpoint_is_written(
    corpus: Corpus, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    with slow_disk(monkeypatch) as done:

        def look() -> None:
            seen.append((steps_saved(tmp_path), [path.name for path in tmp_path.glob(".step-*")]))
            done.set()

        train(recipe(), corpus, tmp_path, at_step(5, look))
    assert seen == [([], [".step-000003.tmp"])]  # two steps after it was begun
    assert steps_saved(tmp_path) == [3, 6] and not list(tmp_path.glob(".step-*"))
    assert_same(state(tmp_path), state(run.folder))
    for name in TENSORS:  # what was copied at step 3 is not what the weights became
        one, other = (folder / "step-000003" / f"{name}.safetensors" for folder in (tmp_path, run.folder))
        assert one.read_bytes() == other.read_bytes()


def test_one_checkpoint_is_written_at_a_time(
    corpus: Corpus, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = []
    with slow_disk(monkeypatch) as done:

        def look(row: dict[str, Any]) -> None:
            most.append(sum(thread.name == WRITER for thread in threading.enumerate()))
            threading.Timer(0.05, done.set).start()

        train(recipe(checkpoints={"every_steps": 1, "keep": 9}), corpus, tmp_path, look)
    assert max(most) == 1 and steps_saved(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert_same(state(tmp_path), state(run.folder))


def test_saving_without_a_copy_writes_the_same(corpus: Corpus, tmp_path: Path, run: Run) -> None:
    threads = []

    def look(row: dict[str, Any]) -> None:
        threads.extend(thread.name for thread in threading.enumerate())

    train(recipe(checkpoints={"asynchronous": False}), corpus, tmp_path, look)
    assert_same(state(tmp_path), state(run.folder))
    train(recipe(optimizer={"steps": 7}), corpus, tmp_path)  # the option may change on resume
    assert steps_saved(tmp_path) == [6, 7]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_what_is_written(
    corpus: Corpus, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    with slow_disk(monkeypatch) as done, handler_of(number, handler):

        def stop() -> None:
            threading.Timer(0.3, done.set).start()
            os.kill(os.getpid(), number)

        with pytest.raises(KeyboardInterrupt) as raised:
            train(recipe(), corpus, tmp_path, at_step(4, stop))
    assert isinstance(raised.value, Terminated) == (number == signal.SIGTERM)
    assert steps_saved(tmp_path) == [3, 4] and not list(tmp_path.glob(".step-*"))
    train(recipe(), corpus, tmp_path)
    assert_same(state(tmp_path), state(run.folder))


def test_a_second_ctrl_c_does_not_wait(
    corpus: Corpus, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow_disk(monkeypatch) as done, handler_of(signal.SIGINT, signal.default_int_handler):

        def stop() -> None:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            threading.Timer(0.8, done.set).start()  # the file that is being written, no more
            os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            train(recipe(), corpus, tmp_path, at_step(4, stop))
        for thread in threading.enumerate():
            if thread.name == WRITER:
                thread.join(0.1)
                assert done.is_set() and not thread.is_alive()
    assert steps_saved(tmp_path) == []
    train(recipe(), corpus, tmp_path)
    assert_same(state(tmp_path), state(run.folder))
    assert not list(tmp_path.glob(".step-*"))


def test_a_crash_does_not_lose_what_is_written(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with slow_disk(monkeypatch) as done:

        def crash() -> None:
            threading.Timer(0.2, done.set).start()
            raise RuntimeError("power cut")

        with pytest.raises(RuntimeError, match="power cut"):
            train(recipe(), corpus, tmp_path, at_step(4, crash))
    assert steps_saved(tmp_path) == [3]


def test_a_folder_that_vanishes_while_it_is_written_is_an_error(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow_disk(monkeypatch) as done:

        def remove() -> None:
            shutil.rmtree(tmp_path / ".step-000003.tmp")
            done.set()

        with pytest.raises(OpenUniError, match=r"no training checkpoint can be written to .*There is no checkpoint"):
            train(recipe(), corpus, tmp_path, at_step(4, remove))


def test_a_checkpoint_that_is_being_deleted_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, {"model": {"a": torch.ones(2)}}, {}, keep=1)

    def killed(folder: Path, **_: Any) -> None:
        for file in Path(folder).glob("model.safetensors"):
            file.unlink()
        raise SystemExit("killed")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(shutil, "rmtree", killed)
        save(tmp_path, 2, {"model": {"a": torch.zeros(2)}}, {}, keep=1)
    assert steps_saved(tmp_path) == [2]
    list_checkpoints(tmp_path)[-1].verify()
    save(tmp_path, 3, {"model": {"a": torch.zeros(2)}}, {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]


def test_tensors_of_several_groups_are_copied_once() -> None:
    frozen, trained = torch.ones(1000), torch.ones(3)
    groups = {"model": {"a": frozen, "b": trained}, "ema": {"a": frozen.detach(), "b": trained.clone()}}
    copies = _copies(groups)
    assert copies["model"]["a"] is copies["ema"]["a"] and copies["model"]["b"] is not copies["ema"]["b"]
    trained.zero_()
    assert copies["model"]["b"].eq(1).all()


# ---------------------------------------------------------------- files of several ranks


def rows_of(size: int, rank: int, world: int) -> slice:
    """As FSDP2 divides them."""
    each = -(-size // world)
    return slice(min(rank * each, size), min((rank + 1) * each, size))


def write_parts(folder: Path, name: str, tensors: dict[str, torch.Tensor], world: int) -> list[Path]:
    """The files of so many ranks."""
    files = []
    for rank in range(world):
        own = {key: tensor[rows_of(len(tensor), rank, world)] for key, tensor in tensors.items() if tensor.ndim}
        own = {key: tensor for key, tensor in own.items() if tensor.numel()}
        own |= {key: tensor for key, tensor in tensors.items() if not tensor.ndim and not rank}
        files.append(folder / part_name(name, rank, world))
        write_tensors(files[-1], own)
    return files


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_any_number_of_ranks_reads_what_any_number_wrote(tmp_path: Path, world: int) -> None:
    tensors = {
        "weight": torch.randn(7, 3),
        "bias": torch.randn(2).bfloat16(),
        "step": torch.tensor(4.0),
        "one": torch.randn(1, 2, 2),
    }
    files = write_parts(tmp_path, "model", tensors, world)
    whole = {key: (size, tensor) for key, size, tensor in read_tensors(files)}
    assert whole.keys() == tensors.keys()
    for key, (size, tensor) in whole.items():
        assert size == tensors[key].shape and torch.equal(tensor, tensors[key])
    for readers in (1, 2, 3, 4):
        for rank in range(readers):

            def share(key: str, size: torch.Size, rank: int = rank, readers: int = readers) -> Any:
                return (rows_of(size[0], rank, readers),) if size else None

            for key, size, tensor in read_tensors(files, share):
                expected = tensors[key][rows_of(size[0], rank, readers)] if size else tensors[key]
                assert torch.equal(tensor, expected) and tensor.shape == expected.shape, (key, rank, readers)


@pytest.fixture
def divided(run: Run, tmp_path: Path) -> Path:
    """A copy of the run whose last checkpoint was written by two ranks."""
    folder = shutil.copytree(run.folder, tmp_path / "divided")
    latest = list_checkpoints(folder)[-1]
    checksums = json.loads((latest.path / "checksums.json").read_text())
    for name in TENSORS:
        tensors = {key: tensor.clone() for key, tensor in latest.tensors(name).items()}
        (latest.path / f"{name}.safetensors").unlink()
        del checksums[f"{name}.safetensors"]
        for path in write_parts(latest.path, name, tensors, 2):
            checksums[path.name] = file_checksum(path)
    (latest.path / "checksums.json").write_text(json.dumps(checksums))
    return folder


def test_files_of_two_ranks_are_one_checkpoint(divided: Path, run: Run, corpus: Corpus, tmp_path: Path) -> None:
    assert_same(state(divided), state(run.folder))
    ours, theirs = Run.open(divided, "cpu").model.state_dict(), Run.open(run.folder, "cpu").model.state_dict()
    assert_same(dict(ours), dict(theirs))
    report = openuni.verify(divided, reporter=Reporter(quiet=True))
    assert report.damage == () and report.payloads == 10  # six, three of the checkpoint before, and the texts
    whole = shutil.copytree(run.folder, tmp_path / "whole")
    for folder in (divided, whole):
        train(recipe(optimizer={"steps": 8}), corpus, folder)
    assert_same(state(divided), state(whole))


@pytest.mark.parametrize("change", ["flip", "cut", "missing", "no first", "foreign"])
def test_a_damaged_part_sets_the_checkpoint_aside(
    divided: Path, run: Run, corpus: Corpus, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    part = divided / "step-000006" / "model-00002-of-00002.safetensors"
    first = part.with_name("model-00001-of-00002.safetensors")
    if change == "flip":
        flip(part, part.stat().st_size * 8 - 5)
    elif change == "cut":
        part.write_bytes(part.read_bytes()[:-4])
    elif change == "foreign":
        shutil.copyfile(first, part)
    else:
        (part if change == "missing" else first).unlink()
    named = first if change == "no first" else part
    report = openuni.verify(divided, reporter=Reporter(quiet=True))
    assert f"step-000006/{named.name}" in {damage.file for damage in report.damage}
    with caplog.at_level(logging.WARNING, "openuni"):
        train(recipe(), corpus, divided)
    warned = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert len(warned) == 1 and named.name in warned[0] and "resuming from step 3" in warned[0]
    assert_same(state(divided), state(run.folder))


def test_parts_that_do_not_belong_together_are_damage(divided: Path) -> None:
    latest = list_checkpoints(divided)[-1]
    (latest.path / "checksums.json").unlink()  # as someone hostile leaves it
    write_tensors(latest.path / part_name("model", 1, 2), {"patch_embedding.weight": torch.zeros(2, 5)})
    with pytest.raises(OpenUniError, match=r"model-00001-of-00002\.safetensors is damaged \(.*different sizes"):
        latest.tensors("model")

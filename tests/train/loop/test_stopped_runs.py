"""Runs that are stopped by a signal, started twice, or asked for fewer steps than they have done."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.manifests.graceful_shutdown import Terminated
from openuni.training.loop.trainer import train
from openuni.training.run import Run
from tests.command_line import cli
from tests.train.loop.test_trainer import MODEL, assert_same, recipe, state
from tests.train.small_runs import steps_saved, stop_at, write_recipe

ROOT = Path(__file__).parents[3]


# ---------------------------------------------------------------- signals


@contextlib.contextmanager
def handler_of(number: int, handler: Any) -> Iterator[None]:
    """Whatever this process does at the signal, which it may ignore in the background or under nohup."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_the_run_goes_on(corpus: Corpus, tmp_path: Path, run: Run, number: signal.Signals) -> None:
    with handler_of(number, signal.SIG_DFL):
        with pytest.raises(Terminated) as raised:
            train(recipe(), corpus, tmp_path, stop_at(2, number))
        assert raised.value.number == number and signal.getsignal(number) == signal.SIG_DFL
    assert steps_saved(tmp_path) == [2]
    train(recipe(), corpus, tmp_path)
    assert_same(state(tmp_path), state(run.folder))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_the_exit_code_tells_the_signal(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    from openuni.console.progress import TrainingProgress

    monkeypatch.setattr(TrainingProgress, "__call__", lambda self, row: stop_at(2, number)(row))
    path = write_recipe(tmp_path, MODEL)
    with handler_of(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL):
        done = cli("train", path, "--corpus", corpus.store.local(""), "--out", tmp_path / "run")
    assert done.returncode == code, done.stderr
    assert "openuni: stopped. Finished items are kept. Resume with: openuni train" in done.stderr
    assert steps_saved(tmp_path / "run") == [2]


def test_a_signal_that_comes_during_validation_saves_the_step(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openuni.training.loop.validation import Validator

    losses = Validator.losses

    def stopped(self: Validator, *arguments: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return losses(self, *arguments)

    monkeypatch.setattr(Validator, "losses", stopped)
    with handler_of(signal.SIGTERM, signal.SIG_DFL), pytest.raises(Terminated):
        train(recipe(checkpoints={"every_steps": 100}), corpus, tmp_path)
    assert steps_saved(tmp_path) == [3]


def test_a_signal_that_is_ignored_stays_ignored(corpus: Corpus, tmp_path: Path) -> None:
    with handler_of(signal.SIGHUP, signal.SIG_IGN):  # as nohup does
        assert train(recipe(), corpus, tmp_path, stop_at(2, signal.SIGHUP)).checkpoint.step == 6


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_loses_its_terminal_or_is_terminated_saves(
    corpus: Corpus, tmp_path: Path, number: signal.Signals
) -> None:
    """As a scheduler terminates it, and as a closed terminal does, to which nothing can be written any more."""
    path = write_recipe(tmp_path, MODEL, optimizer={"steps": 100_000})
    main, terminal = os.openpty()
    command = [sys.executable, "-m", "openuni", "train", path, "--corpus", corpus.store.local(""), "--out", "run"]

    def own_terminal() -> None:
        import fcntl
        import termios

        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        list(map(str, command)), cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal,
        start_new_session=True, preexec_fn=own_terminal, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(terminal)
    threading.Thread(target=drain, args=(main,), daemon=True).start()
    deadline = time.monotonic() + 120
    while not steps_saved(tmp_path / "run"):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    if number == signal.SIGHUP:
        os.close(main)  # the kernel sends SIGHUP, and shells send it again
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    last = steps_saved(tmp_path / "run")[-1]
    assert Run.open(tmp_path / "run").log[-1]["step"] == last


def drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 4096):
            pass
    except OSError:
        pass


# ---------------------------------------------------------------- one training per folder


def test_what_a_killed_training_left_half_written_is_deleted(corpus: Corpus, tmp_path: Path) -> None:
    train(recipe(optimizer={"steps": 1}), corpus, tmp_path / "run")
    for name in (".run.json.0123abcd.tmp", ".log.jsonl.89abcdef.tmp", ".mine.tmp"):
        (tmp_path / "run" / name).write_text("{")
    train(recipe(optimizer={"steps": 1}), corpus, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").glob(".*.tmp")] == [".mine.tmp"]


def test_a_second_training_is_refused_and_changes_nothing(corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "run"
    refused: list[Any] = []

    def try_second(row: dict[str, Any]) -> None:
        if row["step"] != 2:
            return
        before = {path.name: path.read_bytes() for path in out.glob("*.json*")}
        refused.append(
            cli("train", write_recipe(tmp_path, MODEL), "--corpus", corpus.store.local(""), "--out", out),
        )
        assert {path.name: path.read_bytes() for path in out.glob("*.json*")} == before

    train(recipe(), corpus, out, try_second)
    (done,) = refused
    assert done.returncode == 2 and f"training run {out} is locked by another training" in done.stderr
    assert [row["step"] for row in Run.open(out).log if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert train(recipe(), corpus, out).checkpoint.step == 6  # the lock is released


def test_another_process_holds_the_lock_until_it_is_killed(corpus: Corpus, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from openuni.training.loop.guards import run_lock\n"
        "with run_lock(Path(sys.argv[1])):\n print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, tmp_path / "run"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(OpenUniError, match="is locked by another training"):
            train(recipe(), corpus, tmp_path / "run")
        process.kill()
    assert (tmp_path / "run").is_dir()
    assert train(recipe(), corpus, tmp_path / "run").checkpoint.step == 6


def test_a_refused_recipe_leaves_no_folder(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(OpenUniError, match="needs flow"):
        train(recipe(tasks={"rgb->flow": 1.0}), corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- fewer steps


@pytest.mark.parametrize("steps", [1, 5])
def test_fewer_steps_than_done_are_refused(corpus: Corpus, run: Run, tmp_path: Path, steps: int) -> None:
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    path = write_recipe(tmp_path, MODEL, optimizer={"steps": steps})
    done = cli("train", path, "--corpus", corpus.store.local(""), "--out", run.folder)
    assert done.returncode == 2
    assert (
        f"optimizer.steps = {steps}, but {run.folder} has already finished 6 steps. Set it to at least 6" in done.stderr
    )
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before

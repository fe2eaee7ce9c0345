"""Runs whose files a full disk, a crash or somebody else has spoilt: refused by name, or mended if nothing is lost."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.loop.trainer import train
from openuni.training.loop.training_checkpoint import list_checkpoints
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run
from tests.train.loop.test_trainer import MODEL
from tests.train.small_runs import small_recipe

RECIPE: TrainingRecipe = small_recipe({"model": MODEL})


@pytest.fixture(scope="module")
def half(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, three of them done."""
    folder = tmp_path_factory.mktemp("half") / "run"

    def crash(row: dict) -> None:
        if row["step"] == 4:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(RECIPE, corpus, folder, crash)
    assert [checkpoint.step for checkpoint in list_checkpoints(folder)] == [3]
    return folder


@pytest.fixture
def run(half: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return shutil.copytree(half, tmp_path / "run")


@pytest.mark.parametrize("name", ["model", "ema", "optimizer"])
@pytest.mark.parametrize("version", ["with checksums", "of before"])
def test_cut_weights_are_named_with_the_way_on(corpus: Corpus, run: Path, name: str, version: str) -> None:
    file = run / "step-000003" / f"{name}.safetensors"
    if version == "of before":
        (file.parent / "checksums.json").unlink()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(OpenUniError, match=rf"{name}\.safetensors is damaged .*No earlier .*remove .*step-000003"):
        train(RECIPE, corpus, run)
    shutil.rmtree(file.parent)
    assert train(RECIPE, corpus, run).checkpoint.step == 6


def test_an_optimizer_state_that_lacks_tensors_is_refused(corpus: Corpus, run: Path) -> None:
    file = run / "step-000003" / "optimizer.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if name.startswith("exp_avg_sq/blocks.0."))
    del tensors[lost]
    save_file(tensors, file)
    with pytest.raises(OpenUniError, match=r"optimizer\.safetensors is damaged \(checksum mismatch"):
        train(RECIPE, corpus, run)
    (file.parent / "checksums.json").unlink()  # as checkpoints of before
    with pytest.raises(OpenUniError, match=f"lacks {lost}"):
        train(RECIPE, corpus, run)


def test_checkpoints_without_their_record_are_no_new_run(corpus: Corpus, run: Path) -> None:
    (run / "run.json").unlink()
    for attempt in (lambda: train(RECIPE, corpus, run), lambda: Run.open(run)):
        with pytest.raises(OpenUniError, match=r"run\.json not found\), but checkpoints exist: restore it"):
            attempt()


@pytest.mark.parametrize("text", ['{"format": 1, "rec', "[]", "\xff\xfe"])
def test_a_spoilt_record_is_named(corpus: Corpus, run: Path, text: str) -> None:
    (run / "run.json").write_bytes(text.encode("latin-1"))
    for attempt in (lambda: train(RECIPE, corpus, run), lambda: Run.open(run)):
        with pytest.raises(OpenUniError, match=r"run\.json (is damaged|has format None)"):
            attempt()


@pytest.mark.parametrize("file", ["run.json", "log.jsonl"])
def test_a_file_is_whole_whatever_becomes_of_the_next_one(
    corpus: Corpus, run: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    before = (run / file).read_bytes()
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if any(run.glob(f".{file}.*.tmp")):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OpenUniError, match=r"no space left while writing to .* The checkpoint of step 3 is kept"):
        train(small_recipe({"model": MODEL, "optimizer": {"steps": 7}}), corpus, run)  # run.json changes, too
    assert (run / file).read_bytes() == before
    monkeypatch.undo()
    assert train(RECIPE, corpus, run).checkpoint.step == 6
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == [".train.lock"]


def test_a_cut_cache_of_texts_is_made_again(corpus: Corpus, run: Path) -> None:
    cache = run / "texts.safetensors"
    before = {name: rows.clone() for name, rows in load_file(cache).items()}  # the file is mapped into memory
    cache.write_bytes(cache.read_bytes()[:-3])
    assert train(RECIPE, corpus, run).checkpoint.step == 6
    after = load_file(cache)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("spoilt", [b'{"loss": 3}\n', b'{"step": 2, "lo\xff"}\n', b"[1]\n", b'{"step": 2,'])
def test_a_spoilt_line_ends_the_log(corpus: Corpus, run: Path, spoilt: bytes) -> None:
    log = run / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + lines[1] + spoilt + b"".join(lines[2:]))
    assert [row["step"] for row in Run.open(run).log] == [0, 1]
    again = train(RECIPE, corpus, run)
    assert [row["step"] for row in again.log if "loss" in row] == [1, 4, 5, 6]


def test_a_run_that_ended_before_its_first_checkpoint_begins_its_log_anew(corpus: Corpus, tmp_path: Path) -> None:
    def crash(row: dict) -> None:
        if row["step"] == 1:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train(RECIPE, corpus, tmp_path, crash)
    log = train(RECIPE, corpus, tmp_path).log
    assert [row["step"] for row in log if "validation_loss" not in row] == [0, 1, 2, 3, 4, 5, 6]

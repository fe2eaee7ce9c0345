"""Files of a run that changed by one bit: the file is named, and training resumes from the checkpoint before."""

import json
import logging
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.loop.trainer import train
from openuni.training.loop.training_checkpoint import TrainingCheckpoint, list_checkpoints, save
from openuni.training.run import Run
from tests.train.loop.test_trainer import MODEL, assert_same, state
from tests.train.small_runs import small_recipe

RECIPE = small_recipe({"model": MODEL})
FLIPS = 240
FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "checksums.json")


@pytest.fixture(scope="module")
def whole(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with the checkpoints of steps 3 and 6."""
    return train(RECIPE, corpus, tmp_path_factory.mktemp("whole") / "run").folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(whole, tmp_path / "run")


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_files_are_synced_before_the_checkpoint_is_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, synced = tmp_path / "step-000007", set[int]()
    monkeypatch.setattr(os, "fsync", lambda file: None if final.exists() else synced.add(os.fstat(file).st_ino))
    assert save(tmp_path, 7, {"model": {"weight": torch.zeros(2)}}, {}, keep=1) == final
    assert {path.stat().st_ino for path in (final, *final.iterdir())} == synced and len(synced) == 4


def test_every_flipped_bit_of_a_checkpoint_is_detected(run: Path) -> None:
    draw = random.Random(0)
    checkpoint = list_checkpoints(run)[-1]
    assert sorted(path.name for path in checkpoint.path.iterdir()) == sorted(FILES)
    checkpoint.verify()
    for number in range(FLIPS):
        path = checkpoint.path / FILES[number % len(FILES)]
        bit = draw.randrange(path.stat().st_size * 8)
        flip(path, bit)
        # a flip in the list of checksums may give another name, which is then not found
        named = (
            r"step-000006/.* is damaged" if path.name == "checksums.json" else rf"step-000006/{path.name} is damaged"
        )
        with pytest.raises(OpenUniError, match=named):
            checkpoint.verify()
        flip(path, bit)
    checkpoint.verify()


def test_every_flipped_bit_of_the_record_is_detected(run: Path) -> None:
    draw = random.Random(1)
    path = run / "run.json"
    for _ in range(200):
        bit = draw.randrange(path.stat().st_size * 8)
        flip(path, bit)
        with pytest.raises(OpenUniError, match=r"run\.json (is damaged|has format)"):
            Run.open(run)
        flip(path, bit)
    Run.open(run)


@pytest.mark.parametrize("file", FILES)
def test_training_resumes_from_the_checkpoint_before(
    corpus: Corpus, whole: Path, run: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = run / "step-000006" / file
    flip(path, path.stat().st_size * 4)
    with caplog.at_level(logging.WARNING, "openuni"):
        assert train(RECIPE, corpus, run).checkpoint.step == 6
    warned = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert len(warned) == 1 and "step-000006" in warned[0] and "resuming from step 3" in warned[0]
    assert file == "checksums.json" or file in warned[0]
    assert_same(state(run), state(whole))
    assert (run / "step-000006.damaged").is_dir()
    assert [row["step"] for row in Run.open(run).log if "loss" in row] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("file", FILES[:-1])
def test_a_file_that_is_gone_is_named(corpus: Corpus, run: Path, file: str, caplog: pytest.LogCaptureFixture) -> None:
    (run / "step-000006" / file).unlink()
    with caplog.at_level(logging.WARNING, "openuni"):
        assert train(RECIPE, corpus, run).checkpoint.step == 6
    assert any(f"{file} is damaged (not found)" in record.getMessage() for record in caplog.records)


def test_without_a_sound_checkpoint_nothing_is_trained(corpus: Corpus, run: Path) -> None:
    for step in (3, 6):
        flip(run / f"step-{step:06d}" / "optimizer.safetensors", 5000)
    with pytest.raises(
        OpenUniError, match=r"step-000003/optimizer\.safetensors is damaged .*No earlier checkpoint"
    ) as error:
        train(RECIPE, corpus, run)
    assert "step-000006/optimizer.safetensors is damaged" in str(error.value)
    assert [checkpoint.step for checkpoint in list_checkpoints(run)] == [3, 6]


def test_generating_names_the_file_and_the_checkpoint_before(run: Path) -> None:
    flip(run / "step-000006" / "ema.safetensors", 5000)
    with pytest.raises(
        OpenUniError, match=r"ema\.safetensors is damaged \(checksum .*remove .*step-000006 to use .* 3"
    ):
        _ = Run.open(run).model
    shutil.rmtree(run / "step-000006")
    assert Run.open(run).model is not None


def test_init_from_a_damaged_run_is_refused(corpus: Corpus, run: Path, tmp_path: Path) -> None:
    flip(run / "step-000006" / "ema.safetensors", 5000)
    with pytest.raises(OpenUniError, match=r"ema\.safetensors is damaged"):
        train(small_recipe({"model": MODEL, "init_from": str(run)}), corpus, tmp_path / "next")


def test_a_changed_log_is_named_and_the_weights_are_used(
    corpus: Corpus, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = run / "log.jsonl"
    flip(log, log.read_bytes().index(b'"loss": ') * 8 + 10 * 8)
    shutil.rmtree(run / "step-000006")
    with caplog.at_level(logging.WARNING, "openuni"):
        assert train(RECIPE, corpus, run).checkpoint.step == 6
    assert any("log.jsonl is damaged" in record.getMessage() for record in caplog.records)


def test_an_undamaged_run_resumes_without_a_word(corpus: Corpus, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(run / "step-000006")
    with caplog.at_level(logging.WARNING, "openuni"):
        train(RECIPE, corpus, run)
    assert not [record for record in caplog.records if "damaged" in record.getMessage()]


def test_a_flipped_bit_in_the_cache_of_texts_recreates_it(corpus: Corpus, run: Path) -> None:
    cache = run / "texts.safetensors"
    before = {name: rows.clone() for name, rows in load_file(cache).items()}
    flip(cache, cache.stat().st_size * 8 - 3)
    shutil.rmtree(run / "step-000006")
    train(RECIPE, corpus, run)
    after = load_file(cache)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_checkpoints_and_records_of_earlier_versions_still_open(corpus: Corpus, run: Path) -> None:
    for step in (3, 6):
        (run / f"step-{step:06d}" / "checksums.json").unlink()
    record = json.loads((run / "run.json").read_text())
    del record["checksum"]
    (run / "run.json").write_text(json.dumps(record, indent=2))
    before = (run / "run.json").read_bytes()
    assert Run.open(run).model is not None
    train(RECIPE, corpus, run)
    assert (run / "run.json").read_bytes() == before  # part of the version of openuni.unified


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"state.json": 5}', '{"../x": "0", "state.json": "0"}', "\xff", "{" * 10**5]
)
def test_a_list_of_checksums_that_is_none_is_named(run: Path, text: str) -> None:
    (run / "step-000006" / "checksums.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(OpenUniError, match=r"(checksums|state)\.json is damaged"):
        list_checkpoints(run)[-1].verify()


@pytest.mark.parametrize("part", ["model", "ema", "optimizer"])
def test_weights_that_an_earlier_version_saved_as_nan_are_not_resumed(
    corpus: Corpus, whole: Path, run: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    latest = run / "step-000006"
    (latest / "checksums.json").unlink()
    tensors = {name: tensor.clone() for name, tensor in load_file(latest / f"{part}.safetensors").items()}
    next(tensor for tensor in tensors.values() if tensor.ndim).view(-1)[0] = float("nan")
    save_file(tensors, latest / f"{part}.safetensors")
    with pytest.raises(OpenUniError, match=rf"{part}\.safetensors has NaN or infinite values \(1 of .* step 3"):
        TrainingCheckpoint(6, latest).tensors(part)
    with caplog.at_level(logging.WARNING, "openuni"):
        train(RECIPE, corpus, run)
    assert any("resuming from step 3" in record.getMessage() for record in caplog.records)
    assert_same(state(run), state(whole))

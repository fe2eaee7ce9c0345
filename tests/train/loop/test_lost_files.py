"""Trainings whose latents change meanwhile, or whose disk is full: what is said and what is kept."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openuni.manifests.corpus import payload_reader
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.loop.trainer import train
from openuni.training.loop.training_checkpoint import list_checkpoints
from openuni.training.run import Run
from tests.command_line import cli
from tests.full_disk import files_of_at_most
from tests.train.corpora import random_clips, write_corpus
from tests.train.loop.test_trainer import MODEL, assert_same, recipe, state
from tests.train.small_runs import steps_saved, write_recipe

ROOT = Path(__file__).parents[3]


# ---------------------------------------------------------------- latents that change meanwhile


def gone(shard: Path) -> None:
    shard.unlink()


def cut(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size - 8 * 2 * 4 * 6 + 3])


def encoded_again(shard: Path) -> None:
    data = shard.read_bytes()
    shard.write_bytes(data[:-384] + bytes(byte ^ 85 for byte in data[-384:]))


@pytest.fixture
def files_are_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a large corpus, of which few stay open."""
    monkeypatch.setattr(payload_reader, "MAX_OPEN", 0)


@pytest.mark.usefixtures("files_are_opened_anew")
@pytest.mark.parametrize("group", ["latents/*/depth", "latents/*/rgb", "text/*"])
@pytest.mark.parametrize(("change", "message"), [(gone, "is missing"), (cut, "checksum"), (encoded_again, "checksum")])
def test_a_shard_that_changes_during_the_training_is_named_with_its_clip(
    tmp_path: Path, group: str, change: Callable[[Path], None], message: str
) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_clips(6))
    (shard,) = (tmp_path / "corpus").glob(f"{group}/*.safetensors")

    def meanwhile(row: dict[str, Any]) -> None:
        if row["step"] == 2 and "loss" in row:
            change(shard)

    with pytest.raises(OpenUniError) as raised:
        train(recipe(optimizer={"steps": 60}, data={"caption_dropout": 0.0}), corpus, tmp_path / "run", meanwhile)
    text = str(raised.value)
    assert message in text and str(shard) in text and "Restore it, or" in text
    assert sum(f"clip {clip_id}: " in text for clip_id in corpus.kept_clip_ids()) == 1
    done = int(text.split("training stopped after ")[1].split()[0])
    assert steps_saved(tmp_path / "run")[-1] == done >= 2  # finished steps are saved
    assert f"The checkpoint of step {done} is kept" in text


def test_a_shard_that_is_open_may_go(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_clips(6))

    def meanwhile(row: dict[str, Any]) -> None:
        if row["step"] == 2 and "loss" in row:
            for shard in (tmp_path / "corpus").glob("*/**/*.safetensors"):
                shard.unlink()

    settings = recipe(optimizer={"steps": 4}, data={"caption_dropout": 0.0})
    train(settings, write_corpus(tmp_path / "whole", random_clips(6)), tmp_path / "undisturbed")
    train(settings, corpus, tmp_path / "run", meanwhile)
    assert_same(state(tmp_path / "run"), state(tmp_path / "undisturbed"))
    with pytest.raises(OpenUniError, match="is missing"):  # whoever begins later is told
        train(settings, corpus, tmp_path / "later")


@pytest.mark.usefixtures("files_are_opened_anew")
def test_a_shard_of_held_out_clips_that_is_gone_is_named_by_the_validation(tmp_path: Path) -> None:
    held_out = random_clips(6)
    clips = [clip | {"split": "validation" if number == 5 else "train"} for number, clip in enumerate(held_out)]
    corpus = write_corpus(tmp_path / "corpus", clips)
    (shard,) = (tmp_path / "corpus").glob("latents/*/depth/*.safetensors")

    def meanwhile(row: dict[str, Any]) -> None:
        if row["step"] == 3 and "loss" in row:
            shard.unlink()

    with pytest.raises(OpenUniError, match=r"stopped after 3 steps: clip \w+: depth latents: .*safetensors is missing"):
        train(recipe(optimizer={"steps": 3}), corpus, tmp_path / "run", meanwhile)
    assert steps_saved(tmp_path / "run") == [3]


# ---------------------------------------------------------------- full disk


def test_a_full_disk_stops_the_training_and_keeps_the_last_checkpoint(corpus: Corpus, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "run"
    path = write_recipe(tmp_path, MODEL)
    arguments = ("train", path, "--corpus", corpus.store.local(""), "--out", out)
    sizes = {path.name: path.stat().st_size for path in run.checkpoint.path.iterdir()}
    full = "no space left while writing to"
    with files_of_at_most(sizes["optimizer.safetensors"] - 1):
        done = cli(*arguments)
    assert done.returncode == 2 and full in done.stderr and "There is no checkpoint" in done.stderr, done.stderr
    assert steps_saved(out) == [] and not list(out.glob(".step-*"))
    train(recipe(optimizer={"steps": 3}), corpus, out)
    for limit in (sizes["model.safetensors"] - 1, 1500, 0):  # the second one: not even the log; the last one: nothing
        with files_of_at_most(limit):
            done = cli(*arguments)
        assert done.returncode == 2 and full in done.stderr and "The checkpoint of step 3 is kept" in done.stderr
        assert "rerun the same command" in done.stderr and "Traceback" not in done.stderr
        assert steps_saved(out) == [3] and not list(out.glob(".step-*"))
        list_checkpoints(out)[-1].verify()
    resumed = cli(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert_same(state(out), state(run.folder))


@pytest.mark.slow
def test_a_full_disk_in_a_process_of_its_own(corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def shrink() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    arguments = ("train", write_recipe(tmp_path, MODEL), "--corpus", corpus.store.local(""), "--out", out)
    command = [sys.executable, "-m", "openuni", *map(str, arguments)]
    full = subprocess.run(command, preexec_fn=shrink, capture_output=True, text=True, cwd=ROOT)
    assert full.returncode == 2 and f"no space left while writing to {out}" in full.stderr, full.stderr
    assert steps_saved(out) == [] and cli(*arguments).returncode == 0

"""Damaged samples in training: skipped up to a limit, replaced by a pure function, counted, logged and named."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openuni.manifests.corpus import payload_reader
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.data.batches import Loader
from openuni.training.data.index import Index, open_index
from openuni.training.data.skipping import SkippedSamples
from openuni.training.loop.setup import prepare
from openuni.training.loop.trainer import train
from openuni.training.loop.training_checkpoint import list_checkpoints
from tests.command_line import cli
from tests.train.corpora import random_clips, write_corpus
from tests.train.loop import rank_jobs
from tests.train.loop.rank_processes import run_ranks
from tests.train.loop.test_trainer import MODEL, assert_same, recipe, state
from tests.train.small_runs import steps_saved, write_recipe

BAD = [2, 5, 9]  # clips by their number in the index: the latents of BAD[0] and BAD[1], the text of BAD[2]


def flip(corpus: Corpus, index: Index, modality: str, clip: int) -> str:
    """Change a byte of the stored latents, or text embedding, of a clip; returns its id."""
    extents = index.latents.get(modality, index.text)
    path = Path(corpus.store.local(f"{extents.group}/{extents.shards[extents.shard[clip]]}"))
    data = bytearray(path.read_bytes())
    data[int(extents.offset[clip]) + 3] ^= 0x10
    path.write_bytes(data)
    return index.sample_ids[clip]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, list[str]]:
    """Twelve clips, three of them damaged in another place each, and their ids."""
    corpus = write_corpus(tmp_path_factory.mktemp("damaged"), random_clips(12))
    index = open_index(corpus, ("rgb", "depth"), "", "", 0.0)
    return corpus, [flip(corpus, index, what, clip) for what, clip in zip(["depth", "rgb", "text"], BAD, strict=True)]


def settings(limit: int, steps: int = 6, **changes: Any) -> Any:
    data = {"validation_share": 0.0, "caption_dropout": 0.0, "max_skipped_samples": limit}
    return recipe(data=data, optimizer={"steps": steps}, checkpoints={"every_steps": 3}, **changes)


def skipped_rows(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {sample: reason for row in rows for sample, reason in row.get("skipped", {}).items()}


def test_a_run_skips_names_and_counts_damaged_samples_and_resumes_as_if_it_had_not_stopped(
    damaged: tuple[Corpus, list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus, bad = damaged
    with caplog.at_level(logging.WARNING):
        whole = train(settings(3), corpus, tmp_path / "whole")
    found = skipped_rows(whole.log)
    assert sorted(found) == sorted(bad) and all("changed after it was written" in reason for reason in found.values())
    assert f"{len(bad)} damaged samples were skipped: " in caplog.text.splitlines()[-1]
    assert all(sample in caplog.text.splitlines()[-1] for sample in bad)
    assert max(row.get("skipped_samples", 0) for row in whole.log) == 3
    assert list_checkpoints(whole.folder)[-1].state()["skipped_samples"] == found
    train(settings(3, steps=3), corpus, tmp_path / "parts")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        parts = train(settings(3), corpus, tmp_path / "parts")
    assert_same(state(tmp_path / "parts"), state(tmp_path / "whole"))
    assert skipped_rows(parts.log) == found and "3 damaged samples were skipped" in caplog.text  # counted on


def test_more_than_the_limit_stops_and_names_them(damaged: tuple[Corpus, list[str]], tmp_path: Path) -> None:
    corpus, bad = damaged
    tables = {"data": {"validation_share": 0.0, "caption_dropout": 0.0, "max_skipped_samples": 2}}
    path = write_recipe(tmp_path, MODEL, **tables)
    base = ("train", path, "--corpus", corpus.store.local(""), "--out", tmp_path / "run")
    done = cli(*base)
    assert done.returncode == 2 and "data.max_skipped_samples = 2 allows 2" in done.stderr, done.stderr
    assert all(f"clip {sample}: " in done.stderr.partition("3 samples are damaged")[2] for sample in bad)
    assert cli(*base, "--set", "data.max_skipped_samples=3").returncode == 0  # a raised limit resumes
    done = cli(*base, "--set", "data.max_skipped_samples=-1")
    assert done.returncode == 2 and "max_skipped_samples = -1. Allowed: at least 0" in done.stderr


def test_by_default_the_first_damaged_sample_stops(damaged: tuple[Corpus, list[str]], tmp_path: Path) -> None:
    corpus, bad = damaged
    with pytest.raises(OpenUniError, match=r"stopped after \d steps: clip \w+: .*changed after it was written") as one:
        train(settings(0), corpus, tmp_path)
    assert sum(sample in str(one.value) for sample in bad) == 1


def test_replacements_depend_on_neither_ranks_nor_earlier_steps(
    damaged: tuple[Corpus, list[str]], tmp_path: Path
) -> None:
    corpus, _ = damaged
    setup = prepare(settings(3), corpus, tmp_path)

    def clips(world: int, steps: range) -> list[dict[int, int]]:
        loaders = [
            Loader(corpus, setup.index, setup.texts, setup.recipe, setup.model, rank=rank, world=world)
            for rank in range(world)
        ]
        found = []
        for step in steps:
            batches = [batch for loader in loaders for part in loader.step(setup.plan, step) for batch in part]
            found.append({slot: clip for one in batches for slot, clip in zip(one.slots, one.clips, strict=False)})
        return found

    alone = clips(1, range(9))
    assert clips(2, range(9)) == clips(4, range(9)) == alone
    assert clips(3, range(8, -1, -1)) == alone[::-1]
    planned = [sample.clip for step in range(9) for sample in setup.plan.step(step)]
    used = [clip for found in alone for _, clip in sorted(found.items())]
    replaced = [(before, after) for before, after in zip(planned, used, strict=True) if before != after]
    assert replaced and {before for before, _ in replaced} <= set(BAD)
    assert BAD[2] not in used  # its caption is always needed


def test_whatever_damages_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in stored values, and a file cut short or gone while it trains; a failing disk or network stops."""
    clips = random_clips(8)
    clips[3]["latents"]["rgb"] = np.full_like(clips[3]["latents"]["rgb"], np.nan)
    corpus = write_corpus(tmp_path / "corpus", clips)
    setup = prepare(settings(8), corpus, tmp_path / "run")
    loader = Loader(corpus, setup.index, setup.texts, setup.recipe, setup.model)
    found = [batch.skipped for step in range(4) for part in loader.step(setup.plan, step) for batch in part]
    assert {reason.partition("have ")[2][:3] for one in found for reason in one.values()} == {"NaN"}
    monkeypatch.setattr(payload_reader, "MAX_OPEN", 0)
    (shard,) = (tmp_path / "corpus").glob("latents/*/depth/*.safetensors")
    data = shard.read_bytes()
    shard.write_bytes(data[: int(np.sort(setup.index.latents["depth"].offset)[5])])  # three of eight are lost
    found = [batch.skipped for step in range(4) for part in loader.step(setup.plan, step) for batch in part]
    assert 2 <= len({sample for one in found for sample in one}) <= 4
    shard.unlink()
    with pytest.raises(OpenUniError, match=r"no other sample can replace a damaged one: .*is missing"):
        [loader.step(setup.plan, step) for step in range(4)]
    shard.write_bytes(data)

    def fails(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(payload_reader.os, "preadv", fails)
    with pytest.raises(OpenUniError, match=r"clip \w+: .*cannot be read: .*Input/output error"):
        loader.step(setup.plan, 0)


def test_validation_takes_the_next_held_out_clip(tmp_path: Path) -> None:
    clips = [clip | {"split": "validation" if number < 4 else "train"} for number, clip in enumerate(random_clips(10))]
    corpus = write_corpus(tmp_path / "corpus", clips)
    index = open_index(corpus, ("rgb", "depth"), "", "", 0.0)
    first = int(np.flatnonzero(index.held_out)[0])
    sample = flip(corpus, index, "depth", first)
    validation = {"every_steps": 2, "clips": 2, "quantiles": 1}
    run = train(settings(1, steps=4, validation=validation), corpus, tmp_path / "run")
    assert skipped_rows(run.log).keys() == {sample}
    losses = [row["validation_loss"] for row in run.log if "validation_loss" in row]
    assert len(losses) == 2 and all({"rgb->depth", "depth->rgb"} <= set(one) for one in losses)
    with pytest.raises(OpenUniError, match=f"clip {sample}: depth latents: .*changed after it was written"):
        train(settings(0, steps=4, validation=validation), corpus, tmp_path / "strict")
    assert steps_saved(tmp_path / "strict") == [2]


def test_counting() -> None:
    skipped = SkippedSamples(2, {"a": "broken"})
    assert skipped.add({"a": "broken", "b": "cut"}, 4) == {"b": "cut"} and skipped.add({"b": "cut"}, 5) == {}
    with pytest.raises(OpenUniError, match=r"3 samples are damaged, and data.max_skipped_samples = 2"):
        skipped.add({"c": "gone"}, 6)
    assert skipped.summary() == "2 damaged samples were skipped: a, b"  # the step of c is not finished
    assert SkippedSamples(2, ["not", "a", "table"]).reasons == {} and SkippedSamples(0).summary() == ""
    with pytest.raises(OpenUniError, match=r"and 80 more, see log\.jsonl"):
        SkippedSamples(3).add({f"{number:03}": "gone" for number in range(100)}, 1)


@pytest.mark.slow
def test_two_ranks_skip_as_one_does(damaged: tuple[Corpus, list[str]], tmp_path: Path) -> None:
    corpus, bad = damaged
    jobs = [
        {"recipe": settings(limit).to_dict(), "corpus": corpus.store.local(""), "out": str(tmp_path / f"two-{limit}")}
        for limit in (3, 2)
    ]
    ended = run_ranks(2, tmp_path / "ranks", rank_jobs.trainings, jobs)
    assert [one[0] for one in ended] == ["", ""]
    assert all("3 samples are damaged" in one[1] or "QuietError" in one[1] for one in ended)
    one = train(settings(3), corpus, tmp_path / "one", device="cpu")
    logs = [[row for row in run.log if "loss" in row] for run in (one, type(one).open(tmp_path / "two-3"))]
    np.testing.assert_allclose([row["loss"] for row in logs[0]], [row["loss"] for row in logs[1]], rtol=1e-5)
    assert sorted(skipped_rows(type(one).open(tmp_path / "two-3").log)) == sorted(bad)

"""Tokens of a sample divided among ranks: losses, gradients and weights of one rank, for every model."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.training.loop.ranks import Ranks
from openuni.training.loop.setup import prepare, prepare_on
from openuni.training.loop.trainer import train
from openuni.training.recipe import TrainingRecipe
from tests.train.corpora import random_clips, write_corpus
from tests.train.loop import rank_jobs
from tests.train.loop.rank_processes import run_ranks
from tests.train.loop.test_ranks import HARD, SIZE, assert_close, job, models, place
from tests.train.loop.test_trainer import MODEL, recipe
from tests.train.small_runs import small_recipe

__all__ = ["place"]


def divided(settings: TrainingRecipe, size: int = 2) -> TrainingRecipe:
    return dataclasses.replace(settings, context_parallel=size)


# bfloat16: each rank rounds the gradient of its tokens; AdamW then moves a weight by up to 3e-3 per step
LOW = (8e-3, 2e-2)


@pytest.mark.slow
def test_two_ranks_share_samples_of_every_model(place: Path) -> None:
    """All weights and LoRAs, blocks recomputed fully and selectively, micro-batches, EMA, clipping, validation."""
    wanted = {name: settings for name, settings in models(place).items() if name != "unityvideo_uneven"}
    channels = {"name": "unividx", "layout": "channels", "train_base": True, "rank": 4}
    selective = SIZE | {"gradient_checkpointing": "selective"}
    wanted["channels"] = small_recipe({"model": selective | {"modalities": ["rgb", "albedo"]} | channels}, HARD)
    released = {"name": "unityvideo", "switcher": "released", "rope": "per_segment", "modalities": ["rgb", "depth"]}
    wanted["compiled"] = small_recipe({"model": selective | released | {"compile": "aot_eager"}}, HARD)
    jobs = [job(place, divided(settings), f"shared-{name}") for name, settings in wanted.items()]
    assert run_ranks(2, place / "c2", rank_jobs.trainings, jobs) == [[""] * len(jobs)] * 2
    for name, settings in wanted.items():
        train(settings, str(place / "corpus"), place / f"alone-{name}", device="cpu")
        assert_close(place / f"shared-{name}", place / f"alone-{name}", *(LOW if "bfloat16" in name else ()))


@pytest.mark.slow
def test_uneven_parts_both_axes_and_another_value_on_resume(place: Path, tmp_path: Path) -> None:
    """45 tokens among two ranks; four ranks as two pairs; a run that is shared, then not, then shared again."""
    clips = random_clips(8)
    generator = np.random.default_rng(1)
    for clip in clips:
        clip["latents"] = {name: generator.standard_normal((4, 1, 18, 10)) for name in clip["latents"]}
    write_corpus(tmp_path / "corpus", clips)
    whole = small_recipe(
        {"model": MODEL, "validation": {"every_steps": 0}}, {"optimizer": {"batch_size": 4, "accumulate": 2}}
    )
    steps = {n: dataclasses.replace(whole, optimizer=dataclasses.replace(whole.optimizer, steps=n)) for n in (2, 4, 6)}
    train(whole, str(tmp_path / "corpus"), tmp_path / "alone", device="cpu")

    def on(settings: TrainingRecipe, out: str) -> dict[str, Any]:
        return job(tmp_path, settings, out)

    jobs = [on(divided(whole), "shared"), *(on(divided(steps[n], 2 - i % 2), "changed") for i, n in enumerate(steps))]
    assert run_ranks(2, tmp_path / "two", rank_jobs.trainings, jobs) == [[""] * 4] * 2
    jobs = [on(divided(whole), "pairs")]
    assert run_ranks(4, tmp_path / "four", rank_jobs.trainings, jobs) == [[""]] * 4
    for out in ("shared", "changed", "pairs"):
        assert_close(tmp_path / out, tmp_path / "alone")


def test_gradients_of_parts_sum_to_those_of_the_whole(tmp_path: Path) -> None:
    """Before any optimizer: three heads and ranks, 7 tokens; with uneven parts, of one forward and backward pass."""
    results = run_ranks(3, tmp_path, rank_jobs.attention_on_parts, 7, 3)
    assert all(result["output"] < 1e-6 and result["gradients"] < 1e-6 for result in results), results
    assert [result["tokens"] for result in results] == [3, 2, 2]


# ---------------------------------------------------------------- what cannot be divided


class Several(Ranks):
    """One of four ranks, as far as checks go."""

    world = 4


@pytest.mark.parametrize(
    ("size", "batch_size", "message"),
    [
        (3, 4, "context_parallel = 3 must divide the number of processes, which is 4. Set it to 1 or 2 or 4, or use 6"),
        (8, 4, "which is 4. Set it to 1 or 2 or 4, or use 8 processes"),
        (2, 1, "batch_size = 1 cannot be divided among 4 processes: every 2 of them need a sample in every step"),
        (4, 1, "must divide the number of attention heads, which is 2. Set it to 1 or 2"),
    ],
)
def test_what_cannot_be_divided(place: Path, tmp_path: Path, size: int, batch_size: int, message: str) -> None:
    settings = divided(recipe(optimizer={"batch_size": batch_size}), size)
    with pytest.raises(OpenUniError, match=message):
        prepare_on(Several(), settings, Corpus.open(str(place / "corpus")), tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_fewer_tokens_than_ranks(place: Path, tmp_path: Path) -> None:
    on = Corpus.open(str(place / "corpus"))
    few = recipe(model={"heads": 6, "head_dim": 6})
    with pytest.raises(OpenUniError, match=r"is more than the 2 tokens of latents of \[4, 2, 2, 2\]. Set it"):
        prepare(divided(few, 3), on, tmp_path)
    words = small_recipe({"model": SIZE | {"name": "univigu", "heads": 4, "patch": [1, 1, 1]}, "text": {"length": 3}})
    words = dataclasses.replace(words, tasks={"t2v": 1.0})
    with pytest.raises(OpenUniError, match=r"is more than the 3 tokens of a text"):
        prepare(divided(words, 4), on, tmp_path)


def test_one_process_alone_shares_with_nobody(place: Path, tmp_path: Path) -> None:
    with pytest.raises(OpenUniError, match=r"number of processes, which is 1\. Set it to 1, or use 2 processes"):
        train(divided(recipe()), str(place / "corpus"), tmp_path / "run", device="cpu")

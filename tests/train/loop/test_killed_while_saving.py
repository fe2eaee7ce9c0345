"""Trainings killed twenty times while they save: the newest whole checkpoint is used, and the result is the same."""

import random
import shutil
from pathlib import Path

import pytest

from openuni.manifests.corpus.corpus import Corpus
from openuni.training.loop.training_checkpoint import list_checkpoints
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run
from tests.killed import KILLED
from tests.train.loop import rank_jobs
from tests.train.loop.rank_processes import launch, run_ranks
from tests.train.loop.test_ranks import losses
from tests.train.loop.test_trainer import assert_same, recipe, state
from tests.train.small_runs import steps_saved

KILLS = {1: 20, 2: 8}  # by number of ranks; 20 with two ranks were seen, and take a minute
MOST_CHANGES = 16  # of files of checkpoints, of one training until it dies: two checkpoints have as many
MOST_DELAY_S = 0.02


def job(settings: TrainingRecipe, corpus: Corpus, out: Path) -> dict[str, object]:
    return {"recipe": settings.to_dict(), "corpus": corpus.store.local(""), "out": str(out)}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("world", [1, 2])
def test_a_training_killed_many_times_while_it_saves(corpus: Corpus, tmp_path: Path, world: int) -> None:
    """By turns before a change of a file, drawn at random, and at a random time after it, such as within a file."""
    all_kills = KILLS[world]
    settings = recipe(
        optimizer={"steps": 2 * all_kills + 5},
        checkpoints={"every_steps": 1, "keep": 2, "keep_every_steps": 5},
        validation={"every_steps": 0},
    )
    run_ranks(world, tmp_path / "w", rank_jobs.trainings, [job(settings, corpus, tmp_path / "undisturbed")])
    out, draw, kills, steps = tmp_path / "run", random.Random(world), 0, set[int]()
    for number in range(all_kills):
        change, rank = draw.randint(1, MOST_CHANGES), draw.randrange(world)
        delay_s = draw.random() * MOST_DELAY_S if number % 2 else None
        ended = launch(
            world, tmp_path / f"{number}", rank_jobs.killed_while_saving, rank, change, delay_s,
            job(settings, corpus, out), end_all=True,
        )  # fmt: skip
        codes = [code for code, _, _ in ended]
        assert codes[rank] == KILLED, (number, codes, ended[rank][2][-2000:])
        kills += 1
        for checkpoint in list_checkpoints(out):  # none is half-written
            checkpoint.verify()
            steps.add(checkpoint.step)
    assert kills == all_kills and len(steps) > 3 and max(steps) < settings.optimizer.steps
    run_ranks(world, tmp_path / "last", rank_jobs.trainings, [job(settings, corpus, out)])
    assert_same(state(out), state(tmp_path / "undisturbed"))
    ours, theirs = losses(out), losses(tmp_path / "undisturbed")
    assert [row for row in ours if "loss" in row] == [row for row in theirs if "loss" in row]
    assert not list(out.glob(".step-*")) and not list(out.glob("*.damaged"))
    assert set(steps_saved(out)) >= {settings.optimizer.steps - 1, settings.optimizer.steps}
    assert Run.open(out, "cpu").model is not None
    shutil.rmtree(out)

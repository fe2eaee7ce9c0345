"""A training on Ray: the run of torchrun, restarted when a process dies, and refused where it cannot work."""

import json
import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from openuni.launch.ray_training import RayOptions, train_on_ray
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.manifests.graceful_shutdown import Terminated
from openuni.training.recipe import TrainingRecipe
from tests.command_line import cli
from tests.train.corpora import random_clips, write_corpus
from tests.train.loop.rank_jobs import trainings
from tests.train.loop.rank_processes import run_ranks
from tests.train.loop.test_trainer import assert_same, recipe, state
from tests.train.small_runs import steps_saved

STEPS = 120


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), random_clips(6))


def long_recipe() -> TrainingRecipe:
    return recipe(
        optimizer={"steps": STEPS, "batch_size": 4}, checkpoints={"every_steps": 10}, validation={"every_steps": 0}
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> dict[str, Any]:
    """The state at the end of the same run under torchrun, which nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = {"recipe": long_recipe().to_dict(), "corpus": corpus.store.url, "out": str(folder / "plain")}
    assert run_ranks(2, folder / "logs", trainings, [job]) == [[""], [""]]
    return state(folder / "plain")


def training_processes() -> list[psutil.Process]:
    """Processes of Ray Train on this machine that belong to this process's cluster, the latest last."""
    session = os.environ["RAY_AUTH_TOKEN"]
    found = []
    for process in psutil.process_iter():
        try:
            name = process.name() + " ".join(process.cmdline())
            if "RayTrainWorker" in name and process.environ().get("RAY_AUTH_TOKEN") == session:
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.create_time())


@pytest.mark.slow
def test_a_killed_process_is_replaced_and_the_run_ends_as_an_undisturbed_one(
    corpus: Corpus,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    ray_address: str,
    caplog: pytest.LogCaptureFixture,
):
    killed: list[int] = []
    steps: list[int] = []

    def kill_one(row: dict[str, Any]) -> None:
        steps.append(row["step"])
        if row["step"] >= 12 and not killed:
            process = training_processes()[-1]
            killed.append(process.pid)
            process.kill()

    options = RayOptions(2, max_restarts=1, address=ray_address)
    run = train_on_ray(long_recipe(), corpus, tmp_path / "run", options, kill_one)
    assert killed and run.checkpoint.step == STEPS
    assert "started again, number of processes: 2 (restart 1 of 1)" in caplog.text
    repeated = [step for step, after in pairwise(steps) if after <= step]
    assert len(repeated) == 1, "it went back to a checkpoint once"
    assert_same(state(tmp_path / "run"), undisturbed)
    assert steps_saved(tmp_path / "run") == [STEPS - 10, STEPS]
    assert not list((tmp_path / "run").glob(".ray*")), "nothing of Ray's stays"


@pytest.mark.slow
def test_sigterm_to_the_command_saves_and_errors_are_not_restarted(
    corpus: Corpus, undisturbed: dict[str, Any], tmp_path: Path, ray_address: str
):
    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    options, out = RayOptions(2, address=ray_address), tmp_path / "run"
    with pytest.raises(Terminated):
        train_on_ray(long_recipe(), corpus, out, options, stop)
    saved = steps_saved(out)[-1]
    assert 3 <= saved < STEPS
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"] == saved

    other = TrainingRecipe.from_dict({**long_recipe().to_dict(), "seed": 1}, quiet=True)
    with pytest.raises(OpenUniError, match="contains a run with different settings"):
        train_on_ray(other, corpus, out, options)
    job = {"recipe": long_recipe().to_dict(), "corpus": corpus.store.url, "out": str(out)}
    assert run_ranks(2, tmp_path / "rest", trainings, [job]) == [[""], [""]]
    assert_same(state(out), undisturbed)


def test_what_cannot_work_is_refused_before_a_process_starts(corpus: Corpus, tmp_path: Path, ray_address: str):
    out = tmp_path / "run"
    for options, message in (
        (RayOptions(5), "batch_size = 4 cannot be divided among 5"),
        (RayOptions(2, min_workers=3), "must be at most --workers 2"),
        (RayOptions(min_workers=3), "--min-workers needs --workers"),
        (RayOptions(address="127.0.0.1:1"), "cannot join the Ray cluster at 127.0.0.1:1"),
        (RayOptions(address="ray://127.0.0.1:10001"), "cannot run through a Ray client"),
    ):
        with pytest.raises(OpenUniError, match=message):
            train_on_ray(recipe(), corpus, out, options)
    with pytest.raises(OpenUniError, match=r"9 processes with a CPU each do not fit.*Pass --workers 8 or fewer"):
        train_on_ray(recipe(optimizer={"batch_size": 9}), corpus, out, RayOptions(9, address=ray_address))
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "2"], "--workers belongs to --ray"),
        (["--max-restarts", "0"], "--max-restarts belongs to --ray"),
        (["--ray", "--dry-run"], "--dry-run needs no --ray"),
        (["--ray", "--address", ""], 'address "": give the address'),
        (["--ray", "--workers", "9"], "cannot be divided among 9 processes"),
    ],
)
def test_flags_that_do_not_fit_together(flags: list[str], message: str, corpus: Corpus, tmp_path: Path):
    done = cli("train", "unityvideo_debug", "--corpus", corpus.store.url, "-o", tmp_path / "run", *flags)
    assert done.returncode == 2 and message in done.stderr

"""What ranks do in tests: trainings, and what is wrong with them. Run by `rank_processes.py`."""

import os
from contextlib import nullcontext
from typing import Any

import torch

from openuni.manifests.errors import OpenUniError
from openuni.training.loop.trainer import Trainer, train
from openuni.training.loop.weights import Ema
from openuni.training.recipe import TrainingRecipe
from tests.command_line import cli
from tests.full_disk import files_of_at_most
from tests.killed import die_at

RANK = "RANK"


def trainings(jobs: list[dict[str, Any]]) -> list[str]:
    """Train one after another; return how each ended: "", or class and message of the error.

    A job has recipe, corpus, out; and `stop` = [rank, step, signal] where a rank gets a signal, `spoil` = [rank, step]
    where one gets NaN in its average, `divide` where gradients are not added up, `full` = [rank, bytes] where files of
    one cannot be larger.
    """
    torch.set_num_threads(1)
    ended = []
    for job in jobs:
        update = Ema.update
        Ema.update = _disturbed(job, update)  # type: ignore[method-assign]
        begin = Trainer._build
        if "divide" in job:
            Trainer._build = _with_mean  # type: ignore[method-assign]
        rank, limit = job.get("full", (None, 0))
        full = files_of_at_most(limit) if os.environ.get(RANK, "0") == str(rank) else nullcontext()
        try:
            with full:
                train(TrainingRecipe.from_dict(job["recipe"], quiet=True), job["corpus"], job["out"], device="cpu")
            ended.append("")
        except KeyboardInterrupt as stopped:
            ended.append(f"{type(stopped).__name__}: {getattr(stopped, 'number', 2)}")
        except OpenUniError as error:
            ended.append(f"{type(error).__name__}: {error}")
        finally:
            Ema.update, Trainer._build = update, begin  # type: ignore[method-assign]
    return ended


def commands(lines: list[list[str]]) -> list[tuple[int, str, str]]:
    """Run commands of the command line; return exit code, stdout and stderr of each."""
    torch.set_num_threads(1)
    return [tuple(cli(*line)) for line in lines]


def killed_while_saving(rank: int, number: int, delay_s: float | None, job: dict[str, Any]) -> list[str]:
    """As `trainings`, but one rank dies before its `number`-th change of a checkpoint, or `delay_s` after it."""
    if os.environ.get(RANK, "0") == str(rank):
        die_at(number, lambda path: "/.step-" in path or "/step-" in path, delay_s)
    return trainings([job])


def killed(number: int, job: dict[str, Any]) -> list[str]:
    """As `trainings`, but rank 0 dies before the `number`-th change of its checkpoint of step 2."""
    if os.environ[RANK] == "0":
        die_at(number, lambda path: "step-000002" in path)
    return trainings([job])


def _disturbed(job: dict[str, Any], update: Any) -> Any:
    steps = 0
    rank = int(os.environ.get(RANK, "0"))

    def disturbed(self: Ema, decay: float) -> None:
        nonlocal steps
        update(self, decay)
        steps += 1
        if "stop" in job and [rank, steps] == job["stop"][:2]:
            os.kill(os.getpid(), job["stop"][2])
        if job.get("spoil") == [rank, steps]:
            next(tensor for tensor in self.average.values() if tensor.numel()).view(-1)[0] = torch.nan

    return disturbed


_build = Trainer._build


def _with_mean(self: Trainer) -> Any:
    weights = _build(self)
    weights.model.set_gradient_divide_factor(2.0)
    return weights

"""Recipes of runs that take seconds."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from openuni.training.loop.trainer import train
from openuni.training.loop.training_checkpoint import list_checkpoints
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run
from tests.train.corpora import random_clips, write_corpus

# Six steps, validated and saved every three
TABLES: dict[str, Any] = {
    "data": {"text_length": 0, "validation_share": 0.2},
    "flow": {"shift": 1.0},
    "optimizer": {"steps": 6, "batch_size": 4, "learning_rate": 3e-3, "added_rate_factor": 1.0, "warmup_steps": 2},
    "ema": {"decay": 0.9},
    "validation": {"every_steps": 3, "clips": 2, "quantiles": 2},
    "checkpoints": {"every_steps": 3, "keep": 2},
}


# The smallest model that has everything
TINY = {"name": "unityvideo", "num_layers": 1, "heads": 2, "head_dim": 12, "ffn_dim": 48, "freq_dim": 16}


def one_step_run(folder: Path, modalities: Sequence[str]) -> Run:
    """One step of `TINY` on four random clips of these modalities: 5 frames of 16 x 16 pixels."""
    corpus = write_corpus(folder / "corpus", random_clips(4, modalities))
    settings = {"model": TINY | {"switcher_dim": 8}, "optimizer": {"steps": 1, "batch_size": 2}}
    return train(TrainingRecipe.from_dict(settings), corpus, folder / "run")


def small_recipe(*changes: dict[str, Any]) -> TrainingRecipe:
    """`TABLES` with these merged into them, one after another; a table of tasks replaces the one before."""
    merged = {name: dict(value) for name, value in TABLES.items()}
    for name, value in (item for change in changes for item in change.items()):
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) and name != "tasks" else value
    return TrainingRecipe.from_dict(merged)


def write_recipe(folder: Path, model: dict[str, Any], **changes: dict[str, Any]) -> Path:
    """`TABLES` with these tables merged into them, as a file for the command line."""
    tables = {"model": model} | {name: TABLES[name] | changes.get(name, {}) for name in TABLES}
    path = folder / "small.toml"
    with path.open("w") as file:
        for name, table in tables.items():
            file.write(f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items()))
    return path


def steps_saved(run: Path) -> list[int]:
    """Steps of all checkpoints of a run."""
    return [checkpoint.step for checkpoint in list_checkpoints(run)]


def stop_at(step: int, number: int) -> Callable[[dict[str, Any]], None]:
    """A progress callback that sends this process a signal at a training step."""

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == step and "loss" in row:
            os.kill(os.getpid(), number)

    return stop

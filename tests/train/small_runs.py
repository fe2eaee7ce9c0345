"""Recipes of runs that take seconds."""

from typing import Any

from openuni.training.recipe import TrainingRecipe

# Six steps, validated and saved every three
TABLES: dict[str, Any] = {
    "data": {"text_length": 0, "validation_share": 0.2},
    "flow": {"shift": 1.0},
    "optimizer": {"steps": 6, "batch_size": 4, "learning_rate": 3e-3, "added_rate_factor": 1.0, "warmup_steps": 2},
    "ema": {"decay": 0.9},
    "validation": {"every_steps": 3, "clips": 2, "quantiles": 2},
    "checkpoints": {"every_steps": 3, "keep": 2},
}


def small_recipe(*changes: dict[str, Any]) -> TrainingRecipe:
    """`TABLES` with these merged into them, one after another; a table of tasks replaces the one before."""
    merged = {name: dict(value) for name, value in TABLES.items()}
    for name, value in (item for change in changes for item in change.items()):
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) and name != "tasks" else value
    return TrainingRecipe.from_dict(merged)

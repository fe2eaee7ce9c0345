"""Curricula: from which step on which mix of tasks is trained, on which clips. Every stage is a plan of its own."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import numpy as np

from openuni.manifests.errors import OpenUniError
from openuni.training.data.index import Index
from openuni.training.data.plan import Plan, Sample, clips_by_task
from openuni.training.randomness import named_seed
from openuni.training.recipe import TrainingRecipe
from openuni.training.tasks import Task, TaskMix


class StageMix(NamedTuple):
    """One stage of a recipe, for a model's modalities."""

    from_step: int
    mix: TaskMix
    collections: tuple[str, ...]  # of whose clips; empty: of all

    def clips(self, index: Index) -> np.ndarray:
        """bool [N]: the clips of the stage's collections, whatever streams they have."""
        if not self.collections:
            return np.ones(len(index.clip_ids), dtype=bool)
        return np.isin(index.collection, [n for n, name in enumerate(index.collections) if name in self.collections])


def curriculum_stages(recipe: TrainingRecipe, modalities: Sequence[str]) -> list[StageMix]:
    """The recipe's own tasks from step 0, then what its `curriculum` says."""
    stages = [StageMix(0, TaskMix.build(recipe.tasks, modalities, recipe.modality_weights), recipe.data.collections)]
    for stage in recipe.curriculum:
        mix = TaskMix.build(stage.tasks, modalities, stage.modality_weights)
        stages.append(StageMix(stage.from_step, mix, stage.collections))
    return stages


def all_collections(stages: Sequence[StageMix]) -> tuple[str, ...]:
    """The collections of all stages; empty where one of them uses all clips."""
    if not all(stage.collections for stage in stages):
        return ()
    return tuple(sorted({name for stage in stages for name in stage.collections}))


def trained_tasks(recipe: TrainingRecipe, modalities: Sequence[str], steps: float = inf) -> list[Task]:
    """The tasks of all stages that have begun when `steps` are done."""
    stages = curriculum_stages(recipe, modalities)
    return TaskMix.averaged([stage.mix for stage in stages if stage.from_step < max(steps, 1)]).tasks


@dataclass(frozen=True, eq=False)
class Curriculum:
    """A plan per stage, and like a plan: `step(t)` costs the same at any step, and resuming needs the step alone.

    Until the first border the steps are those of the same recipe without a curriculum. A stage begins with a pass of
    its own over its own clips; its order and its tasks are drawn with a seed of its own.
    """

    stages: list[StageMix]
    plans: list[Plan]

    @classmethod
    def build(cls, index: Index, stages: list[StageMix], seed: int, batch_size: int) -> "Curriculum":
        """Raises `OpenUniError`, with the stage, where nothing can be trained on."""
        plans = []
        for number, stage in enumerate(stages):
            own = named_seed(seed, "stage", number) if number else seed
            try:
                plans.append(Plan.build(index, stage.mix, own, batch_size, stage.clips(index)))
            except OpenUniError as error:
                if len(stages) == 1:
                    raise
                raise OpenUniError(f"stage {number + 1}, from step {stage.from_step}: {error}") from None
        return cls(stages, plans)

    def step(self, step: int) -> list[Sample]:
        """The `batch_size` samples of step `step` (from 0)."""
        number = bisect_right(self.stages, step, key=lambda stage: stage.from_step) - 1
        return self.plans[number].step(step - self.stages[number].from_step)

    def summary(self, index: Index) -> list[dict[str, Any]]:
        """Of each stage what it trains on, for run.json."""
        return [
            {
                "from_step": stage.from_step,
                "clips": plan.clip_count,
                "clips_by_task": clips_by_task(index, stage.mix, stage.clips(index)),
            }
            for stage, plan in zip(self.stages, self.plans, strict=True)
        ]

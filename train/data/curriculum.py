"""Curricula: a sequence of stages, each with a first step, a task mix, collections and a separate plan."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import numpy as np

from openuni.manifests.errors import OpenUniError, did_you_mean
from openuni.training.data.index import Index
from openuni.training.data.plan import Plan, Sample, clips_by_task
from openuni.training.randomness import named_seed
from openuni.training.recipe import CurriculumStage, DataOptions, TrainingRecipe
from openuni.training.tasks import Task, TaskMix


class StageMix(NamedTuple):
    """One stage of a recipe, for a model's modalities."""

    from_step: int
    mix: TaskMix
    collections: tuple[str, ...]  # empty: all
    collection_weights: Mapping[str, float] | None = None  # 1 if absent; None: in proportion to their clips

    def clips(self, index: Index) -> np.ndarray:
        """bool [N]: the clips of the stage's collections, regardless of their streams."""
        if not self.collections:
            return np.ones(len(index.clip_ids), dtype=bool)
        return np.isin(index.collection, [n for n, name in enumerate(index.collections) if name in self.collections])

    def check_weights(self, index: Index) -> None:
        """Raise `OpenUniError` if `collection_weights` names a collection that the stage does not sample from."""
        there = {name for name in index.collections if name and (not self.collections or name in self.collections)}
        for name in self.collection_weights or {}:
            if name not in there:
                raise OpenUniError(
                    f'collection_weights: collection "{name}" is not among those trained on.'
                    f"{did_you_mean(name, there)} Allowed: {', '.join(sorted(there)) or 'none, as no clip has one'}."
                )


def curriculum_stages(recipe: TrainingRecipe, modalities: Sequence[str]) -> list[StageMix]:
    """The stages of a recipe: its top-level tasks from step 0, then its `curriculum`."""
    data = recipe.data
    first = TaskMix.build(recipe.tasks, modalities, recipe.modality_weights)
    stages = [StageMix(0, first, data.collections, _weights(data))]
    for stage in recipe.curriculum:
        mix = TaskMix.build(stage.tasks, modalities, stage.modality_weights)
        stages.append(StageMix(stage.from_step, mix, stage.collections, _weights(stage)))
    return stages


def _weights(options: DataOptions | CurriculumStage) -> Mapping[str, float] | None:
    return options.collection_weights if options.collection_weights or options.balanced_collections else None


def all_collections(stages: Sequence[StageMix]) -> tuple[str, ...]:
    """The collections of all stages; empty if one of them uses all clips."""
    if not all(stage.collections for stage in stages):
        return ()
    return tuple(sorted({name for stage in stages for name in stage.collections}))


def trained_tasks(recipe: TrainingRecipe, modalities: Sequence[str], steps: float = inf) -> list[Task]:
    """The tasks of all stages that have started after `steps` steps."""
    stages = curriculum_stages(recipe, modalities)
    return TaskMix.averaged([stage.mix for stage in stages if stage.from_step < max(steps, 1)]).tasks


@dataclass(frozen=True, eq=False)
class Curriculum:
    """A plan per stage. `step(t)` costs the same at any step and has no state, so resuming requires only the step.

    Steps of the first stage equal those of the same recipe without a curriculum. Every stage starts a new pass over its
    clips, with a separate seed for order and tasks.
    """

    stages: list[StageMix]
    plans: list[Plan]

    @classmethod
    def build(cls, index: Index, stages: list[StageMix], seed: int, batch_size: int) -> "Curriculum":
        """Build all plans. Raises `OpenUniError`, naming the stage, if a stage has no training clips."""
        plans = []
        for number, stage in enumerate(stages):
            own = named_seed(seed, "stage", number) if number else seed
            try:
                stage.check_weights(index)
                clips = stage.clips(index)
                plans.append(Plan.build(index, stage.mix, own, batch_size, clips, stage.collection_weights))
            except OpenUniError as error:
                if len(stages) == 1:
                    raise
                raise OpenUniError(f"stage {number + 1}, from step {stage.from_step}: {error}") from None
        return cls(stages, plans)

    def step(self, step: int) -> list[Sample]:
        """The `batch_size` samples of step `step` (from 0)."""
        plan, own = self._plan(step)
        return plan.step(own)

    def replacement(self, step: int, slot: int, sample: Sample, attempt: int) -> Sample | None:
        """See `StepSchedule`."""
        plan, own = self._plan(step)
        return plan.replacement(own, slot, sample, attempt)

    def _plan(self, step: int) -> tuple[Plan, int]:
        """The plan of a step, and the step's number in it."""
        number = bisect_right(self.stages, step, key=lambda stage: stage.from_step) - 1
        return self.plans[number], step - self.stages[number].from_step

    def summary(self, index: Index) -> list[dict[str, Any]]:
        """Training clips of each stage, for run.json."""
        return [
            {
                "from_step": stage.from_step,
                "clips": plan.clip_count,
                "clips_by_task": clips_by_task(index, stage.mix, stage.clips(index)),
            }
            for stage, plan in zip(self.stages, self.plans, strict=True)
        ]

"""The plan: clips and tasks of every step, as a pure function of seed, data and step."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from openuni.manifests.errors import OpenUniError
from openuni.training.data.index import Index
from openuni.training.randomness import named_seed, permuted
from openuni.training.tasks import Task, TaskMix

BLOCK = 256  # steps after which every bucket has its proportional number of steps


@dataclass(frozen=True)
class Sample:
    """One slot of a step: the clip's number in the index, and its task."""

    clip: int
    task: Task


class StepSchedule(Protocol):
    """Samples of every step as a pure function of the step: a plan or a curriculum."""

    def step(self, step: int) -> list[Sample]:
        """The samples of step `step` (from 0)."""


@dataclass(frozen=True, eq=False)
class Plan:
    """`plan.step(t)` costs the same at any step and has no state, so resuming requires only the step.

    A step draws from one bucket (clips of one latent shape); buckets take turns in proportion to their clips. Within a
    bucket every pass is a new permutation of all its clips. Passes continue across steps, so no clip is skipped or
    repeated within a pass.
    """

    seed: int
    batch_size: int
    buckets: list[np.ndarray]  # clip numbers, int64
    available: dict[int, frozenset[str]]  # by presence bits
    present: np.ndarray  # uint64 [N]
    mix: TaskMix

    @classmethod
    def build(cls, index: Index, mix: TaskMix, seed: int, batch_size: int, clips: np.ndarray | None = None) -> "Plan":
        """Plan over clips that are not held out and have the streams of at least one task. `clips`: bool [N], subset.

        Raises `OpenUniError` if there are none.
        """
        wanted = np.ones(len(index.clip_ids), dtype=bool) if clips is None else clips
        usable = usable_clips(index, mix) & wanted & ~index.held_out
        if not usable.any():
            raise OpenUniError(_no_clips_reason(index, mix, wanted))
        shapes, present = index.shapes, index.present
        numbers = np.flatnonzero(usable)
        keys = shape_keys(shapes[numbers])
        buckets = [numbers[keys == key] for key in np.unique(keys)]
        available = {int(bits): index.streams(int(bits)) for bits in np.unique(present[numbers])}
        return cls(seed, batch_size, buckets, available, present, mix)

    @property
    def clip_count(self) -> int:
        """Number of clips in one pass."""
        return sum(len(bucket) for bucket in self.buckets)

    def step(self, step: int) -> list[Sample]:
        """The `batch_size` samples of step `step` (from 0)."""
        number, nth = self._bucket(step)
        bucket = self.buckets[number]
        positions = np.arange(nth * self.batch_size, (nth + 1) * self.batch_size)
        passes, places = np.divmod(positions, len(bucket))
        clips = np.empty(self.batch_size, dtype=np.int64)
        for one in np.unique(passes):
            here = passes == one
            key = named_seed(self.seed, "order", number, int(one))
            clips[here] = bucket[permuted(places[here], len(bucket), key)]
        return [self._sample(step, slot, int(clip)) for slot, clip in enumerate(clips)]

    def _sample(self, step: int, slot: int, clip: int) -> Sample:
        available = self.available[int(self.present[clip])]
        return Sample(clip, self.mix.draw(available, self.seed, step, slot))

    def _bucket(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and the number of its earlier steps."""
        block, place = divmod(step, BLOCK)
        before, after = self._steps_before(block), self._steps_before(block + 1)
        order = np.repeat(np.arange(len(self.buckets)), np.subtract(after, before))
        order = order[permuted(np.arange(BLOCK), BLOCK, named_seed(self.seed, "buckets", block))]
        number = int(order[place])
        return number, before[number] + int((order[:place] == number).sum())

    def _steps_before(self, block: int) -> list[int]:
        """Number of steps of each bucket after `block` blocks, less than one off from its proportional share."""
        edges = [0]
        total = 0
        for bucket in self.buckets:
            total += len(bucket)
            edges.append(total * block * BLOCK // self.clip_count)
        return [right - left for left, right in pairwise(edges)]


def shape_keys(shapes: np.ndarray) -> np.ndarray:
    """int64 [N]: one number per shape, int32 [N, 4], in the order of the shapes. `np.unique` of rows takes seconds."""
    keys = np.zeros(len(shapes), np.int64)
    for column in shapes.T.astype(np.int64):
        values = np.unique(column)
        keys = keys * len(values) + np.searchsorted(values, column)
        keys = np.unique(keys, return_inverse=True)[1]  # below N again: the next product does not overflow
    return keys


def usable_clips(index: Index, mix: TaskMix) -> np.ndarray:
    """bool [N]: clips with the streams of at least one task."""
    present = index.present
    good = [bits for bits in np.unique(present) if mix.available_tasks(index.streams(int(bits)))]
    return np.isin(present, np.array(good, dtype=np.uint64))


def clips_by_task(index: Index, mix: TaskMix, clips: np.ndarray | None = None) -> dict[str, int]:
    """Number of training clips per task: not held out, with all its streams. `clips`: bool [N], subset."""
    counts = dict.fromkeys(map(str, mix.tasks), 0)
    wanted = ~index.held_out if clips is None else ~index.held_out & clips
    for bits, count in zip(*np.unique(index.present[wanted], return_counts=True), strict=True):
        for task, _ in mix.available_tasks(index.streams(int(bits))):
            counts[str(task)] += int(count)
    return counts


def _no_clips_reason(index: Index, mix: TaskMix, wanted: np.ndarray) -> str:
    counts = ", ".join(f"{name}: {int((extents.present & wanted).sum())}" for name, extents in index.latents.items())
    both = np.logical_and.reduce([wanted, *(extents.present for extents in index.latents.values())])
    held_out = int((index.held_out & wanted).sum())
    return (
        f"no training clips. Of {int(wanted.sum())} kept clips, {held_out} are held out for validation; with "
        f"latents by modality: {counts}; with all of them: {int(both.sum())}. Tasks: "
        f"{', '.join(str(task) for task in mix.tasks)}. Encode the missing modalities (the pipeline's [encode] "
        "section), choose other tasks, or lower data.validation_share."
    )

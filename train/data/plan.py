"""The order of training: which clips and tasks form a step, as a pure function of seed, data and step."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from openuni.manifests.errors import OpenUniError
from openuni.training.data.index import Index
from openuni.training.randomness import named_seed, permuted
from openuni.training.tasks import Task, TaskMix

BLOCK = 256  # steps over which every bucket gets its exact share


@dataclass(frozen=True)
class Sample:
    """One slot of a step: the clip's number in the index, and what is done with it."""

    clip: int
    task: Task


class StepSchedule(Protocol):
    """What says the samples of every step, as a pure function of it: a plan, or several in turn."""

    def step(self, step: int) -> list[Sample]:
        """The samples of step `step` (from 0)."""


@dataclass(frozen=True, eq=False)
class Plan:
    """`plan.step(t)` costs the same at any step and needs no state: resuming needs the step alone.

    A step draws from one bucket (clips of one latent shape); buckets take turns in proportion to their clips. Within a
    bucket every pass is a permutation of all its clips, another one each time; passes run on across steps, so nothing
    is dropped and nothing repeated before its turn.
    """

    seed: int
    batch_size: int
    buckets: list[np.ndarray]  # clip numbers, int64
    available: dict[int, frozenset[str]]  # by presence bits
    present: np.ndarray  # uint64 [N]
    mix: TaskMix

    @classmethod
    def build(cls, index: Index, mix: TaskMix, seed: int, batch_size: int, clips: np.ndarray | None = None) -> "Plan":
        """Over the clips that are not held out and have the streams of at least one task; of `clips`, bool [N], only.

        Raises `OpenUniError` when there is none.
        """
        wanted = np.ones(len(index.clip_ids), dtype=bool) if clips is None else clips
        usable = usable_clips(index, mix) & wanted & ~index.held_out
        if not usable.any():
            raise OpenUniError(_no_clips_reason(index, mix, wanted))
        shapes, present = index.shapes, index.present
        numbers = np.flatnonzero(usable)
        _, bucket = np.unique(shapes[numbers], axis=0, return_inverse=True)
        buckets = [numbers[bucket.ravel() == number] for number in range(bucket.max() + 1)]
        available = {int(bits): index.streams(int(bits)) for bits in np.unique(present[numbers])}
        return cls(seed, batch_size, buckets, available, present, mix)

    @property
    def clip_count(self) -> int:
        """Clips in one pass."""
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
        """The bucket of a step, and how many steps that bucket had before."""
        block, place = divmod(step, BLOCK)
        before, after = self._steps_before(block), self._steps_before(block + 1)
        order = np.repeat(np.arange(len(self.buckets)), np.subtract(after, before))
        order = order[permuted(np.arange(BLOCK), BLOCK, named_seed(self.seed, "buckets", block))]
        number = int(order[place])
        return number, before[number] + int((order[:place] == number).sum())

    def _steps_before(self, block: int) -> list[int]:
        """Steps each bucket has had after `block` blocks: exact integers, off by less than one from its share."""
        edges = [0]
        total = 0
        for bucket in self.buckets:
            total += len(bucket)
            edges.append(total * block * BLOCK // self.clip_count)
        return [right - left for left, right in pairwise(edges)]


def usable_clips(index: Index, mix: TaskMix) -> np.ndarray:
    """bool [N]: clips with the streams of at least one task."""
    present = index.present
    good = [bits for bits in np.unique(present) if mix.available_tasks(index.streams(int(bits)))]
    return np.isin(present, np.array(good, dtype=np.uint64))


def clips_by_task(index: Index, mix: TaskMix, clips: np.ndarray | None = None) -> dict[str, int]:
    """How many clips each task can train on: not held out, with all its streams; of `clips`, bool [N], only."""
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
        f"no clip can be trained on. Of {int(wanted.sum())} kept clips, {held_out} are held out for validation; with "
        f"latents by modality: {counts}; with all of them: {int(both.sum())}. Tasks: "
        f"{', '.join(str(task) for task in mix.tasks)}. Encode the missing modalities (the pipeline's [encode] "
        "section), choose other tasks, or lower data.validation_share."
    )

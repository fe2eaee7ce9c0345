"""The plan: clips and tasks of every step, as a pure function of seed, data and step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from openuni.manifests.errors import OpenUniError
from openuni.training.data.index import Index
from openuni.training.data.shares import dealt, integer_shares
from openuni.training.randomness import named_seed, permuted
from openuni.training.tasks import Task, TaskMix

BLOCK = 256  # steps after which every bucket has its proportional number of steps
NO_COLLECTION = "\n"  # in seeds: no collection is named like this


@dataclass(frozen=True)
class Sample:
    """One slot of a step: the clip's number in the index, and its task."""

    clip: int
    task: Task


class Stream(NamedTuple):
    """Clips of one latent shape, and of one collection if collections have weights."""

    clips: np.ndarray  # clip numbers, int64
    weight: int  # relative to all streams of the plan
    name: str = ""  # of the collection; empty: all collections together


class StepSchedule(Protocol):
    """Samples of every step as a pure function of the step: a plan or a curriculum."""

    def step(self, step: int) -> list[Sample]:
        """The samples of step `step` (from 0)."""

    def replacement(self, step: int, slot: int, sample: Sample, attempt: int) -> Sample | None:
        """Another sample of this task for a slot, whose sample is damaged: the one of attempt 0, 1, ...; None: no more.

        It has the same streams and shape, so that ranks divide the step as they would have.
        """


@dataclass(frozen=True, eq=False)
class Plan:
    """`plan.step(t)` costs the same at any step and has no state, so resuming requires only the step.

    A step draws from one bucket (clips of one latent shape); buckets take turns in proportion to their weight. In every
    step, each collection of the bucket has its share of the samples, rounded; without weights a bucket is one stream.
    Within a stream every pass is a new permutation of all its clips. Passes continue across steps, so no clip is
    skipped or repeated within a pass.
    """

    seed: int
    batch_size: int
    buckets: list[list[Stream]]
    available: dict[int, frozenset[str]]  # by presence bits
    present: np.ndarray  # uint64 [N]
    mix: TaskMix

    @classmethod
    def build(
        cls,
        index: Index,
        mix: TaskMix,
        seed: int,
        batch_size: int,
        clips: np.ndarray | None = None,
        collection_weights: Mapping[str, float] | None = None,
    ) -> "Plan":
        """Plan over clips that are not held out and have the streams of at least one task. `clips`: bool [N], subset.

        `collection_weights`: shares of the collections in the samples, 1 if absent; None: in proportion to their clips.
        Raises `OpenUniError` if there are no clips, or none of a collection with a weight.
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
        if collection_weights is None:
            streams = [[Stream(bucket, len(bucket))] for bucket in buckets]
        else:
            streams = _by_collection(index, buckets, collection_weights)
        return cls(seed, batch_size, streams, available, present, mix)

    @property
    def clip_count(self) -> int:
        """Number of clips in one pass over every stream."""
        return sum(len(stream.clips) for bucket in self.buckets for stream in bucket)

    def step(self, step: int) -> list[Sample]:
        """The `batch_size` samples of step `step` (from 0)."""
        number, nth = self._bucket(step)
        bucket = self.buckets[number]
        key = named_seed(self.seed, "collections", number, nth)
        drawn, places = dealt([stream.weight for stream in bucket], self.batch_size, nth, key)
        clips = np.empty(self.batch_size, dtype=np.int64)
        for which in np.unique(drawn):
            here = drawn == which
            clips[here] = self._clips(number, bucket[which], places[here])
        return [self._sample(step, slot, int(clip)) for slot, clip in enumerate(clips)]

    def replacement(self, step: int, slot: int, sample: Sample, attempt: int) -> Sample | None:
        """See `StepSchedule`. From the same bucket and, if collections have weights, the same collection."""
        bucket = self.buckets[self._bucket(step)[0]]
        (clips,) = [stream.clips for stream in bucket if sample.clip in stream.clips]
        required = sample.task.required_streams
        bits = [bits for bits, streams in self.available.items() if streams >= required]
        others = clips[np.isin(self.present[clips], np.array(bits, np.uint64)) & (clips != sample.clip)]
        if attempt >= len(others):
            return None
        key = named_seed(self.seed, "replacement", step, slot)
        return Sample(int(others[permuted(np.array([attempt]), len(others), key)[0]]), sample.task)

    def _clips(self, bucket: int, stream: Stream, positions: np.ndarray) -> np.ndarray:
        """The clips at these positions of a stream, which counts on through all passes."""
        passes, places = np.divmod(positions, len(stream.clips))
        clips = np.empty(len(positions), dtype=np.int64)
        for one in np.unique(passes):
            here = passes == one
            key = named_seed(self.seed, "order", bucket, int(one), *filter(None, [stream.name]))
            clips[here] = stream.clips[permuted(places[here], len(stream.clips), key)]
        return clips

    def _sample(self, step: int, slot: int, clip: int) -> Sample:
        available = self.available[int(self.present[clip])]
        return Sample(clip, self.mix.draw(available, self.seed, step, slot))

    def _bucket(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and the number of its earlier steps."""
        block, place = divmod(step, BLOCK)
        weights = [sum(stream.weight for stream in bucket) for bucket in self.buckets]
        buckets, earlier = dealt(weights, BLOCK, block, named_seed(self.seed, "buckets", block))
        return int(buckets[place]), int(earlier[place])


def _by_collection(index: Index, buckets: list[np.ndarray], weights: Mapping[str, float]) -> list[list[Stream]]:
    """The streams of each bucket if all clips of a collection are equally likely. Those of weight 0 are left out."""
    every = np.concatenate(buckets)
    counts = np.bincount(index.collection[every], minlength=len(index.collections))
    empty = [name for number, name in enumerate(index.collections) if weights.get(name, 0) > 0 and not counts[number]]
    if empty:
        raise OpenUniError(
            f"collection_weights: no training clip of collection {', '.join(empty)} has the modalities of a task and "
            "is not held out. Set its weight to 0, encode the missing modalities, or choose other tasks."
        )
    parts = [
        (bucket, clips[index.collection[clips] == number], int(number))
        for bucket, clips in enumerate(buckets)
        for number in np.unique(index.collection[clips])
        if weights.get(index.collections[number], 1.0) > 0
    ]
    if not parts:
        given = ", ".join(f"{name} = {weight:g}" for name, weight in weights.items())
        raise OpenUniError(
            f"collection_weights: {given}: every collection has weight 0. Allowed: at least one above 0."
        )
    shares = integer_shares(
        [(weights.get(index.collections[number], 1.0), len(clips), int(counts[number])) for _, clips, number in parts]
    )
    streams: list[list[Stream]] = [[] for _ in buckets]
    for (bucket, clips, number), share in zip(parts, shares, strict=True):
        streams[bucket].append(Stream(clips, share, index.collections[number] or NO_COLLECTION))
    return [bucket for bucket in streams if bucket]


def shape_keys(shapes: np.ndarray) -> np.ndarray:
    """int64 [N]: one number per shape, int32 [N, 4], in the order of the shapes. `np.unique` of rows takes seconds."""
    keys = np.zeros(len(shapes), np.int64)
    for column in shapes.T:
        values = np.unique(column)
        if len(values) == 1:
            continue
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
    if not wanted.any():
        return (
            "no training clips: the corpus has none that were ingested, pass its keep rule and are in the collections "
            "of the recipe. See what became of them with: openuni summary CORPUS"
        )
    counts = ", ".join(f"{name}: {int((extents.present & wanted).sum())}" for name, extents in index.latents.items())
    both = np.logical_and.reduce([wanted, *(extents.present for extents in index.latents.values())])
    held_out = int((index.held_out & wanted).sum())
    return (
        f"no training clips. Of {int(wanted.sum())} kept clips, {held_out} are held out for validation; with "
        f"latents by modality: {counts}; with all of them: {int(both.sum())}. Tasks: "
        f"{', '.join(str(task) for task in mix.tasks)}. Encode the missing modalities (the pipeline's [encode] "
        "section), choose other tasks, or lower data.validation_share."
    )

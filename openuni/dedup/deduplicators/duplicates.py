"""Near-duplicates of a clip: re-encoded, scaled, trimmed or recoloured."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from annotated_types import Interval

from openuni.dedup.deduplicator import Deduplicator, DuplicateAssignments, RankedClips
from openuni.dedup.deduplicators._clusters import UnionFind, assign_representatives
from openuni.dedup.deduplicators._hash_search import MAX_DISTANCE, distances, near_pairs
from openuni.manifests.contracts.options import Formerly
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import filter_group

MAX_CLIPS_PER_HASH = 16  # clips that share an identical frame and are compared with each other
PAIRS_AT_ONCE = 16 * 1024
FRAMES_AT_ONCE = 4 * 1024  # pairs of frames, each with up to 16 x 16 pairs of clips


@dataclass(frozen=True)
class Duplicates(Deduplicator):
    """Near-duplicates by perceptual hash: clips that share most of their sampled frames.

    Two clips are near-duplicates if `min_matching_frames_share` of the frames of the clip with fewer frames have a
    match in the other, at any position; trimmed clips and excerpts are therefore found too. Shots of one static scene
    count as near-duplicates. All clips with a matching frame are compared. If more than 16 clips have an identical
    frame, such as a logo, each is compared by it only with its 16 neighbours in the order of the next frame.
    """

    max_distance: Annotated[
        int,
        "maximum Hamming distance (of 64 bits) between matching frames; slow above 7",
        Interval(ge=0, le=MAX_DISTANCE),
    ] = 7
    min_matching_frames_share: Annotated[
        float,
        "minimum share of matching frames, relative to the clip with fewer frames",
        Interval(gt=0, le=1),
        Formerly("min_share"),
    ] = 0.6

    by: ClassVar[str] = "hash"
    source_filter: ClassVar[str] = "perceptual_hash"
    column: ClassVar[str] = "hashes"
    origin: ClassVar[str] = "multi-index hashing, Norouzi et al. 2012 (CVPR)"

    def find(self, corpus: Corpus, clips: RankedClips, progress: Callable[[float], None]) -> DuplicateAssignments:
        """See `Deduplicator.find`. The similarity is 1 minus the mean share of differing bits of matching frames."""
        frames = FrameHashes.read(corpus, self, clips)
        groups = UnionFind(len(clips.ids))
        for left, right in frames.candidates(self.max_distance, progress):
            for start in range(0, len(left), PAIRS_AT_ONCE):
                one, other = left[start : start + PAIRS_AT_ONCE], right[start : start + PAIRS_AT_ONCE]
                unlinked = groups.unlinked(one, other)
                one, other = one[unlinked], other[unlinked]
                similar = np.isfinite(self._similarities(frames, one, other))
                groups.link(one[similar], other[similar])
        return assign_representatives(
            groups, lambda clip, others: self._similarities(frames, np.full_like(others, clip), others)
        )

    def _similarities(self, frames: "FrameHashes", one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Similarities of pairs of clips (int64 [n] each), float64 [n]; NaN if they are not near-duplicates."""
        found = np.full(len(one), np.nan)
        for place, pair in enumerate(zip(one.tolist(), other.tolist(), strict=True)):
            few, many = sorted((frames.of(clip) for clip in pair), key=len)
            bits = distances(few[:, None], many[None, :])
            nearest = [bits.min(axis=axis) for axis in ((0, 1) if len(few) == len(many) else (1,))]
            if all((least <= self.max_distance).mean() >= self.min_matching_frames_share for least in nearest):
                matching = np.concatenate(nearest)
                found[place] = 1 - matching[matching <= self.max_distance].mean() / 64
        return found


class FrameHashes:
    """The hashes of all clips: those of clip n are `hashes[starts[n]:starts[n + 1]]`."""

    def __init__(self, hashes: np.ndarray, starts: np.ndarray) -> None:
        self.hashes, self.starts = hashes, starts  # uint64 [F], int64 [N + 1]

    @classmethod
    def read(cls, corpus: Corpus, deduplicator: Deduplicator, clips: RankedClips) -> "FrameHashes":
        """Read from the filter's column group, in order of rank."""
        columns = {
            "clip_id": pads.field("clip_id"),
            "hashes": pads.field(deduplicator.source_filter, deduplicator.column),
        }
        table = corpus.table(filter_group(deduplicator.source_filter), columns)
        places = pc.index_in(clips.ids, value_set=table["clip_id"].combine_chunks())
        lists = table["hashes"].combine_chunks().take(places.filter(pa.array(clips.known)))
        counts = np.zeros(len(clips.ids), np.int64)
        counts[clips.known] = pc.list_value_length(lists).to_numpy()
        return cls(lists.flatten().to_numpy().view(np.uint64), np.concatenate([[0], np.cumsum(counts)]))

    def of(self, clip: int) -> np.ndarray:
        """The hashes of one clip, uint64 [n]."""
        return self.hashes[self.starts[clip] : self.starts[clip + 1]]

    def candidates(
        self, max_distance: int, progress: Callable[[float], None]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of clips (int64 [n], int64 [n]) with at least one matching frame; pairs may be repeated.

        `progress`: as of `Deduplicator.find`.
        """
        owners = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        order = np.lexsort((owners, self._next_hashes(), self.hashes))  # near-duplicates become neighbours
        owners = owners[order]
        values, begins, counts = np.unique(self.hashes[order], return_index=True, return_counts=True)
        for step in range(1, min(MAX_CLIPS_PER_HASH, counts.max(initial=1) - 1) + 1):  # identical frames
            same = np.flatnonzero(self.hashes[order[:-step]] == self.hashes[order[step:]])
            yield _different(owners[same], owners[same + step])
        counts = np.minimum(counts, MAX_CLIPS_PER_HASH)
        for near in near_pairs(values, max_distance, progress):  # similar frames
            for start in range(0, len(near[0]), FRAMES_AT_ONCE):
                left, right = (values_of[start : start + FRAMES_AT_ONCE] for values_of in near)
                sizes = counts[left] * counts[right]
                pair = np.repeat(np.arange(len(left)), sizes)
                within = np.arange(len(pair)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
                down, across = np.divmod(within, counts[right][pair])
                yield _different(owners[begins[left][pair] + down], owners[begins[right][pair] + across])

    def _next_hashes(self) -> np.ndarray:
        """For each frame, the hash of the clip's next frame (for the last one, of the first); uint64 [F]."""
        following = np.roll(self.hashes, -1)
        filled = np.flatnonzero(np.diff(self.starts))
        following[self.starts[filled + 1] - 1] = self.hashes[self.starts[filled]]
        return following


def _different(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct pairs of different clips."""
    keys = np.minimum(one, other) << 32 | np.maximum(one, other)
    pairs = np.unique(keys[one != other])
    return pairs >> 32, pairs & 0xFFFFFFFF

"""Copies of a clip: re-encoded, scaled, trimmed, recoloured."""

from collections.abc import Iterator
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
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import filter_group

MAX_CLIPS_PER_HASH = 16  # clips with one and the same frame that are each compared with all others of them
PAIRS_AT_ONCE = 16 * 1024
FRAMES_AT_ONCE = 4 * 1024  # pairs of frames, each of which may stand for 16 x 16 pairs of clips


@dataclass(frozen=True)
class Duplicates(Deduplicator):
    """Copies by perceptual hash: clips that have most of their sampled frames in common.

    Two clips are copies when `min_share` of the frames of the one with fewer frames have a counterpart in the other,
    wherever it stands there: so a trimmed copy, or an excerpt, is a copy too. Shots of one unmoving scene count as
    copies of each other. All clips with a frame in common are compared; only where more than 16 clips have exactly
    the same frame, such as a logo, each is compared by it with its 16 neighbours in the order of their other frames.
    """

    max_distance: Annotated[
        int, "bits of 64 in which the hashes of two frames may differ; above 7 slow", Interval(ge=0, le=MAX_DISTANCE)
    ] = 7
    min_share: Annotated[
        float, "share of the frames of the clip with fewer frames that must match", Interval(gt=0, le=1)
    ] = 0.6

    by: ClassVar[str] = "hash"
    source_filter: ClassVar[str] = "perceptual_hash"
    column: ClassVar[str] = "hashes"
    origin: ClassVar[str] = "multi-index hashing, Norouzi et al. 2012 (CVPR)"

    def find(self, corpus: Corpus, clips: RankedClips) -> DuplicateAssignments:
        """See `Finder.find`. The similarity is 1 less the share of bits in which matching frames differ."""
        frames = FrameHashes.read(corpus, self, clips)
        groups = UnionFind(len(clips.ids))
        for left, right in frames.candidates(self.max_distance):
            for start in range(0, len(left), PAIRS_AT_ONCE):
                one, other = left[start : start + PAIRS_AT_ONCE], right[start : start + PAIRS_AT_ONCE]
                apart = groups.unlinked(one, other)
                one, other = one[apart], other[apart]
                alike = np.isfinite(self._similarities(frames, one, other))
                groups.link(one[alike], other[alike])
        return assign_representatives(
            groups, lambda clip, others: self._similarities(frames, np.full_like(others, clip), others)
        )

    def _similarities(self, frames: "FrameHashes", one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Of pairs of clips (int64 [n] each), float64 [n]; NaN where they are no copies."""
        found = np.full(len(one), np.nan)
        for place, pair in enumerate(zip(one.tolist(), other.tolist(), strict=True)):
            few, many = sorted((frames.of(clip) for clip in pair), key=len)
            bits = distances(few[:, None], many[None, :])
            nearest = [bits.min(axis=axis) for axis in ((0, 1) if len(few) == len(many) else (1,))]
            if all((least <= self.max_distance).mean() >= self.min_share for least in nearest):
                matching = np.concatenate(nearest)
                found[place] = 1 - matching[matching <= self.max_distance].mean() / 64
        return found


class FrameHashes:
    """The hashes of all clips: those of clip n are `hashes[starts[n]:starts[n + 1]]`."""

    def __init__(self, hashes: np.ndarray, starts: np.ndarray) -> None:
        self.hashes, self.starts = hashes, starts  # uint64 [F], int64 [N + 1]

    @classmethod
    def read(cls, corpus: Corpus, finder: Deduplicator, clips: RankedClips) -> "FrameHashes":
        """From the filter's column group, in order of rank."""
        columns = {"clip_id": pads.field("clip_id"), "hashes": pads.field(finder.source_filter, finder.column)}
        table = corpus.table(filter_group(finder.source_filter), columns)
        places = pc.index_in(clips.ids, value_set=table["clip_id"].combine_chunks())
        lists = table["hashes"].combine_chunks().take(places.filter(pa.array(clips.known)))
        counts = np.zeros(len(clips.ids), np.int64)
        counts[clips.known] = pc.list_value_length(lists).to_numpy()
        return cls(lists.flatten().to_numpy().view(np.uint64), np.concatenate([[0], np.cumsum(counts)]))

    def of(self, clip: int) -> np.ndarray:
        """The hashes of one clip, uint64 [n]."""
        return self.hashes[self.starts[clip] : self.starts[clip + 1]]

    def candidates(self, max_distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of clips (int64 [n], int64 [n]) with at least one frame in common; some come repeatedly."""
        owners = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        order = np.lexsort((owners, self._next_hashes(), self.hashes))  # copies of one clip stand side by side
        owners = owners[order]
        values, begins, counts = np.unique(self.hashes[order], return_index=True, return_counts=True)
        for step in range(1, min(MAX_CLIPS_PER_HASH, counts.max(initial=1) - 1) + 1):  # the same frame
            same = np.flatnonzero(self.hashes[order[:-step]] == self.hashes[order[step:]])
            yield _different(owners[same], owners[same + step])
        counts = np.minimum(counts, MAX_CLIPS_PER_HASH)
        for near in near_pairs(values, max_distance):  # frames that are nearly the same
            for start in range(0, len(near[0]), FRAMES_AT_ONCE):
                left, right = (values_of[start : start + FRAMES_AT_ONCE] for values_of in near)
                sizes = counts[left] * counts[right]
                pair = np.repeat(np.arange(len(left)), sizes)
                within = np.arange(len(pair)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
                down, across = np.divmod(within, counts[right][pair])
                yield _different(owners[begins[left][pair] + down], owners[begins[right][pair] + across])

    def _next_hashes(self) -> np.ndarray:
        """For each frame the hash of its clip's next frame, of the last one that of the first; uint64 [F]."""
        following = np.roll(self.hashes, -1)
        filled = np.flatnonzero(np.diff(self.starts))
        following[self.starts[filled + 1] - 1] = self.hashes[self.starts[filled]]
        return following


def _different(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of two clips, each once."""
    keys = np.minimum(one, other) << 32 | np.maximum(one, other)
    pairs = np.unique(keys[one != other])
    return pairs >> 32, pairs & 0xFFFFFFFF

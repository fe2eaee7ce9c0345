"""From pairs of similar clips to clusters around representatives. Clips are numbered by rank: 0 is the best."""

from collections.abc import Callable

import numpy as np

from openuni.dedup.deduplicator import DuplicateAssignments

Compare = Callable[
    [int, np.ndarray], np.ndarray
]  # one clip and others -> similarities; NaN for clips that are not duplicates


class UnionFind:
    """Sets of clips that are linked by pairs, directly or transitively."""

    def __init__(self, count: int) -> None:
        self.root = np.arange(count, dtype=np.int64)

    def unlinked(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Whether each pair (int64 [n] each) is still unlinked, bool [n]."""
        self._flatten(np.concatenate([left, right]))
        different: np.ndarray = self.root[left] != self.root[right]
        return different

    def link(self, left: np.ndarray, right: np.ndarray) -> None:
        """Join the sets of each pair."""
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            first, second = self._find(one), self._find(other)
            self.root[max(first, second)] = min(first, second)

    def members(self) -> list[np.ndarray]:
        """The sets of more than one clip, each sorted by rank."""
        self._flatten(np.arange(len(self.root)))
        order = np.argsort(self.root, kind="stable")
        starts = np.flatnonzero(np.diff(self.root[order], prepend=-1))
        return [part for part in np.split(order, starts[1:]) if len(part) > 1]

    def _find(self, clip: int) -> int:
        while self.root[clip] != clip:
            self.root[clip] = self.root[self.root[clip]]
            clip = int(self.root[clip])
        return clip

    def _flatten(self, clips: np.ndarray) -> None:
        roots = self.root[clips]
        while not np.array_equal(above := self.root[roots], roots):
            roots = above
        self.root[clips] = roots


def assign_representatives(groups: UnionFind, compare: Compare) -> DuplicateAssignments:
    """Choose the representative of each clip.

    Within a set, clips are visited by rank: a clip that is similar to earlier representatives joins the most similar
    one; any other becomes a representative. Every duplicate is thus itself similar to its representative: chains of
    small differences, which link much of a large corpus, do not remove clips that resemble no remaining clip.
    """
    count = len(groups.root)
    representative = np.arange(count, dtype=np.int64)
    similarity = np.full(count, np.nan)
    for members in groups.members():
        best = np.full(len(members), -np.inf)
        for place, clip in enumerate(members):
            if representative[clip] != clip:
                continue
            later = members[place + 1 :]
            found = compare(int(clip), later)
            # a duplicate never becomes a representative again, but may move to a more similar one
            better = found > best[place + 1 :]
            representative[later[better]] = clip
            similarity[later[better]] = found[better]
            best[place + 1 :][better] = found[better]
    return DuplicateAssignments(representative, similarity)

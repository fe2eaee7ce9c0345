"""From pairs of alike clips to clusters around those that are kept. Clips are numbered by rank: 0 is the best."""

from collections.abc import Callable

import numpy as np

from openuni.dedup.deduplicator import DuplicateAssignments

Compare = Callable[[int, np.ndarray], np.ndarray]  # one clip and others -> similarities; NaN where they are not alike


class UnionFind:
    """Sets of clips that are linked by pairs, directly or through others (union-find)."""

    def __init__(self, count: int) -> None:
        self.root = np.arange(count, dtype=np.int64)

    def unlinked(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Which pairs (int64 [n] each) are not linked yet, bool [n]."""
        self._flatten(np.concatenate([left, right]))
        different: np.ndarray = self.root[left] != self.root[right]
        return different

    def link(self, left: np.ndarray, right: np.ndarray) -> None:
        """Join the sets of each pair."""
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            first, second = self._find(one), self._find(other)
            self.root[max(first, second)] = min(first, second)

    def members(self) -> list[np.ndarray]:
        """The sets of more than one clip, each in order of rank."""
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


def assign_representatives(groups: UnionFind, alike: Compare) -> DuplicateAssignments:
    """Who represents whom.

    Within a set, clips are taken by rank: one that is like a clip kept before it joins the most similar such clip;
    any other is kept. So every clip that is not kept is itself like the one that is kept in its place: no chain of
    small differences, which links much of a large corpus, removes clips that resemble nothing that stays.
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
            found = alike(int(clip), later)
            # joining one that is kept is final, joining the most similar of those is not
            better = found > best[place + 1 :]
            representative[later[better]] = clip
            similarity[later[better]] = found[better]
            best[place + 1 :][better] = found[better]
    return DuplicateAssignments(representative, similarity)

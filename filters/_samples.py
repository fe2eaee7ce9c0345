"""Frame sampling for filters."""

import numpy as np

from openuni.manifests.contracts.operator import sample_evenly


def sample_pairs(times_s: np.ndarray, pairs_per_s: float, max_pairs: int) -> np.ndarray:
    """Indices of pairs of adjacent frames: entries 2k and 2k + 1 are one pair. For a clip of one frame, that frame.

    `times_s`: float64 [T], increasing. Returns int64 [n], increasing. Pairs do not share frames (a pair that would
    overlap the previous one starts a frame later), so pairs are determined by position. Deriving them from time steps
    would fail for variable frame rates.
    """
    count = len(times_s)
    if count < 2:
        return np.arange(count, dtype=np.int64)
    starts: list[int] = []
    for wanted in _instants(times_s, pairs_per_s, max_pairs):
        start = max(int(wanted), starts[-1] + 2) if starts else int(wanted)
        if start <= count - 2:
            starts.append(start)
    first = np.array(starts, dtype=np.int64)
    return np.stack([first, first + 1], axis=1).reshape(-1)


def at_most(indices: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the indices (int64 [n], increasing), evenly spaced."""
    if len(indices) <= count:
        return indices
    middles = ((np.arange(count) + 0.5) / count * len(indices)).astype(np.int64)
    return np.asarray(indices[middles])


def _instants(times_s: np.ndarray, pairs_per_s: float, max_pairs: int) -> np.ndarray:
    """First frames of the pairs before overlaps are resolved, int64 [n], increasing, at most `max_pairs`."""
    wanted = sample_evenly(times_s, pairs_per_s)
    if len(wanted) <= max_pairs:
        return wanted
    # centres of `max_pairs` equal intervals: a single pair is in the middle of the clip
    duration_s = times_s[-1] - times_s[0]
    middles = times_s[0] + (np.arange(max_pairs) + 0.5) / max_pairs * duration_s
    return np.unique(np.clip(np.searchsorted(times_s, middles), 0, len(times_s) - 2)).astype(np.int64)

"""Which frames a filter measures when it cannot afford all."""

import numpy as np

from openuni.manifests.contracts.operator import sample_evenly


def sample_pairs(times_s: np.ndarray, pairs_per_s: float, max_pairs: int) -> np.ndarray:
    """Indices of pairs of adjacent frames: entries 2k and 2k + 1 are one pair. One frame gives that frame.

    `times_s`: float64 [T], increasing. Returns int64 [n], increasing. No frame is in two pairs (a pair that would
    overlap the one before starts a frame later), so the pairing is known by position alone. Guessing pairs from time
    steps would fail on a variable frame rate.
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
    """`count` of the indices (int64 [n], increasing), spread over all of them; all where they are no more."""
    if len(indices) <= count:
        return indices
    middles = ((np.arange(count) + 0.5) / count * len(indices)).astype(np.int64)
    return np.asarray(indices[middles])


def _instants(times_s: np.ndarray, pairs_per_s: float, max_pairs: int) -> np.ndarray:
    """Frames nearest to the wanted instants, int64 [n], increasing, at most `max_pairs`."""
    wanted = sample_evenly(times_s, pairs_per_s)
    if len(wanted) <= max_pairs:
        return wanted
    # the middles of `max_pairs` equal parts, so that one pair alone lies in the middle of the clip
    duration_s = times_s[-1] - times_s[0]
    middles = times_s[0] + (np.arange(max_pairs) + 0.5) / max_pairs * duration_s
    return np.unique(np.clip(np.searchsorted(times_s, middles), 0, len(times_s) - 2)).astype(np.int64)

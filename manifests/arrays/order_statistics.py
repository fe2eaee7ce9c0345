"""Exact order statistics of values that come in parts, in bounded memory."""

from collections.abc import Callable, Iterable

import numpy as np

HALF = 16  # bits of a float32 that one pass decides


def value_at_rank(parts: Callable[[], Iterable[np.ndarray]], rank: int) -> float:
    """The value at `rank` (0: the smallest) of all values in increasing order, as a sort of them all gives it.

    `parts`: a function that returns the values in parts, float32 of any shape, finite and not negative; it is called
    twice. The bits of such floats, read as whole numbers, are in the order of the values. The first pass counts their
    upper halves, the second the lower halves of those in the bucket that holds the rank.
    """
    upper = np.zeros(1 << HALF, np.int64)
    for part in parts():
        upper += np.bincount(_bits(part) >> HALF, minlength=len(upper))
    bucket = int(np.searchsorted(np.cumsum(upper), rank, side="right"))
    rank -= int(upper[:bucket].sum())
    lower = np.zeros(1 << HALF, np.int64)
    for part in parts():
        bits = _bits(part)
        inside = bits[bits >> HALF == bucket]
        lower += np.bincount(inside & ((1 << HALF) - 1), minlength=len(lower))
    place = int(np.searchsorted(np.cumsum(lower), rank, side="right"))
    return float(np.array([bucket << HALF | place], np.uint32).view(np.float32)[0])


def _bits(values: np.ndarray) -> np.ndarray:
    """uint32 [n] of float32 values; -0 counts as 0."""
    return np.ascontiguousarray(values, np.float32).ravel().view(np.uint32) & np.uint32(0x7FFFFFFF)

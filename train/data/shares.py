"""Turns of streams in proportion to their weights, as a pure function of the turn: exact, and without state."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from math import lcm

import numpy as np

from openuni.training.randomness import permuted


def integer_shares(parts: Sequence[tuple[float, int, int]]) -> list[int]:
    """Integers in proportion to weight * part / whole for each `(weight, part, whole)`, without rounding.

    Weights count as the decimal numbers that they are written as: 0.1 is 1/10.
    """
    exact = [Fraction(str(weight)) * part / whole for weight, part, whole in parts]
    scale = lcm(*(share.denominator for share in exact))
    return [int(share * scale) for share in exact]


def dealt(weights: Sequence[int], size: int, block: int, key: int) -> tuple[np.ndarray, np.ndarray]:
    """Deal the turns of block number `block`, of `size` turns, among streams -> two int64 [size].

    The stream of each turn, and the number of turns that the stream had before. `weights`: above 0. `key`: of the order
    within the block.
    """
    before, after = (_turns_after(weights, turns, size) for turns in (block * size, (block + 1) * size))
    counts = np.subtract(after, before)
    # turns of the same stream stand together here: the nth of a stream is its place after the stream's first
    streams = np.repeat(np.arange(len(weights)), counts)[permuted(np.arange(size), size, key)]
    earlier = np.empty(size, np.int64)
    for stream in np.flatnonzero(counts):
        earlier[streams == stream] = before[stream] + np.arange(counts[stream])
    return streams, earlier


def _turns_after(weights: Sequence[int], turns: int, size: int) -> list[int]:
    """Turns of each stream among the first `turns`, close to its share. They sum to `turns` and never decrease."""
    total = sum(weights)
    if min(weights) * size >= total:  # every stream has a turn in every block, so rounded sums never decrease
        edges = [edge * turns // total for edge in accumulate(weights, initial=0)]
        return [right - left for left, right in pairwise(edges)]
    if len(weights) == 1:
        return [turns]
    # a rare stream's turn would move to a later block with the rounding of the others: split in two, again and again
    half = len(weights) // 2
    first = sum(weights[:half]) * turns // total
    return _turns_after(weights[:half], first, 0) + _turns_after(weights[half:], turns - first, 0)

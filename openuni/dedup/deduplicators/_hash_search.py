"""Exact search for pairs of 64-bit hashes within a Hamming distance, in memory independent of the number of pairs.

Multi-index hashing (Norouzi et al. 2012): hashes that differ in at most d bits differ in at most d // 4 of the 16 bits
of at least one of their four parts. The hashes are therefore sorted by each part in turn, and compared where that part
is close enough.
"""

from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np

PARTS, PART_BITS = 4, 16
MAX_DISTANCE = 2 * PARTS + PARTS - 1  # parts may differ in up to two bits
BATCH_COMPARISONS = 4 * 1024**2
BATCH_PAIRS = 512 * 1024
SPREAD_BLOCK = 256 * 1024


def near_pairs(
    hashes: np.ndarray, max_distance: int, progress: Callable[[float], None] = lambda share: None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions (int64 [n], int64 [n]) of all pairs that differ in 1 to `max_distance` bits; pairs may be repeated.

    `hashes`: uint64 [N], distinct. `max_distance`: 0 to 11; the work grows with `max_distance // 4`. `progress`: called
    with the share of the hashes compared, 0..1.
    """
    parts = _spread(hashes)
    flips = _flips(max_distance // PARTS)
    pending: list[tuple[np.ndarray, np.ndarray]] = []
    count = 0
    for part in range(PARTS):
        order = np.argsort(parts[:, part], kind="stable")
        for left, right in _of_part(hashes[order], parts[order, part], flips, max_distance):
            pending.append((order[left], order[right]))
            count += len(left)
            progress((part + float(left[-1]) / len(hashes)) / PARTS)  # in the order of sorting
            if count >= BATCH_PAIRS:
                yield _joined(pending)
                pending, count = [], 0
    if pending:
        yield _joined(pending)


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Hamming distances of uint64 arrays that broadcast, uint8."""
    counted: np.ndarray = np.bitwise_count(one ^ other)
    return counted


def _of_part(
    hashes: np.ndarray, keys: np.ndarray, flips: np.ndarray, max_distance: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Near pairs (positions in the sorted `hashes`) whose 16-bit `keys` differ by one of the `flips`."""
    ends = np.searchsorted(keys, np.arange(2**PART_BITS + 1))
    for key in np.unique(keys).astype(np.int64):
        begin, end = ends[key], ends[key + 1]
        others = key ^ flips
        others = others[(others > key) & (ends[others] < ends[others + 1])]  # each pair of keys once
        places = np.concatenate([np.arange(begin, end), *(np.arange(ends[k], ends[k + 1]) for k in others)])
        if len(places) < 2:
            continue
        candidates = hashes[places]
        step = max(1, BATCH_COMPARISONS // len(places))
        for start in range(begin, end, step):
            rows = np.arange(start, min(start + step, end))
            near = distances(hashes[rows][:, None], candidates[None, :]) <= max_distance
            left, right = np.nonzero(near)
            left, right = rows[left], places[right]
            once = left < right  # within one key, both orders are compared
            if once.any():
                yield left[once], right[once]


def _spread(hashes: np.ndarray) -> np.ndarray:
    """uint64 [N] -> uint16 [N, 4]: bits 0, 4, 8, ... form the first part, and so on.

    Neighbouring bits are frequencies of one row and are correlated; interleaved, they fill the parts evenly.
    """
    parts = np.empty((len(hashes), PARTS), np.uint16)
    for start in range(0, len(hashes), SPREAD_BLOCK):
        block = np.ascontiguousarray(hashes[start : start + SPREAD_BLOCK])
        bits = np.unpackbits(block.view(np.uint8).reshape(-1, 8), axis=1)
        mixed = bits.reshape(-1, PART_BITS, PARTS).transpose(0, 2, 1)
        packed = np.ascontiguousarray(np.packbits(mixed, axis=2))
        parts[start : start + SPREAD_BLOCK] = packed.view(np.uint16)[:, :, 0]
    return parts


def _flips(most: int) -> np.ndarray:
    """All 16-bit masks with 1 to `most` bits set, int64."""
    chosen = (bits for count in range(1, most + 1) for bits in combinations(range(PART_BITS), count))
    return np.array([sum(1 << bit for bit in bits) for bits in chosen], np.int64)


def _joined(pending: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([left for left, _ in pending]), np.concatenate([right for _, right in pending])

"""Near pairs of 64-bit hashes, against the comparison of all with all."""

import numpy as np
import pytest

from openuni.dedup.deduplicators import _hash_search
from openuni.dedup.deduplicators._hash_search import distances, near_pairs


def planted(count, seed=0):
    """Random hashes, a third of them near another: 1 to 12 bits away."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**64, count, dtype=np.uint64)
    masks = np.array(
        [sum(1 << int(bit) for bit in rng.choice(64, rng.integers(1, 13), replace=False)) for _ in range(count // 2)],
        np.uint64,
    )
    return np.unique(np.concatenate([base, base[: count // 2] ^ masks]))


def pairs_of(hashes, max_distance):
    return {pair for left, right in near_pairs(hashes, max_distance) for pair in zip(left, right, strict=True)}


@pytest.mark.parametrize("max_distance", [0, 1, 3, 4, 7, 8, 11])
def test_all_near_pairs_are_found_and_no_other(max_distance):
    hashes = planted(600)
    near = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= max_distance
    wanted = {(int(one), int(other)) for one, other in zip(*np.nonzero(near), strict=True) if one < other}
    found = {(min(one, other), max(one, other)) for one, other in pairs_of(hashes, max_distance)}
    assert found == wanted
    assert bool(wanted) == (max_distance > 0)


def test_batches_change_nothing(monkeypatch):
    hashes = planted(300)
    whole = pairs_of(hashes, 7)
    monkeypatch.setattr(_hash_search, "BATCH_COMPARISONS", 10)
    monkeypatch.setattr(_hash_search, "BATCH_PAIRS", 3)
    monkeypatch.setattr(_hash_search, "SPREAD_BLOCK", 7)
    assert pairs_of(hashes, 7) == whole
    assert len(whole) > 50
    assert len(list(near_pairs(hashes, 7))) > 10


def test_hashes_that_agree_in_one_part_are_compared_too():
    hashes = np.array([0, 0x1111111111111111, 0x1], np.uint64)  # one part of four equal, another, one bit
    assert distances(hashes[:1], hashes).tolist() == [0, 16, 1]
    assert pairs_of(hashes, 7) == {(0, 2)}


def test_none_and_one():
    assert list(near_pairs(np.array([], np.uint64), 7)) == []
    assert list(near_pairs(np.array([5], np.uint64), 7)) == []

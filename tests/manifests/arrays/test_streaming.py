"""Statistics of values that come in parts equal those of all values, to the bit."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openuni.manifests.arrays.order_statistics import value_at_rank
from openuni.manifests.arrays.streaming_mean import StreamingMean

VALUES = st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=30)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values=VALUES, parts=st.integers(1, 5), share=st.floats(0, 1))
def test_a_value_at_a_rank_is_that_of_the_sorted_values(values, parts, share):
    values = np.array(values, np.float32)
    rank = math.floor(share * (len(values) - 1))
    assert value_at_rank(lambda: np.array_split(values, parts), rank) == np.sort(values)[rank]


def test_ranks_of_many_values_with_ties():
    values = np.random.default_rng(0).integers(0, 50, (7, 40, 50)).astype(np.float32) / 3
    in_order = np.sort(values, axis=None)
    for rank in (0, 1, 7000, values.size - 2, values.size - 1):
        assert value_at_rank(lambda: iter(values), rank) == in_order[rank]


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 37, 53), (11, 96, 128), (5, 100, 333, 3), (9, 1, 9000)])
@pytest.mark.parametrize("count", [1, 2, 3, 11])
def test_a_mean_of_parts_is_that_of_numpy(shape, count):
    values = np.random.default_rng(0).random(shape, np.float32) * 7
    mean = StreamingMean()
    for start in range(0, len(values), count):
        mean.add(values[start : start + count])
    assert mean.mean() == float(values.mean(dtype=np.float64))


def test_no_values_have_no_mean():
    assert StreamingMean().mean() is None

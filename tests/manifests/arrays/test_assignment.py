"""The best matching, held against all others."""

from itertools import permutations

import numpy as np
import pytest

from openuni.manifests.arrays.assignment import linear_assignment


@pytest.mark.parametrize("shape", [(3, 3), (3, 5), (5, 3), (1, 4), (4, 1)])
def test_assignment_is_the_best_of_all(shape):
    rng = np.random.default_rng(0)
    for trial in range(40):
        affinity = rng.random(shape) if trial % 2 else np.round(rng.random(shape) * 3) / 3  # with ties
        least = 0.4
        gain = np.where(affinity >= least, affinity, 0)
        tall = gain if shape[0] <= shape[1] else gain.T
        best = max(
            sum(tall[row, column] for row, column in enumerate(columns))
            for columns in permutations(range(tall.shape[1]), tall.shape[0])
        )
        pairs = linear_assignment(affinity, least)
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
        assert all(affinity[pair] >= least for pair in pairs)
        assert sum(gain[pair] for pair in pairs) == pytest.approx(best)


def test_assignment_is_not_greedy_and_takes_nothing_below_the_least():
    affinity = np.array([[0.9, 0.8], [0.85, 0.1]])
    assert linear_assignment(affinity, 0.5) == [(0, 1), (1, 0)]  # 1.65, where the best pair first gives 0.9
    assert linear_assignment(affinity, 0.86) == [(0, 0)]
    assert linear_assignment(np.zeros((0, 3)), 0.5) == linear_assignment(np.zeros((3, 0)), 0.5) == []

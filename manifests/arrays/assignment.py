"""Pairs of the one best matching between two sets, such as instances of two frames."""

import numpy as np


def linear_assignment(affinity: np.ndarray, min_affinity: float) -> list[tuple[int, int]]:
    """Row and column of the pairs whose affinities (float [N, M], >= 0) sum to the most; none below `min_affinity`."""
    from scipy.optimize import linear_sum_assignment

    worth = np.where(affinity >= min_affinity, affinity, 0.0)  # a pair below is as good as none
    pairs = zip(*linear_sum_assignment(worth, maximize=True), strict=True)
    return sorted((int(row), int(column)) for row, column in pairs if affinity[row, column] >= min_affinity)

"""Pairs of the one best matching between two sets, such as instances of two frames."""

import numpy as np


def assigned(affinity: np.ndarray, least: float) -> list[tuple[int, int]]:
    """Row and column of the pairs whose affinities (float [N, M], >= 0) sum to the most; none below `least`."""
    from scipy.optimize import linear_sum_assignment

    worth = np.where(affinity >= least, affinity, 0.0)  # a pair below is as good as none
    pairs = zip(*linear_sum_assignment(worth, maximize=True), strict=True)
    return sorted((int(row), int(column)) for row, column in pairs if affinity[row, column] >= least)

"""Optimal one-to-one matching between two sets, such as the instances of two frames."""

import numpy as np


def linear_assignment(affinity: np.ndarray, min_affinity: float) -> list[tuple[int, int]]:
    """(row, column) pairs of the matching with the maximum total affinity, sorted by row.

    `affinity`: float [N, M], >= 0. Pairs below `min_affinity` are left unmatched.
    """
    from scipy.optimize import linear_sum_assignment

    gain = np.where(affinity >= min_affinity, affinity, 0.0)  # a pair below the threshold counts as unmatched
    pairs = zip(*linear_sum_assignment(gain, maximize=True), strict=True)
    return sorted((int(row), int(column)) for row, column in pairs if affinity[row, column] >= min_affinity)

"""Runs of frames."""

import numpy as np


def true_runs(marks: np.ndarray) -> list[tuple[int, int]]:
    """Half-open ranges of frames for which `marks` (bool [T]) is true, in order."""
    steps = np.diff(np.concatenate([[False], marks, [False]]).astype(np.int8))
    return list(zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True))

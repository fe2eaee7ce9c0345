"""Depth of a long clip from a network with a window of 32 frames, stitched as in Video-Depth-Anything.

Each window starts 22 frames after the previous one and repeats ten frames of its input: the first (so every later
window contains the clip's first frame), the 13th, and the last eight. The first two align scale and shift with the
previous window. The other eight overlap with it and are blended.
"""

from collections.abc import Iterable, Iterator

import numpy as np

WINDOW = 32  # frames per window
STEP = 22  # new frames per window
# positions in a window that become the first ten frames of the next window
REFERENCE_SLOTS = np.array([0, 12, *range(24, 32)])
ALIGNED = 2  # number of reference frames used for alignment; the others are blended


def windows_of(count: int) -> Iterator[np.ndarray]:
    """Frame indices int64 [32] of each window of a clip of `count` frames, padded with the last frame.

    The first window has 32 consecutive frames, each later one ten reference frames and 22 consecutive ones.
    """
    indices = np.minimum(np.arange(WINDOW), count - 1)
    for start in range(0, count, STEP):
        if start:
            new = np.arange(start + len(REFERENCE_SLOTS), start + WINDOW)
            indices = np.concatenate([indices[REFERENCE_SLOTS], np.minimum(new, count - 1)])
        yield indices


def stitch_depth(windows: Iterable[np.ndarray], count: int, *, align: bool) -> np.ndarray:
    """Depth float32 [count, H, W], >= 0, of a clip of `count` frames.

    `windows`: depth of the frames of each of `windows_of(count)`, float32 [32, H, W], with its own scale and shift.
    `align`: map all windows to the first window's scale and shift; False for a metric network.
    """
    parts: list[np.ndarray] = []  # final frames
    known = tail = np.empty(0)
    for number, depth in enumerate(windows):
        if number == 0:
            first = depth[0]
            parts.append(depth[: REFERENCE_SLOTS[ALIGNED]])
        else:
            if align:
                scale, shift = scale_and_shift(depth[:ALIGNED], known)
                depth = depth * np.float32(scale) + np.float32(shift)
            depth = np.maximum(depth, 0)
            parts += [
                _blended(tail, depth[ALIGNED : len(REFERENCE_SLOTS)]),
                depth[len(REFERENCE_SLOTS) : REFERENCE_SLOTS[ALIGNED]],
            ]
        known, tail = np.stack([first, depth[REFERENCE_SLOTS[1]]]), depth[REFERENCE_SLOTS[ALIGNED] :]
    return np.maximum(np.concatenate([*parts, tail])[:count], 0)


def scale_and_shift(values: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Least-squares scale and shift from `values` to `wanted` (equal shapes, float64 arithmetic).

    If all values are equal, the scale is 1 and only the shift is fitted.
    """
    given, target = values.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    centred = given - given.mean()
    spread = float(centred @ centred)
    scale = float(centred @ target) / spread if spread > 0 else 1.0
    return scale, float(target.mean() - scale * given.mean())


def _blended(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Linear cross-fade between two arrays [8, H, W]."""
    share = np.linspace(0, 1, len(before), dtype=np.float32)[:, None, None]
    mixed: np.ndarray = before * (1 - share) + after * share
    return mixed

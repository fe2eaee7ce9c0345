"""Depth of a long clip from a network that sees 32 frames at once, as Video-Depth-Anything joins its windows.

Each window starts 22 frames after the one before it and is given ten frames of that one's input again: its first (so
that every window but the first holds the clip's first frame), its 13th, and its last eight. The first two say by which
scale and shift the new window's depth continues the old one; the eight are frames of both windows and are blended.
"""

from collections.abc import Callable, Iterator

import numpy as np

WINDOW = 32  # frames that the network sees at once
STEP = 22  # frames that each window adds
REFERENCE_SLOTS = np.array(
    [0, 12, *range(24, 32)]
)  # places in a window that the next one is given again, as its first ten
ALIGNED = 2  # of these, so many align; the others are blended


def windows_of(count: int) -> Iterator[np.ndarray]:
    """Frame numbers, int64 [32], that each window of a clip of `count` frames sees; the last frame fills up the tail.

    The first window has all frames in order, each later one ten old frames and 22 in order.
    """
    indices = np.minimum(np.arange(WINDOW), count - 1)
    for start in range(0, count, STEP):
        if start:
            new = np.arange(start + len(REFERENCE_SLOTS), start + WINDOW)
            indices = np.concatenate([indices[REFERENCE_SLOTS], np.minimum(new, count - 1)])
        yield indices


def stitch_depth(depth_of: Callable[[np.ndarray], np.ndarray], count: int, *, align: bool) -> np.ndarray:
    """Depth float32 [count, H, W], >= 0, of a clip of `count` frames.

    `depth_of`: frame numbers int64 [32] -> float32 [32, H, W], each window on a scale and shift of its own.
    `align`: bring them to the first window's; False for a network in metres, where they are the same already.
    """
    parts: list[np.ndarray] = []  # frames that no later window changes
    known = tail = np.empty(0)
    for number, indices in enumerate(windows_of(count)):
        depth = depth_of(indices)
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
    """Scale and shift that bring `values` nearest to `wanted` by least squares; equal shapes, float64 arithmetic.

    Values that are all the same have no scale: then it is 1, and only the shift is found.
    """
    given, target = values.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    centred = given - given.mean()
    spread = float(centred @ centred)
    scale = float(centred @ target) / spread if spread > 0 else 1.0
    return scale, float(target.mean() - scale * given.mean())


def _blended(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """[8, H, W] twice -> from all of the first to all of the second, linearly."""
    share = np.linspace(0, 1, len(before), dtype=np.float32)[:, None, None]
    mixed: np.ndarray = before * (1 - share) + after * share
    return mixed

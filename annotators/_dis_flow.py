"""OpenCV's DIS optical flow between frames of a clip, for the annotator `dis` and the guide flow."""

from collections.abc import Callable, Iterator

import numpy as np

from openuni.manifests.arrays.dense_inverse_search import dis_estimator

PAIRS_AT_A_TIME = 32  # more would take the memory of another clip: backward flow

# first frames int [m], second frames int [m] -> flow float32 [m, H, W, 2], pixels from first to second
PairFlow = Callable[[np.ndarray, np.ndarray], np.ndarray]


def dis_adjacent_flow(frames: np.ndarray, preset: str, both: bool) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Flow of the adjacent pairs of `frames`; see `AdjacentFlow`. `both`: also backward. Raises as `dis_pair_flow`."""
    pair_flow = dis_pair_flow(frames, preset)
    for start in range(0, len(frames) - 1, PAIRS_AT_A_TIME):
        first = np.arange(start, min(start + PAIRS_AT_A_TIME, len(frames) - 1))
        yield pair_flow(first, first + 1), pair_flow(first + 1, first) if both else None


def dis_pair_flow(frames: np.ndarray, preset: str) -> PairFlow:
    """A function that computes the optical flow between any two of `frames`, uint8 [T, H, W, 3] RGB, pair after pair.

    Pairs are not computed in threads of their own: for widths that are not multiples of the patch stride, an estimator
    keeps values of the pair before in its margins, so that the order of pairs is part of the result. OpenCV uses
    several threads within a pair. Raises `ClipError` for frames with a side below 8 px or both sides below 12 px.
    """
    import cv2

    height_px, width_px = frames.shape[1:3]
    estimator = dis_estimator(preset, height_px, width_px, "dis")
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    at_rest = np.zeros((height_px, width_px, 2), np.float32)  # initial flow

    def pair_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        flow = np.empty((len(first), height_px, width_px, 2), np.float32)
        for row, (one, other) in enumerate(zip(first, second, strict=True)):
            flow[row] = estimator.calc(grey[one], grey[other], at_rest.copy())
        return flow

    return pair_flow

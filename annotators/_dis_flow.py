"""OpenCV's DIS optical flow between frames of a clip, for the annotator `dis` and the guide flow."""

import numpy as np

from openuni.annotators._pairwise_flow import PairFlow
from openuni.manifests.arrays.dense_inverse_search import dis_estimator


def dis_pair_flow(frames: np.ndarray, preset: str) -> PairFlow:
    """A function that computes the optical flow between any two of `frames`, uint8 [T, H, W, 3] RGB.

    Raises `ClipError` for frames with a side below 8 px or both sides below 12 px.
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

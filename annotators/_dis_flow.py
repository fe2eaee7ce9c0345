"""OpenCV's DIS optical flow between frames of a clip, for the annotator `dis` and the guide flow."""

import numpy as np

from openuni.annotators._pairwise_flow import PairFlow

PRESETS = {"ultrafast": 0, "fast": 1, "medium": 2}  # OpenCV's numbers
MIN_SIDE_PX = 8  # one DIS patch


def dis_pair_flow(frames: np.ndarray, preset: str) -> PairFlow:
    """A function that computes the optical flow between any two of `frames`, uint8 [T, H, W, 3] RGB, sides >= 8 px."""
    import cv2

    height_px, width_px = frames.shape[1:3]
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    estimator = cv2.DISOpticalFlow.create(PRESETS[preset])
    at_rest = np.zeros((height_px, width_px, 2), np.float32)  # initial flow

    def pair_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        flow = np.empty((len(first), height_px, width_px, 2), np.float32)
        for row, (one, other) in enumerate(zip(first, second, strict=True)):
            flow[row] = estimator.calc(grey[one], grey[other], at_rest.copy())
        return flow

    return pair_flow

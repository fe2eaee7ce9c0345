"""Keypoints by a network with SimCC outputs (RTMPose, DWPose): cropping of the input, decoding of the output."""

from typing import NamedTuple

import numpy as np

from openuni.manifests.errors import OpenUniError

BOX_MARGIN = 1.25  # size of the crop relative to the person's box
MEAN = np.array([123.675, 116.28, 103.53])  # of 8-bit red, green and blue
STD = np.array([58.395, 57.12, 57.375])
BINS_PER_PX = 2  # SimCC bins per crop pixel
NORMALIZED = ((np.arange(256)[:, None] - MEAN) / STD).astype(
    np.float32
)  # of levels, per channel, which is not reordered
ALIGNED_PX = 0.5  # a crop has its origin at the centre of the first pixel, a `Skeleton` at its corner


class CropWindow(NamedTuple):
    """Region of the frame that a crop covers: centre and extent (x, y) in pixels; the first pixel's centre is 0, 0."""

    middle: np.ndarray
    extent: np.ndarray


def window_of(box: np.ndarray, height_px: int, width_px: int) -> CropWindow:
    """Window around a box (left, top, right, bottom), enlarged 1.25 times, then extended to the crop's aspect ratio."""
    box = box.astype(np.float64)
    across, down = (box[2:] - box[:2]) * BOX_MARGIN
    shape = width_px / height_px
    extent = (across, across / shape) if across > down * shape else (down * shape, down)
    return CropWindow((box[:2] + box[2:]) * 0.5, np.array(extent))


def crop(frame: np.ndarray, window: CropWindow, height_px: int, width_px: int) -> np.ndarray:
    """Crop a window, bilinear, black outside the frame: uint8 [H, W, 3] -> uint8 [height, width, 3]."""
    import cv2

    there = _corner(window.middle, window.extent[0])
    here = _corner(np.array([width_px * 0.5, height_px * 0.5]), width_px)
    transform = cv2.getAffineTransform(there, here)
    shown: np.ndarray = cv2.warpAffine(frame, transform, (width_px, height_px), flags=cv2.INTER_LINEAR)
    return shown


def _corner(middle: np.ndarray, width: float) -> np.ndarray:
    """Three points, float32 [3, 2], that define the affine transform: centre, half a width above, and left of that.

    The order of roundings follows the authors' code, because the crop's pixels depend on it.
    """
    centre, above = (np.array(place, np.float32) for place in (middle, middle - (0, width * 0.5)))
    down = centre - above
    points: np.ndarray = np.stack([centre, above, above + np.array([-down[1], down[0]])])
    return points


def peaks(across: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Most likely position of each point in bins, float32 [K, 2], and its likelihood, float32 [K].

    `across`, `down`: float32 [K, bins], one row per point. The likelihood is the minimum of the two maxima. Points with
    a likelihood of 0 or less are absent and have the position -1, -1. Raises `OpenUniError` for other shapes.
    """
    if across.ndim != 2 or down.ndim != 2 or len(across) != len(down):
        raise OpenUniError(
            f"the pose network returned {across.shape} and {down.shape}; expected two SimCC outputs [points, bins]. "
            "Use a network with SimCC outputs."
        )
    places = np.stack([across.argmax(axis=1), down.argmax(axis=1)], axis=1).astype(np.float32)
    likely: np.ndarray = np.minimum(across.max(axis=1), down.max(axis=1))
    places[likely <= 0] = -1
    return places, likely


def key_points(across: np.ndarray, down: np.ndarray, window: CropWindow, height_px: int, width_px: int) -> np.ndarray:
    """Keypoints in the frame, float32 [K, 3] = x_px, y_px, confidence 0..1; pixel centres at +0.5; zeros if absent.

    `across`, `down`: the network's outputs for one crop of `height_px` x `width_px`.
    """
    places, likely = peaks(across, down)
    share = places / BINS_PER_PX / (width_px, height_px)
    found = share * window.extent + window.middle - window.extent / 2 + ALIGNED_PX
    confidence = np.clip(np.nan_to_num(likely), 0, 1)[:, None]
    points: np.ndarray = np.where(confidence > 0, np.concatenate([found, confidence], axis=1), 0).astype(np.float32)
    return points

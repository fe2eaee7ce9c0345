"""Key points by a network with SimCC outputs (RTMPose, DWPose): the crop before it, the decoding after it."""

from typing import NamedTuple

import numpy as np

from openuni.manifests.errors import OpenUniError

BOX_MARGIN = 1.25  # the crop is so much larger than the person's box
MEAN = np.array([123.675, 116.28, 103.53])  # of the levels of red, green and blue
STD = np.array([58.395, 57.12, 57.375])
BINS_PER_PX = 2  # the outputs count in half pixels of the crop
NORMALISED = ((np.arange(256)[:, None] - MEAN) / STD).astype(np.float32)  # [level, channel]
ALIGNED_PX = 0.5  # crops count from the centre of the corner's pixel, a `Skeleton` from its corner


class CropWindow(NamedTuple):
    """The part of the frame that a crop shows: middle x, y and extent x, y in pixels, the corner's pixel at 0, 0."""

    middle: np.ndarray
    extent: np.ndarray


def window_of(box: np.ndarray, height_px: int, width_px: int) -> CropWindow:
    """Around the box (left top right bottom), 1.25 times as large, then widened to the crop's shape."""
    box = box.astype(np.float64)
    across, down = (box[2:] - box[:2]) * BOX_MARGIN
    shape = width_px / height_px
    extent = (across, across / shape) if across > down * shape else (down * shape, down)
    return CropWindow((box[:2] + box[2:]) * 0.5, np.array(extent))


def crop(frame: np.ndarray, window: CropWindow, height_px: int, width_px: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [height, width, 3]: the window, bilinear; black where it leaves the frame."""
    import cv2

    there = _corner(window.middle, window.extent[0])
    here = _corner(np.array([width_px * 0.5, height_px * 0.5]), width_px)
    transform = cv2.getAffineTransform(there, here)
    shown: np.ndarray = cv2.warpAffine(frame, transform, (width_px, height_px), flags=cv2.INTER_LINEAR)
    return shown


def _corner(middle: np.ndarray, width: float) -> np.ndarray:
    """Three points that fix the transform: the middle, half a width above it, and as far to the left of that.

    Float32 [3, 2], and rounded in this order, as the authors do it: the crop's pixels depend on it.
    """
    centre, above = (np.array(place, np.float32) for place in (middle, middle - (0, width * 0.5)))
    down = centre - above
    points: np.ndarray = np.stack([centre, above, above + np.array([-down[1], down[0]])])
    return points


def as_input(picture: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] -> float32 [3, h, w], normalised channel by channel in the order that they have."""
    return np.stack([NORMALISED[:, channel].take(picture[..., channel]) for channel in range(3)])


def peaks(across: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each point is likeliest, in bins, float32 [K, 2], and how likely it is there, float32 [K].

    `across`, `down`: float32 [K, bins], one row per point. The likelihood is the lesser of the two maxima; where it is
    0 or less, there is no such point: it lies at -1, -1.
    """
    if across.ndim != 2 or down.ndim != 2 or len(across) != len(down):
        raise OpenUniError(f"the pose network gave {across.shape} and {down.shape}; SimCC outputs are [points, bins]")
    places = np.stack([across.argmax(axis=1), down.argmax(axis=1)], axis=1).astype(np.float32)
    likely: np.ndarray = np.minimum(across.max(axis=1), down.max(axis=1))
    places[likely <= 0] = -1
    return places, likely


def key_points(across: np.ndarray, down: np.ndarray, window: CropWindow, height_px: int, width_px: int) -> np.ndarray:
    """float32 [K, 3] = x_px, y_px, confidence 0..1 in the frame, pixel centres at +0.5; zeros where there is none.

    `across`, `down`: the network's outputs for one crop of `height_px` x `width_px`.
    """
    places, likely = peaks(across, down)
    share = places / BINS_PER_PX / (width_px, height_px)
    found = share * window.extent + window.middle - window.extent / 2 + ALIGNED_PX
    confidence = np.clip(np.nan_to_num(likely), 0, 1)[:, None]
    points: np.ndarray = np.where(confidence > 0, np.concatenate([found, confidence], axis=1), 0).astype(np.float32)
    return points

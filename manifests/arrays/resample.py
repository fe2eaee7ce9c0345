"""Changing the size of arrays [T, H, W, C]: smoothly where values may be averaged, by nearest where they may not."""

import numpy as np


def resize_smooth(array: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """uint8 or float32 [T, H, W, C] at another size: pixel areas averaged when smaller, bilinear when larger.

    No value leaves the range of its image.
    """
    import cv2

    height, width = array.shape[1:3]
    if (height, width) == (height_px, width_px):
        return array
    way_down = cv2.INTER_AREA if height_px < height else cv2.INTER_LINEAR
    way_across = cv2.INTER_AREA if width_px < width else cv2.INTER_LINEAR
    out = np.empty((len(array), height_px, width_px, array.shape[3]), array.dtype)
    for target, image in zip(out, array, strict=True):
        if way_down == way_across:
            sized = cv2.resize(image, (width_px, height_px), interpolation=way_down)
        else:  # INTER_AREA averages only where it shrinks both sides, so each side gets its own pass
            sized = cv2.resize(image.astype(np.float32), (width, height_px), interpolation=way_down)
            sized = cv2.resize(sized, (width_px, height_px), interpolation=way_across)
            sized = np.rint(sized) if array.dtype == np.uint8 else sized
        if sized.dtype != np.uint8:
            sized = np.clip(sized, image.min(), image.max())  # OpenCV's average of ones may be 1 + 2^-23
        target[:] = sized.reshape(target.shape)  # OpenCV drops a single channel
    return out


def resize_nearest(array: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """Any dtype [T, H, W, C] at another size: each pixel takes the one under its centre, so no value is invented."""
    height, width = array.shape[1:3]
    rows = ((np.arange(height_px) + 0.5) * height / height_px).astype(np.int64)
    columns = ((np.arange(width_px) + 0.5) * width / width_px).astype(np.int64)
    return np.ascontiguousarray(array[:, rows][:, :, columns])

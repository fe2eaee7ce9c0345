"""Changing the size of arrays [T, H, W, C]: smoothly where values may be averaged, by nearest where they may not."""

import numpy as np


def resize_smooth(array: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """uint8 or float32 [T, H, W, C] at another size: pixel areas averaged when smaller, bilinear when larger."""
    import cv2

    height, width = array.shape[1:3]
    if (height, width) == (height_px, width_px):
        return array
    # INTER_AREA blends only on a side that shrinks, so each side gets its own rule.
    out = np.empty((len(array), height_px, width_px, array.shape[3]), array.dtype)
    for target, image in zip(out, array, strict=True):
        for size, shrinks in (
            ((image.shape[1], height_px), height_px < height),
            ((width_px, height_px), width_px < width),
        ):
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        target[:] = image.reshape(target.shape)  # OpenCV drops a single channel
    return out


def resize_nearest(array: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """Any dtype [T, H, W, C] at another size: each pixel takes the one under its centre, so no value is invented."""
    height, width = array.shape[1:3]
    rows = ((np.arange(height_px) + 0.5) * height / height_px).astype(np.int64)
    columns = ((np.arange(width_px) + 0.5) * width / width_px).astype(np.int64)
    return np.ascontiguousarray(array[:, rows][:, :, columns])

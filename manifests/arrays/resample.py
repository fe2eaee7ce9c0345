"""Resizing of [T, H, W, C] arrays: smooth for values that may be averaged, nearest-neighbour for all others."""

import numpy as np


def resize_smooth(array: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """Resize uint8 or float32 [T, H, W, C]: area averaging to shrink, bilinear interpolation to enlarge.

    Each axis uses its own method. Results stay within the value range of their image.
    """
    import cv2

    height, width = array.shape[1:3]
    if (height, width) == (height_px, width_px):
        return array
    row_method = cv2.INTER_AREA if height_px < height else cv2.INTER_LINEAR
    column_method = cv2.INTER_AREA if width_px < width else cv2.INTER_LINEAR
    out = np.empty((len(array), height_px, width_px, array.shape[3]), array.dtype)
    for target, image in zip(out, array, strict=True):
        if row_method == column_method:
            resized = cv2.resize(image, (width_px, height_px), interpolation=row_method)
        else:  # INTER_AREA averages only if both sides shrink, so each side gets its own pass
            resized = cv2.resize(image.astype(np.float32), (width, height_px), interpolation=row_method)
            resized = cv2.resize(resized, (width_px, height_px), interpolation=column_method)
            resized = np.rint(resized) if array.dtype == np.uint8 else resized
        if resized.dtype != np.uint8:
            resized = np.clip(resized, image.min(), image.max())  # OpenCV's average of ones can be 1 + 2^-23
        target[:] = resized.reshape(target.shape)  # OpenCV drops a single channel
    return out


def resize_nearest(array: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """Resize [T, H, W, C] of any dtype: each new pixel copies the pixel under its centre, so no new values appear."""
    height, width = array.shape[1:3]
    rows = ((np.arange(height_px) + 0.5) * height / height_px).astype(np.int64)
    columns = ((np.arange(width_px) + 0.5) * width / width_px).astype(np.int64)
    return np.ascontiguousarray(array[:, rows][:, :, columns])

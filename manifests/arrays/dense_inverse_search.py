"""OpenCV's DIS optical flow (dense inverse search), for frames of every shape."""

import math
from typing import TYPE_CHECKING

from openuni.manifests.errors import ClipError

if TYPE_CHECKING:
    from cv2 import DISOpticalFlow

PRESETS = {"ultrafast": 0, "fast": 1, "medium": 2}  # OpenCV's numbers for the DIS presets
PATCH_PX = 8
MIN_LONG_SIDE_PX = 12  # OpenCV rejects smaller frames


def fits_dis(height_px: int, width_px: int) -> bool:
    """Whether DIS can process frames of this size: one patch along both sides, 12 px along one."""
    return min(height_px, width_px) >= PATCH_PX and max(height_px, width_px) >= MIN_LONG_SIDE_PX


def dis_estimator(preset: str, height_px: int, width_px: int, name: str) -> "DISOpticalFlow":
    """A DIS estimator for frames of this size, to be used for no other size.

    For frames whose short side has less than one patch at the preset's finest pyramid level, OpenCV chooses the levels
    by the width alone. Low, wide frames then get levels that are lower than a patch, and OpenCV reads beyond its
    buffers: the process crashes or the flow is NaN. For these frames the finest level is lowered instead.

    Raises `ClipError`, which begins with `name`, for frames that DIS cannot process.
    """
    import cv2

    if not fits_dis(height_px, width_px):
        allowed = f"sides >= {PATCH_PX} px and one side >= {MIN_LONG_SIDE_PX} px"
        raise ClipError(f"{name}: frames must have {allowed}, got {width_px} x {height_px} (width x height)")
    estimator = cv2.DISOpticalFlow.create(PRESETS[preset])
    short_px, long_px = sorted((height_px, width_px))
    # OpenCV's formulas: levels that both sides allow, and the coarsest level chosen by the width alone
    deepest = min(int(math.log2(long_px / (4 * PATCH_PX)) + 0.5), int(math.log2(short_px // PATCH_PX)))
    by_width = max(0, math.floor(math.log2(2 * width_px / (5 * PATCH_PX))))
    if deepest < estimator.getFinestScale() and height_px >> by_width < PATCH_PX:
        estimator.setFinestScale(deepest)
    return estimator

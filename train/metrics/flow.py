"""Optical flow metrics: the end-point error."""

from typing import NamedTuple

import numpy as np

from openuni.manifests.errors import ClipError


class FlowErrors(NamedTuple):
    """Over the valid pixels of a clip."""

    epe_px: float  # mean length of the difference vector, pixels per frame at the flow's own size
    outlier_share: float  # pixels whose error is above 3 px and above 5 % of the true length (KITTI's Fl)


def flow_errors(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray | None = None) -> FlowErrors:
    """End-point error of a clip.

    `predicted`, `true`: float [T, H, W, 2], (right, down) in pixels per frame. `valid`: bool [T, H, W] or [T, H, W, 1],
    false where the true motion is unknown (occlusions); all pixels when None. Raises `ClipError` for invalid inputs.
    """
    if predicted.shape != true.shape or predicted.shape[-1] != 2:
        raise ClipError(f"flow: both must be [T, H, W, 2], got {predicted.shape} and {true.shape}")
    keep = np.ones(true.shape[:-1], bool) if valid is None else valid.reshape(true.shape[:-1]).astype(bool)
    difference = np.linalg.norm(predicted[keep].astype(np.float64) - true[keep], axis=-1)
    if not len(difference) or not np.isfinite(difference).all():
        raise ClipError("flow: at least one valid pixel is required, with finite predicted and true optical flow")
    length = np.linalg.norm(true[keep].astype(np.float64), axis=-1)
    outliers = (difference > 3.0) & (difference > 0.05 * length)
    return FlowErrors(float(difference.mean()), float(outliers.mean()))

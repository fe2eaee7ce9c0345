"""Depth errors: AbsRel and delta1 after a least-squares alignment in disparity, one scale and shift per clip."""

from typing import NamedTuple

import numpy as np

from openuni.manifests.errors import ClipError

SMALLEST_SHARE = 1e-3  # lower clamp of aligned disparities, as a fraction of the maximum true disparity


class DepthErrors(NamedTuple):
    """Over the valid pixels of a clip, with d the predicted and d* the true distance (1 / disparity)."""

    abs_rel: float  # mean of |d - d*| / d*; 0 is perfect
    delta1: float  # share of pixels with max(d / d*, d* / d) < 1.25; 1 is perfect


def depth_errors(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray | None = None) -> DepthErrors:
    """Errors of a clip's disparity, known up to scale and shift: the protocol of video depth papers.

    `predicted`, `true`: float [T, H, W, 1], disparity (for metres: 1 / metres), `true` > 0 where valid. `valid`: bool,
    the same shape; all pixels when None. The prediction is first aligned by the least-squares scale and shift in
    disparity over the whole clip; then both are inverted to distances. Raises `ClipError` for invalid inputs.
    """
    predicted, true = _valid(predicted, true, valid)
    aligned = align(predicted, true)
    return _errors(np.maximum(aligned, SMALLEST_SHARE * true.max()), true)


def align(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Least-squares fit of `scale * predicted + shift` to `true`; a constant prediction becomes the mean."""
    centred = predicted - predicted.mean()
    spread = np.square(centred).mean()
    scale = (centred * (true - true.mean())).mean() / spread if spread > 1e-12 * np.square(predicted).mean() else 0.0
    return true.mean() + scale * centred


def best_constant(true: np.ndarray, valid: np.ndarray | None = None) -> float:
    """The constant distance with the minimum AbsRel over the clip: the median weighted by 1 / distance.

    `true`: disparity as in `depth_errors`. A baseline computed from the ground truth.
    """
    _, true = _valid(true, true, valid)
    disparity = np.sort(true)[::-1]  # from near to far; the weight of a distance is its disparity
    reached = np.searchsorted(np.cumsum(disparity), disparity.sum() / 2)
    return float(1.0 / disparity[min(reached, len(disparity) - 1)])


def constant_errors(true: np.ndarray, valid: np.ndarray | None = None) -> DepthErrors:
    """Errors of `best_constant`, as a baseline."""
    _, true = _valid(true, true, valid)
    return _errors(np.full_like(true, 1.0 / best_constant(true)), true)


def _errors(predicted: np.ndarray, true: np.ndarray) -> DepthErrors:
    """From disparities: d / d* is `true / predicted`."""
    ratio = true / predicted
    return DepthErrors(float(np.abs(ratio - 1).mean()), float((np.maximum(ratio, 1 / ratio) < 1.25).mean()))


def _valid(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if predicted.shape != true.shape or (valid is not None and valid.shape != true.shape):
        shapes = [array.shape for array in (predicted, true, valid) if array is not None]
        raise ClipError(f"depth: predicted, true and valid must have one shape, got {shapes}")
    keep = np.ones(true.shape, bool) if valid is None else valid.astype(bool)
    predicted, true = predicted[keep].astype(np.float64), true[keep].astype(np.float64)
    if not len(true) or not np.isfinite(predicted).all() or not (np.isfinite(true) & (true > 0)).all():
        raise ClipError(
            "depth: at least one valid pixel is required, with finite predictions and true disparity above 0"
        )
    return predicted, true

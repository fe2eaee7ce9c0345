"""Depth errors: AbsRel and delta1 after a least-squares alignment in disparity, one scale and shift per clip."""

from typing import NamedTuple

import numpy as np

from openuni.manifests.errors import ClipError

SMALLEST_SHARE = 1e-3  # of the largest true disparity: aligned disparities below it are raised to it


class DepthErrors(NamedTuple):
    """Over the valid pixels of a clip, with d the predicted and d* the true distance (1 / disparity)."""

    abs_rel: float  # mean of |d - d*| / d*; 0 is perfect
    delta1: float  # share of pixels with max(d / d*, d* / d) < 1.25; 1 is perfect


def depth_errors(predicted: np.ndarray, true: np.ndarray, valid: np.ndarray | None = None) -> DepthErrors:
    """Errors of a clip's disparity, known up to scale and shift: the protocol of video depth papers.

    `predicted`, `true`: float [T, H, W, 1], disparity (for metres: 1 / metres), `true` > 0 where valid. `valid`: bool,
    the same shape; all pixels when None. The scale and shift that bring the prediction nearest the truth in the least
    squares of disparity over the whole clip are applied first; then both are inverted to distances.
    """
    predicted, true = _valid(predicted, true, valid)
    aligned = align(predicted, true)
    return _errors(np.maximum(aligned, SMALLEST_SHARE * true.max()), true)


def align(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """`scale * predicted + shift` nearest to `true` in least squares; a constant prediction becomes the mean."""
    centred = predicted - predicted.mean()
    spread = np.square(centred).mean()
    scale = (centred * (true - true.mean())).mean() / spread if spread > 1e-12 * np.square(predicted).mean() else 0.0
    return true.mean() + scale * centred


def best_constant(true: np.ndarray, valid: np.ndarray | None = None) -> float:
    """The one distance that has the least AbsRel over the clip: the median of distances weighted by 1 / distance.

    `true`: disparity as in `depth_errors`. It knows the truth, so a prediction beats it only by knowing the picture.
    """
    _, true = _valid(true, true, valid)
    disparity = np.sort(true)[::-1]  # from near to far; the weight of a distance is its disparity
    reached = np.searchsorted(np.cumsum(disparity), disparity.sum() / 2)
    return float(1.0 / disparity[min(reached, len(disparity) - 1)])


def constant_errors(true: np.ndarray, valid: np.ndarray | None = None) -> DepthErrors:
    """The errors of `best_constant`: what any prediction must beat."""
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
        raise ClipError("depth: there must be valid pixels, with finite predictions and a true disparity above 0")
    return predicted, true

"""Depth errors: AbsRel and delta after an alignment of the prediction, once per clip."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np

from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.depth import Depth
from openuni.training.metric import HIGHER, LOWER, Metric

Alignment = Literal["scale_and_shift", "scale", "none"]
SMALLEST_SHARE = 1e-3  # lower clamp of aligned disparities, as a fraction of the maximum true disparity


class DepthErrors(NamedTuple):
    """Over the valid pixels of a clip, with d the predicted and d* the true distance (1 / disparity)."""

    abs_rel: Annotated[float, "mean of |d - d*| / d*", LOWER]
    delta1: Annotated[float, "share of pixels with max(d / d*, d* / d) below 1.25", HIGHER]
    delta2: Annotated[float, "share of pixels with that ratio below 1.25 squared", HIGHER]
    delta3: Annotated[float, "share of pixels with that ratio below 1.25 cubed", HIGHER]


@dataclass(frozen=True)
class DepthMetric(Metric):
    """Relative errors of distances over the pixels of a clip whose true disparity is above 0.

    The prediction is aligned in disparity by least squares first, with one scale and one shift for the whole clip, as
    in papers on video depth. `alignment = "none"` compares metres as they are.
    """

    alignment: Annotated[
        Alignment, "what of the prediction is fitted to the truth, per clip; none requires depth in metres"
    ] = "scale_and_shift"

    modalities: ClassVar[tuple[str, ...]] = ("depth",)
    origin: ClassVar[str] = "Eigen et al. 2014 (arXiv:1406.2283); alignment: Ranftl et al. 2020 (arXiv:1907.01341)"

    def compare(self, predicted: Depth, true: Depth) -> DepthErrors:
        """Raises `ClipError` if nothing is valid, or units do not suit the alignment."""
        if self.alignment == "none" and not predicted.unit == true.unit == "metres":
            raise ClipError(
                f'depth: alignment = "none" requires metres, got {predicted.unit} (predicted) and {true.unit} (true). '
                'Use alignment = "scale" or "scale_and_shift".'
            )
        ours, truth = (depth.array if depth.unit == "disparity" else 1 / depth.array for depth in (predicted, true))
        return depth_errors(ours, truth, truth > 0, self.alignment)


def depth_errors(
    predicted: np.ndarray,
    true: np.ndarray,
    valid: np.ndarray | None = None,
    alignment: Alignment = "scale_and_shift",
) -> DepthErrors:
    """Errors of a clip's disparity.

    `predicted`, `true`: float [T, H, W, 1], disparity (for metres: 1 / metres), `true` > 0 where valid. `valid`: bool,
    the same shape; all pixels when None. The prediction is first aligned by the least-squares scale and shift in
    disparity over the whole clip; then both are inverted to distances. Raises `ClipError` for invalid inputs.
    """
    predicted, true = _valid(predicted, true, valid)
    if alignment == "scale_and_shift":
        predicted = align(predicted, true)
    elif alignment == "scale":
        predicted = predicted * (predicted @ true / max(predicted @ predicted, np.finfo(np.float64).tiny))
    return _errors(np.maximum(predicted, SMALLEST_SHARE * true.max()), true)


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
    worse = np.maximum(ratio, 1 / ratio)
    return DepthErrors(float(np.abs(ratio - 1).mean()), *(float((worse < 1.25**power).mean()) for power in (1, 2, 3)))


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

"""Optical flow metrics: the end-point error."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np

from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.flow import Flow
from openuni.training.metric import LOWER, Metric


class FlowErrors(NamedTuple):
    """Over the valid pixels of a clip."""

    epe_px: Annotated[float, "mean length of the difference vector, pixels per frame at the size of the truth", LOWER]
    outlier_share: Annotated[
        float, "share of pixels with an error above 3 px and above 5 % of the true length (KITTI's Fl-all)", LOWER
    ]


@dataclass(frozen=True)
class FlowMetric(Metric):
    """End-point errors over the pixels whose true motion is known.

    The last frame of a clip is left out: its flow repeats that of the frame before.
    """

    modalities: ClassVar[tuple[str, ...]] = ("flow",)
    origin: ClassVar[str] = "Baker et al. 2011 (IJCV), Middlebury; Fl: Menze and Geiger 2015 (CVPR), KITTI"

    def compare(self, predicted: Flow, true: Flow) -> FlowErrors:
        """Raises `ClipError` for a clip of one frame, or without known motion."""
        if len(true.array) < 2:
            raise ClipError("flow: a clip of at least two frames is required")
        valid = None if true.valid is None else true.valid[:-1]
        return flow_errors(predicted.array[:-1], true.array[:-1], valid)


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

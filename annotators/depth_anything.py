"""Single-frame depth by Depth Anything V2 (transformers)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.annotators._depth_anything import FrameDepth
from openuni.annotators._temporal_consistency import depth_change_share
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.modalities.depth import Depth


class DepthOfClip(NamedTuple):
    """Depth of every frame as predicted, and temporal consistency scores."""

    depth: Depth
    frame_change_ratio: Annotated[
        float | None,
        "mean absolute change between adjacent frames divided by the clip's mean value; includes both flicker and true "
        "motion; null for a clip of one frame",
    ]
    flow_change_share: Annotated[
        float | None,
        "change of the disparity (1 / metres for metric depth) along the optical flow: median over pixels with valid "
        "flow, mean over adjacent frames, as a fraction of the clip's range (5th to 95th percentile); 0 is fully "
        "consistent; invariant to scale and shift; null without valid flow",
    ]


@dataclass(frozen=True)
class DepthAnything(FrameDepth):
    """Depth predicted for each frame independently, at the size of the frames, without per-frame normalization.

    Relative checkpoints predict disparity: larger is nearer, 0 is infinitely far, scale and shift are unknown. Metric
    checkpoints predict metres; exact zeros become 1 mm. The checkpoint's configuration states which one it is.

    The two resize rules differ visibly for frames whose short side is not 518 px. `transformers`: the smallest scaling
    that brings one side to `input_size`, antialiased bicubic. `original` (the authors' code): scaled until the short
    side is at least `input_size`, bicubic without antialiasing, slower for wide frames. Both use the transformers
    network. It interpolates position embeddings to an exact size, so for non-square inputs results differ from the
    authors' code: at 640 x 360 px by 0.26 % of the clip's range on average and by up to 2 % in single pixels.
    """

    revision: ClassVar[int] = 2
    origin: ClassVar[str] = "Yang et al. 2024 (arXiv:2406.09414); transformers.DepthAnythingForDepthEstimation"

    def run(self, model: Any, clip: DecodedClip) -> DepthOfClip:
        """Predict depth, float32 [T, H, W, 1] at the size of the frames."""
        values, unit = self.each_frame(model, clip.frames)
        depth = Depth(values[..., None], unit=unit)
        return DepthOfClip(depth, _frame_change_ratio(values), depth_change_share(clip, depth))


def _frame_change_ratio(depth: np.ndarray) -> float | None:
    """Mean |d(t+1) - d(t)| over mean d of `depth`, float32 [T, H, W]; None for a clip of one frame or a mean of 0."""
    mean = float(depth.mean(dtype=np.float64))
    if len(depth) < 2 or mean == 0:
        return None
    changes = [float(np.abs(after - before).mean()) for before, after in pairwise(depth)]
    return float(np.mean(changes)) / mean

"""Depth from single frames by Depth Anything V2, in transformers' implementation."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.annotators._depth_anything import FrameDepth
from openuni.annotators._temporal_consistency import depth_change_share
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.modalities.depth import Depth


class DepthOfClip(NamedTuple):
    """Depth of every frame as the network gives it, and how much it changes over time."""

    depth: Depth
    frame_change_ratio: Annotated[
        float | None,
        "mean absolute change between adjacent frames divided by the clip's mean value: flicker and true motion "
        "together; null for a clip of one frame",
    ]
    flow_change_share: Annotated[
        float | None,
        "change of the disparity (metres: 1 / metres) along the motion: median over the pixels that can be followed, "
        "mean over adjacent frames, as a share of the clip's range (5th to 95th percentile). 0 is steady; the same "
        "for any one scale and shift of the clip; null where nothing can be followed",
    ]


@dataclass(frozen=True)
class DepthAnything(FrameDepth):
    """Depth of every frame on its own, at the size of the frames, never normalised per frame.

    Relative checkpoints give disparity: larger is nearer, 0 is infinitely far, scale and shift are unknown. Metric
    checkpoints give metres. Which one it is stands in the checkpoint's configuration.

    Two resize rules exist and differ visibly on frames whose short side is not 518. `transformers`: scaled as
    little as possible until one side is `input_size`, antialiased cubic. `original` (the authors' code): until the
    short side is at least `input_size`, cubic without antialiasing, at more cost for wide frames. The network is
    transformers' in both cases; it interpolates position codes to an exact size, which by itself moves the result
    by some tenths of a percent from the authors' code where the input is not square.
    """

    revision: ClassVar[int] = 2
    origin: ClassVar[str] = "Yang et al. 2024 (arXiv:2406.09414); transformers.DepthAnythingForDepthEstimation"

    def run(self, model: Any, clip: DecodedClip) -> DepthOfClip:
        """Raw depth, float32 [T, H, W, 1] at the size of the frames."""
        values, unit = self.each_frame(model, clip.frames)
        depth = Depth(values[..., None], unit=unit)
        return DepthOfClip(depth, _frame_change_ratio(values), depth_change_share(clip, depth))


def _frame_change_ratio(depth: np.ndarray) -> float | None:
    """Mean |d(t+1) - d(t)| over mean d of `depth`, float32 [T, H, W]; None when there is nothing to compare."""
    mean = float(depth.mean(dtype=np.float64))
    if len(depth) < 2 or mean == 0:
        return None
    changes = [float(np.abs(after - before).mean()) for before, after in pairwise(depth)]
    return float(np.mean(changes)) / mean

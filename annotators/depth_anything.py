"""Single-frame depth by Depth Anything V2 (transformers)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

from openuni.annotators._depth_anything import FrameDepth, ZeroMetres
from openuni.annotators._guide_flow import guide_flow_in_background
from openuni.annotators._temporal_consistency import DepthChange, FrameChange
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.windows import WindowedRun, run_at_once
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
        return run_at_once(self.start_windows(model), clip)

    def start_windows(self, model: Any) -> "DepthWindows":
        """See `Operator.start_windows`."""
        return DepthWindows(self, model)

    def window_step(self) -> int:
        """Windows hold whole batches."""
        return self.frames_per_batch


class DepthWindows(WindowedRun[DepthOfClip]):
    """Depth of the new frames of each window, and what the scores need of them."""

    def __init__(self, operator: DepthAnything, model: Any) -> None:
        self.operator, self.model = operator, model
        self.zeros, self.change, self.frame_change = ZeroMetres(), DepthChange(), FrameChange()

    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """See `WindowedRun.add`."""
        with guide_flow_in_background(window):  # for the scores
            values, unit = self.operator.raw_frames(self.model, window.new_frames)
        if unit == "metres":
            values = self.zeros.replaced(values)
        depth = Depth(values[..., None], unit=unit)
        self.frame_change.add(values)
        self.change.add(window, depth)
        return {"depth": depth}

    def result(self) -> DepthOfClip:
        """See `WindowedRun.result`."""
        # `add` has returned all maps
        return DepthOfClip(None, self.frame_change.ratio(), self.change.share())  # type: ignore[arg-type]

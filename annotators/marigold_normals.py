"""Surface normals by Marigold, a single-image diffusion model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.annotators._guide_flow import guide_flow_in_background
from openuni.annotators._marigold import NEEDED_FILES, Marigold
from openuni.annotators._temporal_consistency import WarpedChange, normal_angle_deg
from openuni.manifests.arrays.streaming_mean import StreamingMean
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.windows import WindowedRun, run_at_once
from openuni.manifests.modalities.normal import Normal

PUBLISHED = ("prs-eth/marigold-normals-v1-1",)


class NormalsOfClip(NamedTuple):
    """Normals of every frame, their temporal consistency and uncertainty."""

    normal: Normal
    flow_change_deg: Annotated[
        float | None,
        "change of the direction along the optical flow, degrees: median over pixels with valid flow, mean over "
        "adjacent frames; null without valid flow",
    ]
    spread_deg: Annotated[
        float | None,
        "spread of the ensemble: mean angle between the predictions and their mean, degrees; null for fewer than 3 "
        "predictions",
    ]


@dataclass(frozen=True)
class MarigoldNormals(Marigold):
    """Normals of every frame by Marigold, at the size of the frames; camera space: +x right, +y up, +z to the viewer.

    The network uses the same axes. Network input: sRGB, longer side resized to `processing_px`. Normals are resized
    back bilinearly and normalized to unit length.

    Frames are processed independently. Shared initial noise removes the flicker caused by noise, but not by the image.
    Deterministic: noise is drawn on the CPU and does not depend on the batch size.
    """

    checkpoint: Annotated[str, "MarigoldNormalsPipeline (safetensors): Hugging Face name or folder"] = PUBLISHED[0]

    origin: ClassVar[str] = "Ke et al. 2025 (arXiv:2505.09358); diffusers.MarigoldNormalsPipeline"

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The authors' model."""
        return tuple(Checkpoint(name, "hub", "OpenRAIL++-M", only=NEEDED_FILES) for name in PUBLISHED)

    @classmethod
    def pipeline_name(cls) -> str:
        """See `Marigold.pipeline_name`."""
        return "MarigoldNormalsPipeline"

    def run(self, model: Any, clip: DecodedClip) -> NormalsOfClip:
        """Predict normals, float32 [T, H, W, 3], unit length."""
        return run_at_once(self.start_windows(model), clip)

    def start_windows(self, model: Any) -> "NormalWindows":
        """See `Operator.start_windows`."""
        return NormalWindows(self, model)


class NormalWindows(WindowedRun[NormalsOfClip]):
    """Normals of the new frames of each window, and what the scores need of them."""

    def __init__(self, operator: MarigoldNormals, model: Any) -> None:
        self.operator, self.model = operator, model
        self.change, self.spread = WarpedChange(normal_angle_deg), StreamingMean()

    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """See `WindowedRun.add`."""
        first = window.first_frame + window.overlap_frames
        with guide_flow_in_background(window):  # for the scores
            maps, spread = self.operator.predict(self.model, window.new_frames, first)
        normal = Normal(unit(maps[:, 0]))
        if spread is not None:
            self.spread.add(spread)
        self.change.add(window, normal)
        return {"normal": normal}

    def result(self) -> NormalsOfClip:
        """See `WindowedRun.result`."""
        spread = self.spread.mean()
        spread_deg = None if spread is None else spread * 180
        return NormalsOfClip(None, self.change.mean(), spread_deg)  # type: ignore[arg-type]  # `add` returned all maps


def unit(vectors: np.ndarray) -> np.ndarray:
    """Normalize vectors float32 [..., 3] to unit length; zero vectors become (0, 0, 1), facing the viewer."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    found: np.ndarray = np.where(length > 1e-6, vectors / np.maximum(length, 1e-6), np.array([0, 0, 1]))
    return found.astype(np.float32)

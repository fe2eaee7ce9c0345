"""Surface normals by Marigold, a single-image diffusion model."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.annotators._marigold import NEEDED_FILES, Marigold
from openuni.annotators._temporal_consistency import normal_change_deg
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.decoded_clip import DecodedClip
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
        maps, spread = self.predict(model, clip.frames)
        normal = Normal(unit(maps[:, 0]))
        spread_deg = None if spread is None else float(spread.mean(dtype=np.float64) * 180)
        return NormalsOfClip(normal, normal_change_deg(clip, normal), spread_deg)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Normalize vectors float32 [..., 3] to unit length; zero vectors become (0, 0, 1), facing the viewer."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    found: np.ndarray = np.where(length > 1e-6, vectors / np.maximum(length, 1e-6), np.array([0, 0, 1]))
    return found.astype(np.float32)

"""Surface normals by Marigold, a diffusion model for single images."""

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
    """Normals of every frame, how steady and how sure they are."""

    normal: Normal
    flow_change_deg: Annotated[
        float | None,
        "change of the direction along the motion, degrees: median over the pixels that can be followed, mean over "
        "adjacent frames; null where nothing can be followed",
    ]
    spread_deg: Annotated[
        float | None, "mean angle between the ensemble's members and their mean, degrees; null for fewer than 3 members"
    ]


@dataclass(frozen=True)
class MarigoldNormals(Marigold):
    """Normals of every frame by Marigold, at the size of the frames: camera space, +x right, +y up, +z to the viewer.

    The network's frame of reference is ours, so nothing is flipped. Frames go in as sRGB values with their longer side
    scaled to `processing_px`; normals come back bilinear and are brought to unit length.

    Each frame is an image of its own to the network. That all frames start from the same noise takes away the flicker
    that comes from noise, not what comes from the picture. Deterministic; noise is drawn on the CPU, and batches do not
    change it.
    """

    checkpoint: Annotated[str, "Hugging Face name or folder of a MarigoldNormalsPipeline (safetensors)"] = PUBLISHED[0]

    origin: ClassVar[str] = "Ke et al. 2025 (arXiv:2505.09358); diffusers.MarigoldNormalsPipeline"

    @classmethod
    def published(cls) -> tuple[Checkpoint, ...]:
        """The authors' model."""
        return tuple(Checkpoint(name, "hub", "OpenRAIL++-M", only=NEEDED_FILES) for name in PUBLISHED)

    @classmethod
    def pipeline_name(cls) -> str:
        """diffusers' class."""
        return "MarigoldNormalsPipeline"

    def run(self, model: Any, clip: DecodedClip) -> NormalsOfClip:
        """Normals float32 [T, H, W, 3]."""
        maps, spread = self.predict(model, clip.frames)
        normal = Normal(unit(maps[:, 0]))
        spread_deg = None if spread is None else float(spread.mean(dtype=np.float64) * 180)
        return NormalsOfClip(normal, normal_change_deg(clip, normal), spread_deg)


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 [..., 3] of unit length; what has no direction faces the viewer."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    found: np.ndarray = np.where(length > 1e-6, vectors / np.maximum(length, 1e-6), np.array([0, 0, 1]))
    return found.astype(np.float32)

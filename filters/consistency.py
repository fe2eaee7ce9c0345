"""Similarity of consecutive sampled frames, by CLIP; low values indicate a missed cut."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.filters._clip import ClipFilter
from openuni.manifests.contracts.decoded_clip import DecodedClip


class Scores(NamedTuple):
    """Cosine similarity of CLIP embeddings of consecutive sampled frames."""

    mean: Annotated[float | None, "mean cosine similarity of consecutive samples, -1 to 1; null for a single sample"]
    min: Annotated[float | None, "minimum cosine similarity of consecutive samples, -1 to 1; null for a single sample"]
    ends: Annotated[float | None, "cosine similarity of the first and last sample, -1 to 1; null for a single sample"]


@dataclass(frozen=True)
class Consistency(ClipFilter):
    """Cosine similarity of CLIP embeddings of consecutive sampled frames.

    High for clips with constant content; `min` is low if the content changes abruptly, as at a cut that shot detection
    missed. A typical threshold is VideoX-Fun's 0.8, which belongs to ViT-L/14 at 336 px on keyframes; this filter uses
    ViT-L/14 at 224 px on evenly sampled frames. Scores depend on `frames_per_s`: the larger the interval between
    samples, the lower the similarity.
    """

    licence: ClassVar[str] = "Apache-2.0"
    origin: ClassVar[str] = "CLIP, Radford et al. 2021 (arXiv:2103.00020), in open_clip; as in aigc-apps/VideoX-Fun"

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Scores of the frames, in their order."""
        if len(clip.frames) < 2:
            return Scores(None, None, None)
        embeddings = self.embed(model, clip.frames).astype(np.float64)
        cosines = (embeddings[1:] * embeddings[:-1]).sum(axis=1)
        return Scores(float(cosines.mean()), float(cosines.min()), float(embeddings[0] @ embeddings[-1]))

"""How alike the sampled frames of a clip are: a hidden cut makes neighbours unlike."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.filters._clip import ClipFilter
from openuni.manifests.contracts.decoded_clip import DecodedClip


class Scores(NamedTuple):
    """Cosine of CLIP embeddings of neighbouring samples."""

    mean: Annotated[float | None, "mean cosine of neighbouring samples, -1 to 1; null where there is only one sample"]
    min: Annotated[float | None, "least cosine of neighbouring samples, -1 to 1: low at a hidden cut; null as above"]
    ends: Annotated[float | None, "cosine of the first and the last sample, -1 to 1; null as above"]


@dataclass(frozen=True)
class Consistency(ClipFilter):
    """Cosine similarity of CLIP embeddings of neighbouring sampled frames.

    High where a clip shows one thing throughout; `min` drops where the content changes from one sample to the next, as
    at a cut that shot detection missed. Curators keep clips above 0.8. Depends on `frames_per_s`: samples further
    apart are less alike.
    """

    licence: ClassVar[str] = "Apache-2.0"
    origin: ClassVar[str] = "CLIP, Radford et al. 2021 (arXiv:2103.00020), in open_clip; as in aigc-apps/VideoX-Fun"

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Cosines of the frames given, in their order."""
        if len(clip.frames) < 2:
            return Scores(None, None, None)
        embeddings = self.embed(model, clip.frames).astype(np.float64)
        cosines = (embeddings[1:] * embeddings[:-1]).sum(axis=1)
        return Scores(float(cosines.mean()), float(cosines.min()), float(embeddings[0] @ embeddings[-1]))

"""How well a clip shows what its caption says."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.filters._clip import ClipFilter
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import Unavailable


class Scores(NamedTuple):
    """Cosine of the caption's embedding with those of the sampled frames."""

    mean: Annotated[float | None, "mean cosine of caption and frames, -1 to 1; 0.2 to 0.3 where they agree"]
    min: Annotated[float | None, "cosine of the frame that fits the caption least, -1 to 1"]
    truncated: Annotated[bool, "whether the caption is longer than the network reads, so that its end did not count"]


@dataclass(frozen=True)
class ClipText(ClipFilter):
    """Cosine similarity of the clip's caption with its sampled frames, in CLIP's common space.

    CLIP reads 77 tokens, about 50 words: of longer captions the end is cut off, and `truncated` says so. Curators keep
    clips above 0.2. A clip without a caption has no score: this filter is `unavailable` for it, and no clip fails.
    """

    licence: ClassVar[str] = "Apache-2.0"
    origin: ClassVar[str] = "CLIP, Radford et al. 2021 (arXiv:2103.00020), in open_clip; CLIPScore, Hessel et al. 2021"

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Cosines over the frames given. Raises `Unavailable` for a clip without a caption."""
        caption = (clip.clip.caption or "").strip()
        if not caption:
            raise Unavailable("the clip has no caption")
        truncated = not model.fits(caption)
        if not len(clip.frames):
            return Scores(None, None, truncated)
        text = model.text(caption, self.precision).astype(np.float64)
        cosines = self.embed(model, clip.frames).astype(np.float64) @ text
        return Scores(float(cosines.mean()), float(cosines.min()), truncated)

"""Agreement of a clip with its caption, by CLIP."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.filters._clip import ClipFilter
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import Unavailable


class Scores(NamedTuple):
    """Cosine similarity of the caption's embedding to those of the sampled frames."""

    mean: Annotated[float | None, "mean cosine similarity of caption and frames, -1 to 1; 0.2 to 0.3 for a match"]
    min: Annotated[float | None, "minimum cosine similarity over the frames, -1 to 1"]
    truncated: Annotated[bool, "whether the caption exceeded CLIP's context length and was truncated"]


@dataclass(frozen=True)
class ClipText(ClipFilter):
    """Cosine similarity of the clip's caption to its sampled frames, in CLIP's joint embedding space.

    CLIP's context length is 77 tokens, about 50 words. Longer captions are truncated, and `truncated` is true. A
    typical threshold in curation pipelines is 0.2. The filter is `unavailable` for clips without a caption; they do not
    fail.
    """

    reads_caption: ClassVar[bool] = True
    licence: ClassVar[str] = "Apache-2.0"
    origin: ClassVar[str] = "CLIP, Radford et al. 2021 (arXiv:2103.00020), in open_clip; CLIPScore, Hessel et al. 2021"

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Scores over the frames. Raises `Unavailable` for a clip without a caption."""
        caption = (clip.clip.caption or "").strip()
        if not caption:
            raise Unavailable("the clip has no caption")
        truncated = not model.fits(caption)
        if not len(clip.frames):
            return Scores(None, None, truncated)
        text = model.text(caption, self.precision).astype(np.float64)
        cosines = self.embed(model, clip.frames).astype(np.float64) @ text
        return Scores(float(cosines.mean()), float(cosines.min()), truncated)

"""The CLIP embedding of a clip, for semantic duplicate detection by `openuni duplicates`."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.filters._clip import ClipFilter
from openuni.manifests.contracts.decoded_clip import DecodedClip


class Scores(NamedTuple):
    """The clip's embedding."""

    vector: Annotated[
        list[np.float32] | None,
        "mean CLIP embedding of the frames, L2-normalized, rounded to float16; null if the mean is 0",
    ]


@dataclass(frozen=True)
class Embedding(ClipFilter):
    """Mean CLIP embedding of the sampled frames, 1.5 KB per clip, for the detection of semantic duplicates."""

    licence: ClassVar[str] = "Apache-2.0"
    origin: ClassVar[str] = "CLIP, Radford et al. 2021 (arXiv:2103.00020), in open_clip; SemDeDup, arXiv:2303.09540"

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """The mean embedding of the frames; null without frames."""
        if not len(clip.frames):
            return Scores(None)
        mean = self.embed(model, clip.frames).mean(axis=0, dtype=np.float64)
        length = float(np.linalg.norm(mean))
        if not length:
            return Scores(None)
        return Scores((mean / length).astype(np.float16).astype(float).tolist())

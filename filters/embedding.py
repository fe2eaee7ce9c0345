"""What a clip shows, as one vector: from it `openuni duplicates` finds clips that show the same."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.filters._clip import ClipFilter
from openuni.manifests.contracts.decoded_clip import DecodedClip


class Scores(NamedTuple):
    """The clip's place in CLIP's space."""

    vector: Annotated[
        list[np.float32] | None,
        "mean of the frames' CLIP embeddings, scaled to length 1, in values that 16-bit floats hold; null if it is 0",
    ]


@dataclass(frozen=True)
class Embedding(ClipFilter):
    """The mean CLIP embedding of the sampled frames, 1.5 KB per clip, for the search of semantic duplicates."""

    licence: ClassVar[str] = "Apache-2.0"
    origin: ClassVar[str] = "CLIP, Radford et al. 2021 (arXiv:2103.00020), in open_clip; SemDeDup, arXiv:2303.09540"

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """The vector of the frames given; null where there are none."""
        if not len(clip.frames):
            return Scores(None)
        mean = self.embed(model, clip.frames).mean(axis=0, dtype=np.float64)
        length = float(np.linalg.norm(mean))
        if not length:
            return Scores(None)
        return Scores((mean / length).astype(np.float16).astype(float).tolist())

"""An annotator that kills its process on one clip, as a crash inside a decoder would."""

import os
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator


class Count(NamedTuple):
    """What the annotator makes."""

    frames: Annotated[int, "frames seen"]


@dataclass(frozen=True)
class Aborting(Annotator):
    """Counts frames; aborts on the clip whose source's name contains a word."""

    word: Annotated[str, "part of the name of the deadly source"] = "deadly"

    origin = "made for the tests"

    def run(self, model: Any, clip: DecodedClip) -> Count:
        """Number of frames."""
        if self.word in clip.clip.source:
            os.abort()
        return Count(len(clip.frames))

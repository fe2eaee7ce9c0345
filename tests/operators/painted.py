"""An annotator whose albedo map is the frame itself: latents of both tell whether their frames are the same."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.modalities.albedo import Albedo


class Painted(NamedTuple):
    """What the annotator makes."""

    albedo: Albedo


@dataclass(frozen=True)
class FramesAsAlbedo(Annotator):
    """Albedo whose rendering is the frame."""

    origin = "made for the tests"

    def run(self, model: Any, clip: DecodedClip) -> Painted:
        """Maps of all frames."""
        return Painted(Albedo.from_rgb(clip.frames.astype(np.float32) / 255))

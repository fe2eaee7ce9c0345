"""An annotator that sleeps as if a GPU computed, and gives maps that take real time to code."""

import time
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.segmentation import Segmentation


class MapsOfClip(NamedTuple):
    """What the annotator makes."""

    depth: Depth
    flow: Flow
    segmentation: Segmentation


@dataclass(frozen=True)
class Sleeping(Annotator):
    """Smooth noise as maps, the same for all clips of a size."""

    seconds: Annotated[float, "how long it sleeps per clip"] = 1.0

    origin = "made for the tests"

    def load(self, device: str) -> dict[tuple[int, ...], MapsOfClip]:
        """Maps by shape of the frames."""
        return {}

    def run(self, model: Any, clip: DecodedClip) -> MapsOfClip:
        """Sleep, then give the maps."""
        shape = clip.frames.shape[:3]
        if shape not in model:
            model[shape] = _maps(shape)
        time.sleep(self.seconds)
        return model[shape]


def _maps(shape: tuple[int, ...]) -> MapsOfClip:
    rng = np.random.default_rng(0)
    frames = [cv2.GaussianBlur(rng.standard_normal((*shape[1:], 3)).astype(np.float32), (0, 0), 5) for _ in range(8)]
    noise = np.stack([frames[number % 8] for number in range(shape[0])])
    depth = Depth(np.ascontiguousarray(noise[..., :1]) - noise.min())
    flow = Flow(np.ascontiguousarray(noise[..., 1:]) * np.float32(40))
    return MapsOfClip(depth, flow, Segmentation((noise[..., :1] > 0).astype(np.uint16)))

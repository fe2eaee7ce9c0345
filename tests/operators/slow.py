"""A filter that takes its time and writes down that it has seen a clip: what tests of overlapping phases compare."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Filter


class Brightness(NamedTuple):
    """What the filter measures."""

    mean: Annotated[float, "mean of all pixels, 0 to 255"]


@dataclass(frozen=True)
class Slow(Filter):
    """Mean brightness of the first frame."""

    log: Annotated[str, "file that gets a line per clip; beside it, LOG.seconds says how long each takes"] = ""

    origin = "made for the tests"

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """The first frame."""
        return np.array([0])

    def run(self, model: Any, clip: DecodedClip) -> Brightness:
        """uint8 [1, H, W, 3] RGB -> its mean."""
        time.sleep(float(Path(f"{self.log}.seconds").read_text()))  # no option: it would change the version
        with Path(self.log).open("ab", buffering=0) as file:
            file.write(f"filter {clip.clip.clip_id}\n".encode())
        return Brightness(float(clip.frames.mean()))

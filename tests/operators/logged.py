"""An annotator that writes down every clip it runs, and takes its time: what kill tests count."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.modalities.segmentation import Segmentation


class Halves(NamedTuple):
    """What the annotator makes."""

    segmentation: Segmentation
    bright_share: Annotated[float, "share of pixels above the mean, 0 to 1"]


@dataclass(frozen=True)
class Logged(Annotator):
    """Splits each frame at its mean brightness."""

    log: Annotated[str, "file that gets a line per clip; empty for none"] = ""
    seconds: Annotated[float, "time it takes, seconds"] = 0.0
    held: Annotated[str, "file; while it exists, a clip whose source name is its content waits; empty for none"] = ""

    origin = "made for the tests"

    def run(self, model: Any, clip: DecodedClip) -> Halves:
        """uint8 [T, H, W, 3] RGB -> ids 0 and 1."""
        if self.log:
            with Path(self.log).open("ab", buffering=0) as file:
                file.write(f"{os.getpid()} {clip.clip.clip_id}\n".encode())
        time.sleep(self.seconds)
        with suppress(FileNotFoundError):
            while self.held and Path(self.held).read_text() in clip.clip.source:
                time.sleep(0.01)
        grey = clip.frames.mean(axis=-1, keepdims=True)
        ids = (grey > grey.mean()).astype(np.uint16)
        return Halves(Segmentation(ids), float(ids.mean()))

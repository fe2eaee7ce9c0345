"""An annotator with a dependency that exists in several versions; clips of certain names make it fail."""

import logging
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.errors import ClipError, Unavailable
from openuni.manifests.modalities.segmentation import Segmentation


class Spread(NamedTuple):
    """Two numbers."""

    low: Annotated[float, "smallest value"]
    high: Annotated[float, "largest value"]


class Seen(NamedTuple):
    """What the annotator makes."""

    segmentation: Segmentation
    package: Annotated[str, "version of its dependency"]
    device: Annotated[str, "what it was loaded on"]
    spread: Annotated[Spread, "values of the first frame"]
    vector: Annotated[list[np.float32], "mean colour"]
    size: Annotated[tuple[int, ...], "the option"]


@dataclass(frozen=True)
class InEnvironment(Annotator):
    """Splits frames at their mean; says which version of a package it found."""

    size: Annotated[tuple[int, ...], "numbers"] = (3, 4)
    name_of_package: Annotated[str, "the package"] = "iniconfig"

    origin = "made for the tests"

    def load(self, device: str) -> Any:
        import importlib.metadata

        import iniconfig

        assert iniconfig.IniConfig
        print("loaded", self.name_of_package, "on", device)
        return importlib.metadata.version(self.name_of_package), device

    def run(self, model: Any, clip: DecodedClip) -> Seen:
        """uint8 [T, H, W, 3] RGB -> ids 0 and 1."""
        stem = Path(clip.clip.source).stem
        logging.getLogger("lab").warning("looking at %s", stem)
        misbehave(stem, clip.clip.source)
        grey = clip.frames.mean(axis=-1, keepdims=True)
        ids = (grey > grey.mean()).astype(np.uint16)
        first = clip.frames[0]
        spread = Spread(float(first.min()), float("nan") if stem == "nan" else float(first.max()))
        vector = [np.float32(value) for value in clip.frames.mean(axis=(0, 1, 2))]
        return Seen(Segmentation(ids), *model, spread, vector, self.size)


def misbehave(stem: str, source: str) -> None:
    if stem == "deadly" or (stem == "once" and not Path(f"{source}.spare").exists()):
        Path(f"{source}.spare").touch()
        print("native code is about to crash")
        os.kill(os.getpid(), signal.SIGSEGV)
    if stem == "slow":
        time.sleep(60)
    if stem == "refused":
        raise ClipError("no picture in it")
    if stem == "absent":
        raise Unavailable("nothing to see")
    if stem == "wrong":
        raise ValueError("a bug\nin two lines")

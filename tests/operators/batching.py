"""An annotator that takes several clips together, writes down which, and fails as its options say."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.errors import ClipError, Unavailable


class OutOfMemoryError(RuntimeError):
    """As torch's."""


class Brightness(NamedTuple):
    """What the annotator makes."""

    text: Annotated[str, "source and mean brightness"]


class Kept(NamedTuple):
    """What it keeps of a clip."""

    stem: str
    first: np.ndarray


@dataclass(frozen=True)
class Batching(Annotator):
    """Mean brightness of the first frame, of several clips at a time."""

    log: Annotated[str, "file that gets a line per batch; empty for none"] = ""
    clips: Annotated[int, "clips per batch"] = 3
    most: Annotated[int, "clips that fit in memory"] = 100
    deadly: Annotated[str, "name of the clip that ends the process"] = ""

    origin = "made for the tests"

    def clips_per_batch(self) -> int:
        return self.clips

    def excerpt(self, model: Any, clip: DecodedClip) -> Kept:
        stem = Path(clip.clip.source).stem
        if stem == "no-excerpt":
            raise Unavailable("nothing to see")
        return Kept(stem, clip.frames[0].copy())

    def run_batch(self, model: Any, excerpts: Sequence[Kept]) -> list[Brightness]:
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(" ".join(kept.stem for kept in excerpts) + "\n")
        if len(excerpts) > self.most:
            raise OutOfMemoryError("too many")
        for kept in excerpts:
            if kept.stem == self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            if kept.stem.startswith("broken"):
                raise ClipError(f"{kept.stem} cannot be read")
        return [Brightness(f"{kept.stem} {kept.first.mean():.3f}") for kept in excerpts]

    def run(self, model: Any, clip: DecodedClip) -> Brightness:
        """uint8 [T, H, W, 3] RGB -> text."""
        return self.run_batch(model, [self.excerpt(model, clip)])[0]

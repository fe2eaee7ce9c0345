"""An annotator whose process dies on one clip, as if native code crashed or the kernel ended it."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator


class Count(NamedTuple):
    """What the annotator makes."""

    frames: Annotated[int, "frames seen"]


@dataclass(frozen=True)
class Dying(Annotator):
    """Counts frames; dies on the clip whose source's name contains a word, unless a file SOURCE.spare exists."""

    how: Annotated[str, "name of the signal"] = "SIGSEGV"
    word: Annotated[str, "part of the name of the deadly source"] = "deadly"

    origin = "made for the tests"

    def run(self, model: Any, clip: DecodedClip) -> Count:
        """Number of frames."""
        with Path(clip.clip.source).with_suffix(".seen").open("a") as file:
            file.write("x")
        if self.word in clip.clip.source and not Path(f"{clip.clip.source}.spare").exists():
            os.kill(os.getpid(), signal.Signals[self.how])
        return Count(len(clip.frames))

"""An annotator whose model is a process of its own, as engines for large models have."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator


class Count(NamedTuple):
    """What the annotator makes."""

    frames: Annotated[int, "frames seen"]


@dataclass(frozen=True)
class Starting(Annotator):
    """Counts frames; its process sleeps."""

    origin = "made for the tests"

    def load(self, device: str) -> Any:
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    def run(self, model: Any, clip: DecodedClip) -> Count:
        """Number of frames."""
        return Count(len(clip.frames))

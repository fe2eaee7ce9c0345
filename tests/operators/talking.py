"""A filter that logs what it does."""

import logging
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Filter


class Scores(NamedTuple):
    """What is measured."""

    frames: Annotated[int, "sampled frames"]


@dataclass(frozen=True)
class Talking(Filter):
    """Counts frames, and says so in the log."""

    origin = "made for the tests"

    def sample(self, times_s: Any) -> Any:
        """All frames."""
        import numpy as np

        return np.arange(len(times_s))

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Frames to their number."""
        logging.getLogger("openuni.talking").info("measured %d frames", len(clip.frames))
        return Scores(len(clip.frames))

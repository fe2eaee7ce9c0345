"""A filter that reads the caption of a clip."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Filter


class Letters(NamedTuple):
    letters: float


@dataclass(frozen=True)
class CaptionLength(Filter):
    """Number of letters in the caption, times `scale`."""

    scale: float = 1.0

    reads_caption: ClassVar[bool] = True

    def run(self, model: Any, clip: DecodedClip) -> Letters:
        return Letters(self.scale * float(len(clip.clip.caption or "")))

"""A filter with a bug: it fails at clips whose first frame is darker than its limit, deep inside a helper."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Filter


class Scores(NamedTuple):
    """What is measured."""

    mean: Annotated[float, "mean level, 0 to 255"]


@dataclass(frozen=True)
class Broken(Filter):
    """Mean level; fails below `limit`."""

    limit: Annotated[float, "mean level below which it fails, 0 to 255"] = 256.0

    origin = "made for the tests"

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Frames to a mean."""
        return Scores(look_up({}, float(clip.frames.mean()), self.limit))


def look_up(table: dict[str, float], mean: float, limit: float) -> float:
    """The bug."""
    return table["bbox"] if mean < limit else mean

"""A filter with a dependency."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Filter


class Bright(NamedTuple):
    """What the filter measures."""

    mean: Annotated[float, "mean value"]
    heavy: Annotated[bool, "whether torch or pyarrow was imported"]


@dataclass(frozen=True)
class FilterInEnvironment(Filter):
    """Mean of the sampled frames."""

    origin = "made for the tests"

    def run(self, model: Any, clip: DecodedClip) -> Bright:
        """The mean."""
        import sys

        return Bright(float(clip.frames.mean()), bool({"torch", "pyarrow", "ray", "duckdb"} & set(sys.modules)))

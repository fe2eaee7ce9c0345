"""An annotator that starts from the map of another one, and needs another version of its dependency."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator


class Share(NamedTuple):
    """What the annotator makes."""

    share: Annotated[float, "share of pixels with an instance"]
    package: Annotated[str, "version of its dependency"]


@dataclass(frozen=True)
class InOtherEnvironment(Annotator):
    """How much of the picture the instances of another annotator cover."""

    origin = "made for the tests"

    def requires(self) -> tuple[str, ...]:
        return ("segmentation",)

    def load(self, device: str) -> Any:
        import importlib.metadata

        return importlib.metadata.version("iniconfig")

    def run(self, model: Any, clip: DecodedClip) -> Share:
        """The share over all frames."""
        return Share(float(np.mean(clip.maps["segmentation"].array > 0)), model)

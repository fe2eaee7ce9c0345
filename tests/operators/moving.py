"""An annotator that starts from the flow that another one made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.segmentation import Segmentation


class Parts(NamedTuple):
    """What the annotator makes."""

    segmentation: Segmentation
    flow_sum: Annotated[float, "sum of all components: shows to the bit which flow it saw"]


@dataclass(frozen=True)
class Moving(Annotator):
    """Marks the pixels that move faster than half a pixel per frame."""

    of: Annotated[str, "the flow it starts from; several, separated by spaces, are refused"] = "flow"

    origin = "made for the tests"

    def requires(self) -> Sequence[str]:
        """The flow."""
        return self.of.split()

    def run(self, model: Any, clip: DecodedClip) -> Parts:
        """uint8 [T, H, W, 3] RGB -> ids 0 and 1."""
        flow = clip.maps["flow"]
        assert isinstance(flow, Flow)
        moves = np.hypot(flow.array[..., :1], flow.array[..., 1:]) > 0.5
        return Parts(Segmentation(moves.astype(np.uint16)), float(flow.array.sum(dtype=np.float64)))

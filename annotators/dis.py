"""Optical flow without weights: DIS (dense inverse search) from OpenCV."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from openuni.annotators._dis_flow import MIN_SIDE_PX, dis_pair_flow
from openuni.annotators._pairwise_flow import FlowOfClip, flow_of_clip
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.errors import ClipError


@dataclass(frozen=True)
class Dis(Annotator):
    """Forward optical flow between adjacent frames, on grey values, on the CPU.

    A real method that needs no checkpoint: within 0.02 px on a textured shift, exactly zero on equal frames; weaker
    than RAFT on large motion, thin objects and untextured areas, which the forward-backward check marks as not
    valid. The last frame repeats the flow of the one before it.
    """

    preset: Annotated[
        Literal["ultrafast", "fast", "medium"], "medium is about 4 times as exact and 5 times as slow as the others"
    ] = "medium"
    check: Annotated[bool, "also compute the backward flow (twice the time) to mark pixels that cannot be trusted"] = (
        True
    )

    origin: ClassVar[str] = "Kroeger et al. 2016 (arXiv:1603.03590), as in OpenCV"

    def run(self, model: Any, clip: DecodedClip) -> FlowOfClip:
        """Flow at the size of the frames. Raises `ClipError` when a side is shorter than 8 px."""
        height_px, width_px = clip.frames.shape[1:3]
        if min(height_px, width_px) < MIN_SIDE_PX:
            raise ClipError(f"dis needs frames of at least {MIN_SIDE_PX} px a side, got {width_px} x {height_px}")
        return flow_of_clip(clip, dis_pair_flow(clip.frames, self.preset), self.check)

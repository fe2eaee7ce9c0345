"""Optical flow by DIS (dense inverse search) from OpenCV, without weights."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from openuni.annotators._dis_flow import dis_adjacent_flow
from openuni.annotators._pairwise_flow import FlowOfClip, FlowWindows
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.windows import run_at_once


@dataclass(frozen=True)
class Dis(Annotator):
    """Forward optical flow between adjacent frames, on greyscale images, on the CPU.

    Error below 0.02 px for a textured translation, exactly zero for equal frames. Less accurate than RAFT for large
    motion, thin objects and untextured areas; the forward-backward check marks such pixels as invalid. The last frame
    repeats the previous flow.
    """

    preset: Annotated[
        Literal["ultrafast", "fast", "medium"],
        "DIS preset; medium is about 4 times as accurate and 5 times as slow as the others",
    ] = "medium"
    check: Annotated[
        bool, "run the forward-backward check, which marks unreliable pixels as invalid (doubles the time)"
    ] = True

    origin: ClassVar[str] = "Kroeger et al. 2016 (arXiv:1603.03590), as in OpenCV"

    def run(self, model: Any, clip: DecodedClip) -> FlowOfClip:
        """Flow in pixels, at the size of the frames.

        Raises `ClipError` for frames with a side below 8 px or both sides below 12 px.
        """
        return run_at_once(self.start_windows(model), clip)

    def start_windows(self, model: Any) -> FlowWindows:
        """See `Operator.start_windows`."""
        return FlowWindows(lambda frames: dis_adjacent_flow(frames, self.preset, self.check), self.check)

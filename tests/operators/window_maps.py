"""An annotator of windows whose maps get deeper from frame to frame: their range is known only at the end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.windows import WindowedRun, run_at_once
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.depth import Depth


class OutOfMemoryError(RuntimeError):
    """As PyTorch raises it."""


class DepthOfClip(NamedTuple):
    """What the annotator makes."""

    depth: Depth
    frames: Annotated[int, "frames seen"]


@dataclass(frozen=True)
class WindowMaps(Annotator):
    """Disparity: level of the first channel, and the frame's number."""

    frames_per_batch: Annotated[int, "more than `fits` is out of memory"] = 1
    fits: Annotated[int, "frames that the memory holds"] = 8
    fails_at: Annotated[int, "number of the frame at which it fails; -1: none"] = -1
    forgets: Annotated[int, "frames at the end without a map"] = 0

    origin = "made for the tests"

    def run(self, model: Any, clip: DecodedClip) -> DepthOfClip:
        """Maps of all frames."""
        return run_at_once(self.start_windows(model), clip)

    def start_windows(self, model: Any) -> "DepthWindows":
        """See `Operator.start_windows`."""
        return DepthWindows(self)

    def window_step(self) -> int:
        """Whole batches."""
        return self.frames_per_batch


class DepthWindows(WindowedRun[DepthOfClip]):
    """Counts the frames."""

    def __init__(self, operator: WindowMaps) -> None:
        self.operator, self.frames = operator, 0

    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """See `WindowedRun.add`."""
        if self.operator.frames_per_batch > self.operator.fits:
            raise OutOfMemoryError("the memory is full")
        numbers = np.arange(self.frames, self.frames + len(window.new_frames))
        if self.operator.fails_at in numbers:
            raise ClipError(f"frame {self.operator.fails_at} cannot be processed")
        assert numbers[0] == window.first_frame + window.overlap_frames
        self.frames += len(numbers)
        last = window.clip.frame_count - self.operator.forgets
        levels = window.new_frames[..., :1].astype(np.float32) + numbers[:, None, None, None].astype(np.float32)
        return {"depth": Depth(levels[numbers < last])}

    def result(self) -> DepthOfClip:
        """See `WindowedRun.result`."""
        return DepthOfClip(None, self.frames)

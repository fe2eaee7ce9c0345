"""Open-Sora's motion score: how far things move from a frame to the tenth after it, in pixels at one picture size."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Filter

Flow = Callable[[np.ndarray, np.ndarray], np.ndarray]  # two uint8 [320, 576, 3] RGB -> float32 [320, 576, 2] pixels

HEIGHT_PX, WIDTH_PX = 320, 576
PRESETS = {"ultrafast": 0, "fast": 1, "medium": 2}  # OpenCV's numbers for the DIS presets


class Scores(NamedTuple):
    """Flow over all pixels and both directions, averaged over the pairs of frames."""

    mean_abs_px: Annotated[
        float | None,
        "mean of the absolute x and y of the flow, pixels at 320 x 576; null where the clip has one sampled frame only",
    ]


@dataclass(frozen=True)
class FlowScore(Filter):
    """Motion as Open-Sora counts it, to compare with thresholds that were published for it.

    Frames 0, 10, 20 and 30 of the clip are stretched to 320 x 576 whatever their shape, portraits transposed first, and
    each is compared with the next. Open-Sora's report calls less than 0.5 very low and 20 or more extremely high.
    The flow here is DIS's, the original's UniMatch's. The score depends on the frame rate and looks at the first second
    only: `motion` measures without either.
    """

    step_frames: Annotated[int, "frames from one that is looked at to the next", Ge(1)] = 10
    max_frames: Annotated[int, "frames looked at, from the clip's first on", Ge(2)] = 4
    preset: Annotated[Literal["ultrafast", "fast", "medium"], "DIS preset: medium is the most exact"] = "medium"

    origin: ClassVar[str] = "Open-Sora 1.2 and 1.3, tools/scoring/optical_flow; DIS optical flow in place of UniMatch"

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Every tenth of the clip's first frames."""
        return np.arange(0, len(times_s), self.step_frames, dtype=np.int64)[: self.max_frames]

    def load(self, device: str) -> Flow:
        """DIS on the frames' brightness."""
        import cv2

        estimator = cv2.DISOpticalFlow.create(PRESETS[self.preset])

        def flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
            first, second = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after))
            return np.asarray(estimator.calc(first, second, np.zeros((*first.shape, 2), np.float32)))

        return flow

    def run(self, model: Flow, clip: DecodedClip) -> Scores:
        """Score of the frames given, each against the next."""
        frames = [resized(frame) for frame in clip.frames]
        means = [float(np.abs(model(*pair)).mean()) for pair in itertools.pairwise(frames)]
        return Scores(float(np.mean(means)) if means else None)


def resized(frame: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [320, 576, 3]: portraits transposed, then bilinear with the corners held in place."""
    if frame.shape[0] > frame.shape[1]:
        frame = frame.swapaxes(0, 1)
    for axis, side_px in ((0, HEIGHT_PX), (1, WIDTH_PX)):
        places = np.linspace(0, frame.shape[axis] - 1, side_px)
        low = np.minimum(places.astype(np.int64), max(0, frame.shape[axis] - 2))
        high = np.minimum(low + 1, frame.shape[axis] - 1)
        weight = (places - low).astype(np.float32)[(slice(None), *[None] * (2 - axis))]
        frame = frame.take(low, axis) * (1 - weight) + frame.take(high, axis) * weight
    return np.rint(frame).astype(np.uint8)

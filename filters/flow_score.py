"""Open-Sora's motion score: optical flow over ten frames, in pixels at a fixed image size."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge

from openuni.manifests.arrays.dense_inverse_search import dis_estimator
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.window_filter import WindowFilter

Flow = Callable[[np.ndarray, np.ndarray], np.ndarray]  # two uint8 [320, 576, 3] RGB -> float32 [320, 576, 2] pixels

HEIGHT_PX, WIDTH_PX = 320, 576


class Scores(NamedTuple):
    """Mean absolute flow over all pixels and both components, averaged over the frame pairs."""

    mean_abs_px: Annotated[
        float | None,
        "mean absolute value of the flow's x and y components, pixels at 320 x 576; null for a single sampled frame",
    ]


@dataclass(frozen=True)
class FlowScore(WindowFilter):
    """Motion score as in Open-Sora, for use with its published thresholds.

    Frames 0, 10, 20 and 30 of the clip are resized to 320 x 576 regardless of aspect ratio (portrait frames are
    transposed first), and optical flow is computed between consecutive ones. Open-Sora's report calls scores below 0.5
    very low and from 20 extremely high. The flow is computed by DIS instead of UniMatch. The score depends on the frame
    rate and covers only the first second; `motion` has neither limitation.
    """

    step_frames: Annotated[int, "interval between sampled frames, frames", Ge(1)] = 10
    max_frames: Annotated[int, "maximum number of sampled frames, from the first frame of the clip", Ge(2)] = 4
    preset: Annotated[Literal["ultrafast", "fast", "medium"], "DIS preset; medium is the most accurate"] = "medium"

    origin: ClassVar[str] = "Open-Sora 1.2 and 1.3, tools/scoring/optical_flow; DIS optical flow in place of UniMatch"

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Every `step_frames`-th frame, at most `max_frames`."""
        return np.arange(0, len(times_s), self.step_frames, dtype=np.int64)[: self.max_frames]

    def load(self, device: str) -> Flow:
        """DIS on greyscale frames."""
        import cv2

        estimator = dis_estimator(self.preset, HEIGHT_PX, WIDTH_PX, "flow_score")

        def flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
            first, second = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after))
            return np.asarray(estimator.calc(first, second, np.zeros((*first.shape, 2), np.float32)))

        return flow

    def measure(self, model: Flow, clip: DecodedClip) -> Sequence[float]:
        """Mean absolute flow of every pair of consecutive frames."""
        frames = [resized(frame) for frame in clip.frames]
        return [float(np.abs(model(*pair)).mean()) for pair in itertools.pairwise(frames)]

    def summarize(self, measured: Sequence[float]) -> Scores:
        """Score over consecutive pairs of the frames."""
        return Scores(float(np.mean(measured)) if measured else None)


def resized(frame: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [320, 576, 3]: portrait frames transposed, then bilinear with aligned corners."""
    if frame.shape[0] > frame.shape[1]:
        frame = frame.swapaxes(0, 1)
    for axis, side_px in ((0, HEIGHT_PX), (1, WIDTH_PX)):
        places = np.linspace(0, frame.shape[axis] - 1, side_px)
        low = np.minimum(places.astype(np.int64), max(0, frame.shape[axis] - 2))
        high = np.minimum(low + 1, frame.shape[axis] - 1)
        weight = (places - low).astype(np.float32)[(slice(None), *[None] * (2 - axis))]
        frame = frame.take(low, axis) * (1 - weight) + frame.take(high, axis) * weight
    return np.rint(frame).astype(np.uint8)

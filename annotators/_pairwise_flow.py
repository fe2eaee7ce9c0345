"""Shared by the optical-flow annotators: result columns, frame pairs, the forward-backward check."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, NamedTuple

import numpy as np

from openuni.annotators._threads import in_threads
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.windows import WindowedRun
from openuni.manifests.modalities.flow import Flow

UNFLOW_ALPHA = 0.01  # Meister et al. 2018 (arXiv:1711.07837): tolerance relative to the sum of both flow lengths ...
UNFLOW_BETA_PX = 0.5  # ... plus an absolute tolerance

# Frames uint8 [n + 1, H, W, 3] -> the flow of their adjacent pairs, some pairs at a time and in order: forward flow
# and, if the method computes it, backward flow, float32 [m, H, W, 2] each. The first frame is the last one of the call
# before.
AdjacentFlow = Callable[[np.ndarray], Iterator[tuple[np.ndarray, np.ndarray | None]]]


class FlowOfClip(NamedTuple):
    """Forward flow of every frame to the next, and its agreement with the backward flow."""

    flow: Flow
    speed_diag_per_s: Annotated[float, "mean length of the flow, frame diagonals per second; 0 for a clip of one frame"]
    inconsistent_share: Annotated[
        float | None, "fraction of pixels that fail the forward-backward check, 0 to 1; null without the check"
    ]


class FlowWindows(WindowedRun[FlowOfClip]):
    """Flow between all adjacent frames of a clip; the last frame repeats the previous flow, so the length stays T.

    `flow_of`: the method, for this clip. With `check`, it also gives the backward flow, and `Flow.valid` is true where
    both agree. `pairs_per_batch`: pairs are processed in multiples of this number, in windows as in a clip that is
    whole; the frames of an incomplete batch wait for the next window. The flow of a clip of one frame is zero.
    """

    def __init__(self, flow_of: AdjacentFlow, check: bool, pairs_per_batch: int = 1) -> None:
        self.flow_of, self.check, self.pairs_per_batch = flow_of, check, pairs_per_batch
        self.waiting: np.ndarray | None = None  # the last frame that has a flow, and those behind it
        self.last: Flow | None = None  # of one frame
        self.lengths_px: list[float] = []  # per pair: mean over the pixels
        self.times_s: list[np.ndarray] = []
        self.valid_pixels = 0

    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """See `WindowedRun.add`: the flow of all complete batches of pairs."""
        self.times_s.append(window.times_s[window.overlap_frames :])
        frames = window.frames if self.waiting is None else np.concatenate([self.waiting, window.new_frames])
        return self._process(frames, (len(frames) - 1) // self.pairs_per_batch * self.pairs_per_batch)

    def result(self) -> FlowOfClip:
        """See `WindowedRun.result`: the flow of the last batch, and of the last frame."""
        assert self.waiting is not None, "a clip has at least one frame"
        height_px, width_px = self.waiting.shape[1:3]
        rest = self._process(self.waiting, len(self.waiting) - 1)
        if self.last is None:
            list(self.flow_of(self.waiting))  # raises for frames that the method cannot process
            return FlowOfClip(Flow.from_pairs(np.empty((0, height_px, width_px, 2), np.float32)), 0.0, None)
        flow = Flow.joined([*rest.values(), self.last])
        length_px, times_s = np.array(self.lengths_px), np.concatenate(self.times_s)
        speed = float((length_px / np.diff(times_s)).mean() / float(np.hypot(height_px, width_px)))
        inconsistent = float(1.0 - self.valid_pixels / (len(length_px) * height_px * width_px)) if self.check else None
        return FlowOfClip(flow, speed, inconsistent)

    def _process(self, frames: np.ndarray, count: int) -> dict[str, Flow]:
        """The flow of the first `count` pairs; the frames behind them wait."""
        self.waiting = frames[count:].copy()
        if not count:
            return {}
        height_px, width_px = frames.shape[1:3]
        forward = np.empty((count, height_px, width_px, 2), np.float32)
        valid = np.empty((count, height_px, width_px, 1), bool) if self.check else None
        start = 0
        for there, back in self.flow_of(frames[: count + 1]):
            pairs = slice(start, start + len(there))
            forward[pairs] = there
            self.lengths_px += in_threads(_mean_length_px, forward[pairs])
            if valid is not None:
                assert back is not None, "the method gives the backward flow, too"
                valid[pairs, ..., 0] = in_threads(consistent, forward[pairs], back)
            start = pairs.stop
        if valid is not None:
            self.valid_pixels += int(np.count_nonzero(valid))
        self.last = Flow(forward[-1:].copy(), None if valid is None else valid[-1:].copy())
        return {"flow": Flow(forward, valid)}


def _mean_length_px(flow: np.ndarray) -> float:
    """Mean length of flow float32 [H, W, 2]."""
    return float(np.hypot(flow[..., 0], flow[..., 1]).mean(dtype=np.float64))


def consistent(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Forward-backward check by UnFlow's rule: bool [H, W], true where both flows agree.

    `forward`, `backward`: float32 [H, W, 2], pixels. False where |f + b'| > 0.01 (|f| + |b'|) + 0.5 px, with b' the
    backward flow sampled (bilinear) at the target of the forward flow; outside the frame b' is zero.
    """
    import cv2

    height_px, width_px = forward.shape[:2]
    x, y = np.meshgrid(np.arange(width_px, dtype=np.float32), np.arange(height_px, dtype=np.float32))
    to_x, to_y = x + forward[..., 0], y + forward[..., 1]
    back = cv2.remap(backward, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    lengths_px = cv2.magnitude(*cv2.split(forward)) + cv2.magnitude(*cv2.split(back))
    agrees: np.ndarray = cv2.magnitude(*cv2.split(forward + back)) <= UNFLOW_ALPHA * lengths_px + UNFLOW_BETA_PX
    return agrees

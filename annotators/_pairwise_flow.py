"""Shared by the optical-flow annotators: result columns, frame pairs, the forward-backward check."""

from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.windows import WindowedRun
from openuni.manifests.modalities.flow import Flow

PAIRS_AT_A_TIME = 32  # rounded to whole batches
UNFLOW_ALPHA = 0.01  # Meister et al. 2018 (arXiv:1711.07837): tolerance relative to the sum of both flow lengths ...
UNFLOW_BETA_PX = 0.5  # ... plus an absolute tolerance

# a function of frames uint8 [n, H, W, 3] that gives the flow between any two of them:
# int [m] first frames, int [m] second frames -> float32 [m, H, W, 2], pixels from first to second
PairFlow = Callable[[np.ndarray, np.ndarray], np.ndarray]
PairFlowOf = Callable[[np.ndarray], PairFlow]


class FlowOfClip(NamedTuple):
    """Forward flow of every frame to the next, and its agreement with the backward flow."""

    flow: Flow
    speed_diag_per_s: Annotated[float, "mean length of the flow, frame diagonals per second; 0 for a clip of one frame"]
    inconsistent_share: Annotated[
        float | None, "fraction of pixels that fail the forward-backward check, 0 to 1; null without the check"
    ]


class FlowWindows(WindowedRun[FlowOfClip]):
    """Flow between all adjacent frames of a clip; the last frame repeats the previous flow, so the length stays T.

    `pair_flow_of`: the method. With `check`, the backward flow is also computed and `Flow.valid` is true where both
    agree. `pairs_per_batch`: pairs are processed in multiples of this number, in windows as in a clip that is whole;
    the frames of an incomplete batch wait for the next window. The flow of a clip of one frame is zero.
    """

    def __init__(self, pair_flow_of: PairFlowOf, check: bool, pairs_per_batch: int = 1) -> None:
        self.pair_flow_of, self.check, self.pairs_per_batch = pair_flow_of, check, pairs_per_batch
        # more at once would take the memory of another clip: backward flow, lengths
        self.pairs_at_a_time = max(1, PAIRS_AT_A_TIME // pairs_per_batch) * pairs_per_batch
        self.waiting: np.ndarray | None = None  # the last frame that has a flow, and those behind it
        self.last: Flow | None = None  # of one frame
        self.lengths_px: list[np.ndarray] = []  # per pair: mean over the pixels
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
            self.pair_flow_of(self.waiting)  # raises for frames that the method cannot process
            return FlowOfClip(Flow.from_pairs(np.empty((0, height_px, width_px, 2), np.float32)), 0.0, None)
        flow = Flow.joined([*rest.values(), self.last])
        length_px, times_s = np.concatenate(self.lengths_px), np.concatenate(self.times_s)
        speed = float((length_px / np.diff(times_s)).mean() / float(np.hypot(height_px, width_px)))
        inconsistent = float(1.0 - self.valid_pixels / (len(length_px) * height_px * width_px)) if self.check else None
        return FlowOfClip(flow, speed, inconsistent)

    def _process(self, frames: np.ndarray, count: int) -> dict[str, Flow]:
        """The flow of the first `count` pairs; the frames behind them wait."""
        self.waiting = frames[count:].copy()
        if not count:
            return {}
        height_px, width_px = frames.shape[1:3]
        pair_flow = self.pair_flow_of(frames[: count + 1])
        forward = np.empty((count, height_px, width_px, 2), np.float32)
        valid = np.empty((count, height_px, width_px, 1), bool) if self.check else None
        for start in range(0, count, self.pairs_at_a_time):
            first = np.arange(start, min(start + self.pairs_at_a_time, count))
            there = forward[first[0] : first[-1] + 1]
            there[:] = pair_flow(first, first + 1)
            self.lengths_px.append(np.hypot(there[..., 0], there[..., 1]).mean(axis=(1, 2), dtype=np.float64))
            if valid is not None:
                for pair, back in enumerate(pair_flow(first + 1, first)):
                    valid[start + pair, ..., 0] = consistent(there[pair], back)
        if valid is not None:
            self.valid_pixels += int(np.count_nonzero(valid))
        self.last = Flow(forward[-1:].copy(), None if valid is None else valid[-1:].copy())
        return {"flow": Flow(forward, valid)}


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

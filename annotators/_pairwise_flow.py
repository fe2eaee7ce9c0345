"""Shared by the optical-flow annotators: result columns, frame pairs, the forward-backward check."""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.modalities.flow import Flow

UNFLOW_ALPHA = 0.01  # Meister et al. 2018 (arXiv:1711.07837): tolerance relative to the sum of both flow lengths ...
UNFLOW_BETA_PX = 0.5  # ... plus an absolute tolerance

# int [n] first frames, int [n] second frames -> float32 [n, H, W, 2], pixels from first to second
PairFlow = Callable[[np.ndarray, np.ndarray], np.ndarray]


class FlowOfClip(NamedTuple):
    """Forward flow of every frame to the next, and its agreement with the backward flow."""

    flow: Flow
    speed_diag_per_s: Annotated[float, "mean length of the flow, frame diagonals per second; 0 for a clip of one frame"]
    inconsistent_share: Annotated[
        float | None, "fraction of pixels that fail the forward-backward check, 0 to 1; null without the check"
    ]


def flow_of_clip(clip: DecodedClip, pair_flow: PairFlow, check: bool) -> FlowOfClip:
    """Flow between all adjacent frames of `clip`; the last frame repeats the previous flow, so the length stays T.

    With `check`, the backward flow is also computed and `Flow.valid` is true where both agree. The flow of a clip of
    one frame is zero.
    """
    count, height_px, width_px = clip.frames.shape[:3]
    first, second = np.arange(count - 1), np.arange(1, count)
    if not len(first):
        return FlowOfClip(Flow.from_pairs(np.empty((0, height_px, width_px, 2), np.float32)), 0.0, None)
    forward = pair_flow(first, second)
    valid, inconsistent = None, None
    if check:
        backward = pair_flow(second, first)
        agree = [consistent(there, back) for there, back in zip(forward, backward, strict=True)]
        valid = np.stack(agree)[..., None]
        inconsistent = float(1.0 - valid.mean())
    length_px = np.hypot(forward[..., 0], forward[..., 1]).mean(axis=(1, 2), dtype=np.float64)
    speed = float((length_px / np.diff(clip.times_s)).mean() / clip.diagonal_px)
    return FlowOfClip(Flow.from_pairs(forward, valid), speed, inconsistent)


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

"""What the optical-flow annotators share: columns, the order of pairs, the forward-backward check."""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.modalities.flow import Flow

UNFLOW_ALPHA = 0.01  # Meister et al. 2018 (arXiv:1711.07837): share of the two flows' lengths ...
UNFLOW_BETA_PX = 0.5  # ... plus this many pixels may disagree

# int [n] first frames, int [n] second frames -> float32 [n, H, W, 2], pixels from first to second
PairFlow = Callable[[np.ndarray, np.ndarray], np.ndarray]


class FlowOfClip(NamedTuple):
    """Forward flow of every frame to the next, and how far the backward flow agrees with it."""

    flow: Flow
    speed_diag_per_s: Annotated[float, "mean length of the flow, frame diagonals per second; 0 for a clip of one frame"]
    inconsistent_share: Annotated[
        float | None, "share of pixels whose forward and backward flow disagree, 0 to 1; null when not checked"
    ]


def flow_of_clip(clip: DecodedClip, pair_flow: PairFlow, check: bool) -> FlowOfClip:
    """Flow of all adjacent frames of `clip`; the last frame repeats the flow before it, so T stays the same.

    With `check`, the backward flow is computed too and `Flow.valid` says where both agree. A clip of one frame has
    nothing to measure: its flow is zero.
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
    """Where going there and back ends near the start: bool [H, W], by UnFlow's rule.

    `forward`, `backward`: float32 [H, W, 2], pixels. False where |f + b'| > 0.01 (|f| + |b'|) + 0.5 px, with b' the
    backward flow read (bilinear) where the forward flow points to; outside the frame b' is zero.
    """
    import cv2

    height_px, width_px = forward.shape[:2]
    x, y = np.meshgrid(np.arange(width_px, dtype=np.float32), np.arange(height_px, dtype=np.float32))
    to_x, to_y = x + forward[..., 0], y + forward[..., 1]
    back = cv2.remap(backward, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    lengths_px = cv2.magnitude(*cv2.split(forward)) + cv2.magnitude(*cv2.split(back))
    agrees: np.ndarray = cv2.magnitude(*cv2.split(forward + back)) <= UNFLOW_ALPHA * lengths_px + UNFLOW_BETA_PX
    return agrees

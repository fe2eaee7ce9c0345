"""Guide flow: fast optical flow without weights, computed once per clip and shared by annotators.

It is used to link masks over time and to measure temporal consistency. It is not stored.
"""

from typing import NamedTuple

import numpy as np

from openuni.annotators._dis_flow import dis_pair_flow
from openuni.annotators._pairwise_flow import consistent
from openuni.manifests.arrays.dense_inverse_search import fits_dis
from openuni.manifests.contracts.decoded_clip import DecodedClip

SHORT_SIDE_PX = 256


class GuideFlow(NamedTuple):
    """Optical flow between frames t and t + 1 of a clip, on frames downscaled to [h, w].

    `forward`, `backward`: float32 [T - 1, h, w, 2], pixels at this size, x to the right, y down; forward from t to
    t + 1, backward from t + 1 to t. `forward_valid`, `backward_valid`: bool [T - 1, h, w], where the forward-backward
    check (UnFlow's rule) passes: neither occluded nor out of view.
    """

    forward: np.ndarray
    backward: np.ndarray
    forward_valid: np.ndarray
    backward_valid: np.ndarray

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width."""
        return self.forward.shape[1], self.forward.shape[2]


def guide_flow(clip: DecodedClip, short_side_px: int = SHORT_SIDE_PX) -> GuideFlow:
    """DIS flow (preset medium) in both directions between adjacent frames, downscaled to `short_side_px`.

    Smaller frames are not scaled. For a clip of one frame, the arrays have length 0. For frames that DIS
    cannot process (a side below 8 px, or both sides below 12 px), the flow is zero and nowhere valid.
    """
    key = __name__, short_side_px
    if key not in clip.cache:
        clip.cache[key] = _computed(clip, short_side_px)
    found: GuideFlow = clip.cache[key]
    return found


def warp(values: np.ndarray, flow: np.ndarray, *, nearest: bool = False) -> np.ndarray:
    """Sample `values` of another frame at the position that `flow` maps each pixel of this frame to (backward warping).

    `values`: [h, w] or [h, w, C]; `flow`: float32 [h, w, 2] from this frame to that of `values`. Bilinear, or `nearest`
    for ids; 0 outside the frame.
    """
    import cv2

    height_px, width_px = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width_px, dtype=np.float32), np.arange(height_px, dtype=np.float32))
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    moved: np.ndarray = cv2.remap(
        values, x + flow[..., 0], y + flow[..., 1], how, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )
    return moved


def _computed(clip: DecodedClip, short_side_px: int) -> GuideFlow:
    import cv2

    count, height_px, width_px = clip.frames.shape[:3]
    scale = min(1.0, short_side_px / min(height_px, width_px))
    size = max(1, round(height_px * scale)), max(1, round(width_px * scale))
    if count < 2 or not fits_dis(*size):
        nothing = np.zeros((max(0, count - 1), *size), bool)
        at_rest = np.zeros((*nothing.shape, 2), np.float32)
        return GuideFlow(at_rest, at_rest, nothing, nothing)
    frames = clip.frames
    if size != (height_px, width_px):
        frames = np.stack([cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) for frame in frames])
    pair_flow = dis_pair_flow(frames, "medium")
    first, second = np.arange(count - 1), np.arange(1, count)
    forward, backward = pair_flow(first, second), pair_flow(second, first)
    pairs = list(zip(forward, backward, strict=True))
    there = np.stack([consistent(one, other) for one, other in pairs])
    back = np.stack([consistent(other, one) for one, other in pairs])
    return GuideFlow(forward, backward, there, back)

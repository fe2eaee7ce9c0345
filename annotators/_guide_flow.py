"""Guide flow: fast optical flow without weights, computed once per clip and shared by annotators.

It is used to link masks over time and to measure temporal consistency. It is not stored.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from openuni.annotators._dis_flow import dis_pair_flow
from openuni.annotators._pairwise_flow import consistent
from openuni.annotators._threads import in_threads
from openuni.manifests.arrays.dense_inverse_search import fits_dis
from openuni.manifests.contracts.decoded_clip import DecodedClip

SHORT_SIDE_PX = 256


@dataclass(frozen=True, eq=False)
class GuideFlow:
    """Optical flow between frames t and t + 1 of a clip, on frames downscaled to [h, w].

    `forward`, `backward`: float32 [T - 1, h, w, 2], pixels at this size, x to the right, y down; forward from t to
    t + 1, backward from t + 1 to t. `forward_valid`, `backward_valid`: bool [T - 1, h, w], where the forward-backward
    check (UnFlow's rule) passes: neither occluded nor out of view.
    """

    forward: np.ndarray
    backward: np.ndarray
    forward_valid: np.ndarray
    can_match: bool = True  # whether DIS can process frames of this size

    @cached_property
    def backward_valid(self) -> np.ndarray:
        """See the class. Computed when it is first needed: only propagation of masks does."""
        if not self.can_match:
            return np.zeros_like(self.forward_valid)
        return _all_consistent(self.backward, self.forward)

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


@contextmanager
def guide_flow_in_background(clip: DecodedClip) -> Iterator[None]:
    """Compute the guide flow in a thread while the body waits for a network; afterwards it is in the clip's cache.

    It takes the time of one clip's depth on a fast GPU, but none of the GPU.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="guide flow") as thread:
        started = thread.submit(guide_flow, clip)
        yield
    started.result()  # raises what failed


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
        return GuideFlow(at_rest, at_rest, nothing, can_match=False)
    frames = clip.frames
    if size != (height_px, width_px):
        frames = np.empty((count, *size, 3), np.uint8)
        in_threads(
            lambda frame, out: cv2.resize(frame, size[::-1], out, interpolation=cv2.INTER_AREA), clip.frames, frames
        )
    pair_flow = dis_pair_flow(frames, "medium")
    first, second = np.arange(count - 1), np.arange(1, count)
    forward, backward = pair_flow(first, second), pair_flow(second, first)
    return GuideFlow(forward, backward, _all_consistent(forward, backward))


def _all_consistent(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """The forward-backward check of all pairs: float32 [n, h, w, 2] each -> bool [n, h, w]."""
    return np.stack(in_threads(consistent, forward, backward))

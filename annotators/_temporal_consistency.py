"""Are maps steady along the motion of the picture? Scores of any dense map, by the flow that annotators share."""

from collections.abc import Callable

import numpy as np

from openuni.annotators._guide_flow import guide_flow, warp
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.normal import Normal

MIN_FOLLOWED_SHARE = 0.01  # of a frame's pixels: with fewer, a pair of frames says nothing
RANGE_PERCENTILES = (5.0, 95.0)
MAX_SAMPLES = 1_000_000  # of a clip's values, for its percentiles

# float32 [n, C] values here, [n, C] values of the next frame there -> float [n]: how far apart they are
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def warped_change(clip: DecodedClip, maps: Modality, distance: Distance) -> float | None:
    """How much `maps` change along the motion: mean over adjacent frames of the median `distance` over pixels.

    A pixel counts where the guide flow of the clip can be trusted (forward and backward agree); it is compared with the
    place in the next frame that it goes to, bilinear, on maps scaled to the flow's size. Pairs of frames with less than
    1 % of such pixels are left out; None when none is left.
    """
    flow = guide_flow(clip)
    if not len(flow.forward):
        return None
    array = maps.resize(*flow.size_px).array
    changes = []
    for now, after, forward, valid in zip(array, array[1:], flow.forward, flow.forward_valid, strict=False):
        if valid.mean() >= MIN_FOLLOWED_SHARE:
            there = warp(after, forward).reshape(after.shape)
            changes.append(float(np.median(distance(now[valid], there[valid]))))
    return float(np.mean(changes)) if changes else None


def depth_change_share(clip: DecodedClip, depth: Depth) -> float | None:
    """`warped_change` of the disparity (of metres: 1 / metres) as a share of the clip's range; None for a flat one.

    The range is from the 5th to the 95th percentile, so one scale and shift of a whole clip's disparity change nothing.
    """
    disparity = depth if depth.unit == "disparity" else Depth(1 / depth.array)
    step = max(1, disparity.array.size // MAX_SAMPLES)
    lo, hi = np.percentile(disparity.array.ravel()[::step], RANGE_PERCENTILES)
    change = warped_change(clip, disparity, lambda now, there: np.abs(now - there)[:, 0])
    return None if change is None or not hi > lo else float(change / (hi - lo))


def normal_change_deg(clip: DecodedClip, normal: Normal) -> float | None:
    """`warped_change` of the direction, degrees; a pixel that is no surface counts as one at right angles."""

    def angle_deg(now: np.ndarray, there: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(there, axis=-1)
        unit = np.divide(there, length[:, None], out=np.zeros_like(there), where=length[:, None] > 0)
        # of the chord, which is exact for small angles where the arc cosine is not
        chord = np.linalg.norm(now - unit, axis=-1).clip(0, 2)
        surface = (np.linalg.norm(now, axis=-1) > 0) & (length > 0)
        angles: np.ndarray = np.where(surface, np.degrees(2 * np.arcsin(chord / 2)), 90.0)
        return angles

    return warped_change(clip, normal, angle_deg)


def mean_change(now: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Mean absolute change over the channels: the distance for colours."""
    change: np.ndarray = np.abs(now - there).mean(axis=-1)
    return change

"""Temporal consistency scores of dense maps, measured along the guide flow."""

from collections.abc import Callable

import numpy as np

from openuni.annotators._guide_flow import guide_flow, warp
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.normal import Normal

MIN_FOLLOWED_SHARE = 0.01  # minimum fraction of pixels with valid flow for a frame pair to be measured
RANGE_PERCENTILES = (5.0, 95.0)
MAX_SAMPLES = 1_000_000  # maximum number of values for the percentiles

# values float32 [n, C], warped values of the next frame float32 [n, C] -> distance float [n]
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def warped_change(clip: DecodedClip, maps: Modality, distance: Distance) -> float | None:
    """Change of `maps` along the guide flow: mean over adjacent frames of the median `distance` over pixels.

    Maps are resized to the flow's size. Pixels with valid flow (forward and backward agree) are compared with the next
    frame, warped along the flow (bilinear). Frame pairs with less than 1 % of such pixels are skipped; None if no pair
    remains.
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
    """`warped_change` of the disparity (1 / metres for metric depth), relative to the clip's range; None if constant.

    The range is from the 5th to the 95th percentile, so the score is invariant to scale and shift of the disparity.
    """
    disparity = depth if depth.unit == "disparity" else Depth(1 / depth.array)
    step = max(1, disparity.array.size // MAX_SAMPLES)
    lo, hi = np.percentile(disparity.array.ravel()[::step], RANGE_PERCENTILES)
    change = warped_change(clip, disparity, lambda now, there: np.abs(now - there)[:, 0])
    return None if change is None or not hi > lo else float(change / (hi - lo))


def normal_change_deg(clip: DecodedClip, normal: Normal) -> float | None:
    """`warped_change` of the direction, degrees; a pixel without a surface counts as 90 degrees."""

    def angle_deg(now: np.ndarray, there: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(there, axis=-1)
        unit = np.divide(there, length[:, None], out=np.zeros_like(there), where=length[:, None] > 0)
        # from the chord length: accurate for small angles, unlike the arc cosine
        chord = np.linalg.norm(now - unit, axis=-1).clip(0, 2)
        surface = (np.linalg.norm(now, axis=-1) > 0) & (length > 0)
        angles: np.ndarray = np.where(surface, np.degrees(2 * np.arcsin(chord / 2)), 90.0)
        return angles

    return warped_change(clip, normal, angle_deg)


def mean_change(now: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Mean absolute difference over the channels, the distance for colours."""
    change: np.ndarray = np.abs(now - there).mean(axis=-1)
    return change

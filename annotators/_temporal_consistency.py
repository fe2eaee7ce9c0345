"""Temporal consistency scores of dense maps, measured along the guide flow."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from openuni.annotators._guide_flow import guide_flow, warp
from openuni.annotators._threads import in_threads
from openuni.manifests.arrays.streaming_mean import StreamingMean
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.normal import Normal

MIN_FOLLOWED_SHARE = 0.01  # minimum fraction of pixels with valid flow for a frame pair to be measured
RANGE_PERCENTILES = (5.0, 95.0)
MAX_SAMPLES = 1_000_000  # maximum number of values for the percentiles

# values float32 [n, C], warped values of the next frame float32 [n, C] -> distance float [n]
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


class WarpedChange:
    """Change of maps along the guide flow: mean over adjacent frames of the median `distance` over pixels.

    Maps are resized to the flow's size. Pixels with valid flow (forward and backward agree) are compared with the next
    frame, warped along the flow (bilinear). Frame pairs with less than 1 % of such pixels are skipped.
    """

    def __init__(self, distance: Distance) -> None:
        self.distance = distance
        self.last: np.ndarray | None = None  # map of the last frame, resized, [1, h, w, C]
        self.changes: list[float] = []

    def add(self, window: DecodedClip, maps: Modality) -> None:
        """Add the maps of the window's new frames."""
        flow = guide_flow(window)
        array = maps.resize(*flow.size_px).array
        if self.last is not None:
            array = np.concatenate([self.last, array])
        self.last = array[-1:].copy()
        changes = in_threads(self._change, array[:-1], array[1:], flow.forward, flow.forward_valid)
        self.changes += [change for change in changes if change is not None]

    def _change(self, now: np.ndarray, after: np.ndarray, forward: np.ndarray, valid: np.ndarray) -> float | None:
        """Change between two maps [h, w, C]; None for too few pixels with valid flow."""
        if valid.mean() < MIN_FOLLOWED_SHARE:
            return None
        there = warp(after, forward).reshape(after.shape)
        return float(np.median(self.distance(now[valid], there[valid])))

    def mean(self) -> float | None:
        """The score; None if no frame pair remains."""
        return float(np.mean(self.changes)) if self.changes else None


class FrameChange:
    """Change between adjacent frames of maps that come in windows, without following any motion."""

    def __init__(self) -> None:
        self.total = StreamingMean()
        self.last: np.ndarray | None = None  # values of the last frame, [H, W]
        self.changes: list[float] = []  # mean absolute change of each pair of frames

    def add(self, values: np.ndarray) -> None:
        """Add the values of the next frames, float32 [T, H, W]."""
        self.total.add(values)
        if self.last is not None:
            self.changes.append(float(np.abs(values[0] - self.last).mean()))
        self.changes += [float(np.abs(after - before).mean()) for before, after in pairwise(values)]
        self.last = values[-1].copy()

    def ratio(self) -> float | None:
        """Mean absolute change divided by the mean value; None for one frame, or if that mean is 0."""
        mean = self.total.mean()
        return float(np.mean(self.changes)) / mean if self.changes and mean else None


def warped_change(clip: DecodedClip, maps: Modality, distance: Distance) -> float | None:
    """`WarpedChange` of the maps of a clip that is whole."""
    change = WarpedChange(distance)
    change.add(clip, maps)
    return change.mean()


class DepthChange:
    """`WarpedChange` of the disparity (1 / metres for metric depth), relative to the clip's range; None if constant.

    The range is from the 5th to the 95th percentile, so the score is invariant to scale and shift of the disparity.
    """

    def __init__(self) -> None:
        self.change = WarpedChange(lambda now, there: np.abs(now - there)[:, 0])
        self.values = 0
        self.samples: list[np.ndarray] = []

    def add(self, window: DecodedClip, depth: Depth) -> None:
        """Add the depth of the window's new frames."""
        disparity = depth if depth.unit == "disparity" else Depth(1 / depth.array)
        # of a whole clip the frames may be fewer than the row says: those of a part of it
        total = disparity.array[0].size * (window.clip.frame_count if window.is_window else len(disparity.array))
        step = max(1, total // MAX_SAMPLES)
        self.samples.append(disparity.array.reshape(-1)[-self.values % step :: step].copy())
        self.values += disparity.array.size
        self.change.add(window, disparity)

    def share(self) -> float | None:
        """The score."""
        lo, hi = np.percentile(np.concatenate(self.samples), RANGE_PERCENTILES)
        change = self.change.mean()
        return None if change is None or not hi > lo else float(change / (hi - lo))


def depth_change_share(clip: DecodedClip, depth: Depth) -> float | None:
    """`DepthChange` of the depth of a clip that is whole."""
    change = DepthChange()
    change.add(clip, depth)
    return change.share()


def normal_change_deg(clip: DecodedClip, normal: Normal) -> float | None:
    """`WarpedChange` of the direction, degrees, of a clip that is whole."""
    return warped_change(clip, normal, normal_angle_deg)


def normal_angle_deg(now: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Angle between normals, degrees, the distance for normals; 90 degrees for a pixel without a surface."""
    length = np.linalg.norm(there, axis=-1)
    unit = np.divide(there, length[:, None], out=np.zeros_like(there), where=length[:, None] > 0)
    # from the chord length: accurate for small angles, unlike the arc cosine
    chord = np.linalg.norm(now - unit, axis=-1).clip(0, 2)
    surface = (np.linalg.norm(now, axis=-1) > 0) & (length > 0)
    angles: np.ndarray = np.where(surface, np.degrees(2 * np.arcsin(chord / 2)), 90.0)
    return angles


def mean_change(now: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Mean absolute difference over the channels, the distance for colours."""
    change: np.ndarray = np.abs(now - there).mean(axis=-1)
    return change

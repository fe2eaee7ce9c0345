"""Instances over time: merging overlapping masks into label maps, and linking instances between keyframes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from openuni.annotators._automatic_masks import Masks
from openuni.manifests.arrays.assignment import linear_assignment
from openuni.manifests.arrays.resample import resize_nearest

OverlapPriority = Literal["small", "large", "confident"]

COLOUR_BINS = 16  # per channel
MIN_SIMILARITY = 0.2  # minimum `appearance_similarity` for re-identification
COASTING_SHARE = 0.5  # minimum visible fraction of the area for an undetected instance to persist
HIDDEN_SHARE = 0.5  # below this fraction of its last area, an instance is occluded and its appearance is not updated
WHOLE_SHARE = 0.7  # minimum area ratio for the displacement of the centres to be a better velocity than the flow
TIME_SLACK_S = 1e-6  # rounding tolerance for frame times


class FrameInstances(NamedTuple):
    """The instances of one frame, without overlap."""

    labels: np.ndarray  # uint16 [H, W]: 0 is background, n is row n - 1 of `predicted_iou`
    predicted_iou: np.ndarray  # float64 [N], about 0 to 1

    @property
    def total(self) -> int:
        """Number of instances."""
        return len(self.predicted_iou)


def keyframe_indices(times_s: np.ndarray, every_s: float) -> np.ndarray:
    """Keyframe indices, int64, increasing: first and last frame, and enough in between for at most `every_s` seconds.

    `times_s`: float64 [T], increasing. Keyframes are evenly spaced: the last interval is not shorter than the others.
    """
    steps = int(np.ceil((times_s[-1] - times_s[0]) / every_s - 1e-9))
    wanted = np.linspace(times_s[0], times_s[-1], steps + 1) if steps else times_s[:1]
    return np.unique(np.abs(times_s[:, None] - wanted).argmin(axis=0)).astype(np.int64)


def merge_masks(masks: Masks, overlap_priority: OverlapPriority, min_share: float, max_share: float) -> FrameInstances:
    """Merge overlapping masks into one label map, by `overlap_priority`: small, large or confident masks on top.

    Masks larger than `max_share` of the frame and masks with a visible area below `min_share` of it are discarded.
    The result does not depend on the order of the masks.
    """
    size = masks.masks.shape[1:]
    areas = np.array([np.count_nonzero(mask) for mask in masks.masks], np.int64)
    rows = np.flatnonzero((areas > 0) & (areas <= max_share * size[0] * size[1]))
    first = [int(np.argmax(masks.masks[row])) for row in rows]  # tie-break: the uppermost first
    rank = {"small": -areas[rows], "large": areas[rows], "confident": masks.predicted_iou[rows]}[overlap_priority]
    rows = rows[np.lexsort((-np.array(first, np.int64), masks.predicted_iou[rows], rank))]  # painted last is on top
    labels = _painted(masks.masks, rows, size)
    seen = np.bincount(labels.ravel(), minlength=len(rows) + 1)[1:]
    kept = seen >= max(1.0, min_share * size[0] * size[1])
    if not kept.all():  # what was below the others is seen then
        labels = _painted(masks.masks, rows[kept], size)
    return FrameInstances(labels, masks.predicted_iou[rows[kept]])


def largest(found: FrameInstances, count: int) -> FrameInstances:
    """Keep the `count` largest instances; ties are broken by predicted IoU, then by position (uppermost first)."""
    areas = np.bincount(found.labels.ravel(), minlength=found.total + 1)[1:]
    first = np.zeros(found.total + 1, np.int64)
    first[found.labels.ravel()[::-1]] = np.arange(found.labels.size)[::-1]  # of equal indices the last one is assigned
    kept = np.lexsort((first[1:], -found.predicted_iou, -areas))[:count]
    numbers = np.zeros(found.total, np.int64)
    numbers[kept] = np.arange(1, len(kept) + 1)
    return FrameInstances(renamed(found.labels, numbers.tolist()), found.predicted_iou[kept])


def _painted(masks: np.ndarray, rows: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Label map of masks bool [N, H, W]: mask `rows[n - 1]` has label n, later ones are on top."""
    labels = np.zeros(size, np.uint16)
    for number, row in enumerate(rows, 1):
        np.copyto(labels, np.uint16(number), where=masks[row])
    return labels


def joint(one: np.ndarray, other: np.ndarray, shape: tuple[int, int], where: np.ndarray | None = None) -> np.ndarray:
    """Joint histogram of the labels a of `one` and b of `other`, both uint16 [H, W]: pixel counts int64 `shape`.

    `shape`: number of labels of each, including 0. `where`: bool [H, W], pixels to count; None for all.
    """
    a, b = (labels.ravel() if where is None else labels[where] for labels in (one, other))
    return np.bincount(a.astype(np.int64) * shape[1] + b, minlength=shape[0] * shape[1]).reshape(shape)


def iou_of(counts: np.ndarray) -> np.ndarray:
    """IoU of every pair of labels, float64 [A, B], from a joint histogram (of one frame, or summed over several).

    Row and column 0 (background) are 0.
    """
    union = counts.sum(axis=1)[:, None] + counts.sum(axis=0)[None] - counts
    iou: np.ndarray = counts / np.maximum(union, 1)
    iou[0], iou[:, 0] = 0, 0
    return iou


class Appearance(NamedTuple):
    """Position, velocity and colour histogram of an instance in a frame."""

    area_px: int
    centre_px: np.ndarray  # float64 [2]: x, y
    motion_px_per_s: np.ndarray  # float64 [2]: x, y
    colours: np.ndarray  # float64 [3, COLOUR_BINS]: normalized histogram per channel


def appearances(found: FrameInstances, frame: np.ndarray, motion_px_per_s: np.ndarray) -> list[Appearance]:
    """Appearance of every instance of a frame, uint8 [H, W, 3] RGB.

    `motion_px_per_s`: float32 [h, w, 2], in pixels of the frame. An instance's velocity is the median over its pixels,
    which is robust to errors at its edges.
    """
    height_px, width_px = found.labels.shape
    labels, count = found.labels.astype(np.intp), found.total
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    places = np.arange(width_px, dtype=np.float64), np.arange(height_px, dtype=np.float64)[:, None]  # x, y
    centres = [
        np.bincount(labels.ravel(), np.broadcast_to(place, labels.shape).ravel(), count + 1) / np.maximum(areas, 1)
        for place in places
    ]
    labels *= COLOUR_BINS
    bins = frame // (256 // COLOUR_BINS)
    colours = np.stack(
        [
            np.bincount((labels + bins[..., channel]).ravel(), minlength=(count + 1) * COLOUR_BINS).reshape(
                count + 1, COLOUR_BINS
            )
            for channel in range(3)
        ],
        axis=1,
    ) / np.maximum(areas, 1).reshape(-1, 1, 1)
    small = resize_nearest(found.labels[None, ..., None], *motion_px_per_s.shape[:2])[0, ..., 0].ravel()
    ends = np.cumsum(np.bincount(small, minlength=count + 1))  # of each label among the sorted pixels
    sorted_moves = motion_px_per_s.reshape(-1, 2)[np.argsort(small, kind="stable")]
    looks = []
    for number in range(1, count + 1):
        moves = sorted_moves[ends[number - 1] : ends[number]]
        motion = np.median(moves, axis=0).astype(np.float64) if len(moves) else np.zeros(2)
        centre = np.array([centres[0][number], centres[1][number]])
        looks.append(Appearance(int(areas[number]), centre, motion, colours[number]))
    return looks


@dataclass
class Track:
    """One instance over the clip."""

    number: int
    looks: Appearance  # at the last detection without occlusion
    looks_s: float  # time of `looks`
    found_s: float  # time of the last detection
    seen_s: float  # time at which it was last visible
    predicted_iou: list[float]


class Tracks:
    """The instances of a clip, linked from keyframe to keyframe.

    Detected masks are linked to propagated masks by IoU (at least `min_iou`, Hungarian assignment). Unlinked detections
    are re-identified by position (extrapolated), size and colours among instances that were visible at most `max_gap_s`
    ago. All others start a new instance. An instance that is not detected although most of it is still visible
    persists with its propagated mask for at most `max_gap_s`.
    """

    def __init__(self, min_iou: float, max_gap_s: float) -> None:
        self.min_iou, self.max_gap_s = min_iou, max_gap_s
        self.known: dict[int, Track] = {}
        self.in_sight: set[int] = set()
        self.relinked = 0  # number of re-identified instances
        self.link_iou: list[tuple[float, int]] = []  # IoU and area in pixels of every link
        self.later_px = 0  # total area of detections in keyframes after the first
        self.unlinked_px = 0  # part of it that started new instances

    def start(self, found: FrameInstances, looks: Sequence[Appearance], time_s: float) -> np.ndarray:
        """Start a track for every instance of the first keyframe. Returns its map of track numbers, uint16 [H, W]."""
        numbers = [self._new(looks[row], found.predicted_iou[row], time_s) for row in range(found.total)]
        self.in_sight = set(numbers)
        return renamed(found.labels, numbers)

    def link(
        self,
        found: FrameInstances,
        looks: Sequence[Appearance],
        carried: np.ndarray,
        affinity: np.ndarray,
        time_s: float,
    ) -> np.ndarray:
        """Link the instances of the next keyframe. Returns its map of track numbers, uint16 [H, W].

        `carried`: uint16 [H, W], track numbers propagated from the previous keyframe, 0 where the flow is not valid.
        `affinity`: float64 [1 + found, 1 + known], overlap of detected label n with track m.
        """
        numbers = [0] * found.total
        self._link_by_overlap(numbers, looks, affinity)
        self._link_by_looks(numbers, looks, time_s)
        coasting = self._persisting(found, carried, self.in_sight - set(numbers), time_s)
        for row, number in enumerate(numbers):
            self.later_px += looks[row].area_px
            if number:
                self._found_again(self.known[number], looks[row], found.predicted_iou[row], time_s)
            else:
                self.unlinked_px += looks[row].area_px
                numbers[row] = self._new(looks[row], found.predicted_iou[row], time_s)
        for number in coasting:
            self.known[number].seen_s = time_s
        self.in_sight = {*numbers, *coasting}
        merged = renamed(found.labels, numbers)
        return np.where((merged == 0) & np.isin(carried, sorted(coasting)), carried, merged)

    def _link_by_overlap(self, numbers: list[int], looks: Sequence[Appearance], affinity: np.ndarray) -> None:
        candidates = sorted(self.in_sight)
        table = affinity[1:, candidates]
        for row, column in linear_assignment(table, self.min_iou):
            numbers[row] = candidates[column]
            self.link_iou.append((float(table[row, column]), looks[row].area_px))

    def _persisting(self, found: FrameInstances, carried: np.ndarray, unmatched: set[int], time_s: float) -> set[int]:
        """Undetected tracks that persist: most of each is still visible and not covered by another detection."""
        left = np.bincount(carried[found.labels == 0], minlength=len(self.known) + 1)
        return {
            number
            for number in unmatched
            if time_s - self.known[number].found_s <= self.max_gap_s + TIME_SLACK_S
            and left[number] >= COASTING_SHARE * self.known[number].looks.area_px
        }

    def _link_by_looks(self, numbers: list[int], looks: Sequence[Appearance], time_s: float) -> None:
        """Re-identify detections without overlap: lost instances, and instances whose propagated masks drifted."""
        candidates = [
            track
            for track in self.known.values()
            if track.number not in numbers and time_s - track.seen_s <= self.max_gap_s + TIME_SLACK_S
        ]
        rows = [row for row, number in enumerate(numbers) if not number]
        table = np.array([[appearance_similarity(looks[row], track, time_s) for track in candidates] for row in rows])
        for place, column in linear_assignment(table.reshape(len(rows), len(candidates)), MIN_SIMILARITY):
            numbers[rows[place]] = candidates[column].number
            self.relinked += candidates[column].number not in self.in_sight

    def _new(self, looks: Appearance, predicted_iou: float, time_s: float) -> int:
        number = len(self.known) + 1
        self.known[number] = Track(number, looks, time_s, time_s, time_s, [float(predicted_iou)])
        return number

    def _found_again(self, track: Track, looks: Appearance, predicted_iou: float, time_s: float) -> None:
        track.predicted_iou.append(float(predicted_iou))
        track.found_s = track.seen_s = time_s
        old = time_s - track.looks_s > self.max_gap_s
        if old or looks.area_px >= HIDDEN_SHARE * track.looks.area_px:
            small, large = sorted((looks.area_px, track.looks.area_px))
            if not old and small >= WHOLE_SHARE * large:
                way_px = looks.centre_px - track.looks.centre_px
                looks = looks._replace(motion_px_per_s=way_px / (time_s - track.looks_s))
            track.looks, track.looks_s = looks, time_s


def appearance_similarity(looks: Appearance, track: Track, time_s: float) -> float:
    """Similarity of a detection and a lost track, 0 to 1: position x square root of the area ratio x colour overlap.

    The position term is exp(-d^2 / (s^2 + (w / 2)^2)): d is the distance to the extrapolated position, s the root of
    the larger area, w the extrapolated displacement, with which the uncertainty grows.
    """
    way_px = track.looks.motion_px_per_s * (time_s - track.looks_s)
    away = ((looks.centre_px - track.looks.centre_px - way_px) ** 2).sum()
    small, large = sorted((looks.area_px, track.looks.area_px))
    reach = large + (way_px**2).sum() / 4
    colours = np.minimum(looks.colours, track.looks.colours).sum(axis=1).mean()
    return float(np.exp(-away / reach) * (small / large) ** 0.5 * colours)


def renamed(labels: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """Relabel uint16 [H, W]: label n becomes the nth of `numbers`; 0 stays 0."""
    return np.array([0, *numbers], np.uint16)[labels]

"""Instances over time: from overlapping masks to maps of ids, and which instance of one frame is which of another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from openuni.annotators._automatic_masks import Masks
from openuni.manifests.arrays.assignment import linear_assignment
from openuni.manifests.arrays.resample import resize_nearest

OverlapPriority = Literal["small", "large", "confident"]

COLOUR_BINS = 16  # per channel
MIN_SIMILARITY = 0.2  # of a lost instance and one that turns up, see `appearance_similarity`
COASTING_SHARE = 0.5  # of its area must still be in sight, for an instance that the network misses to go on
HIDDEN_SHARE = 0.5  # of its area: with less in sight, an instance is being hidden and its looks say little
WHOLE_SHARE = 0.7  # of two areas: alike enough for the way between the centres to be a better motion than the flow's
TIME_SLACK_S = 1e-6  # for sums of frame times


class FrameInstances(NamedTuple):
    """The instances of one frame, none over another."""

    labels: np.ndarray  # uint16 [H, W]: 0 is none, n is row n - 1 of `predicted_iou`
    predicted_iou: np.ndarray  # float64 [N], about 0 to 1

    @property
    def total(self) -> int:
        """How many there are."""
        return len(self.predicted_iou)


def keyframe_indices(times_s: np.ndarray, every_s: float) -> np.ndarray:
    """Indices, int64, increasing: the first frame, the last, and so many between that none is farther apart than asked.

    `times_s`: float64 [T], increasing. Evenly spread, so the last stretch is not shorter than the others.
    """
    steps = int(np.ceil((times_s[-1] - times_s[0]) / every_s - 1e-9))
    wanted = np.linspace(times_s[0], times_s[-1], steps + 1) if steps else times_s[:1]
    return np.unique(np.abs(times_s[:, None] - wanted).argmin(axis=0)).astype(np.int64)


def merge_masks(masks: Masks, on_top: OverlapPriority, least_share: float, most_share: float) -> FrameInstances:
    """Overlapping masks as one map. Where two overlap, the `on_top` one is seen: the smaller, larger, more confident.

    Masks larger than `most_share` of the frame, and those of which less than `least_share` stays in sight, are left
    out. The order in which masks come changes nothing.
    """
    size = masks.masks.shape[1:]
    areas = masks.masks.sum(axis=(1, 2))
    rows = np.flatnonzero((areas > 0) & (areas <= most_share * size[0] * size[1]))
    first = [int(np.argmax(masks.masks[row])) for row in rows]  # of two alike in all else, the upper one
    rank = {"small": -areas[rows], "large": areas[rows], "confident": masks.predicted_iou[rows]}[on_top]
    rows = rows[np.lexsort((-np.array(first, np.int64), masks.predicted_iou[rows], rank))]  # painted last: seen
    seen = np.bincount(_painted(masks.masks[rows], size).ravel(), minlength=len(rows) + 1)[1:]
    rows = rows[seen >= max(1.0, least_share * size[0] * size[1])]
    return FrameInstances(_painted(masks.masks[rows], size), masks.predicted_iou[rows])


def largest(found: FrameInstances, count: int) -> FrameInstances:
    """Only the `count` largest instances; of two equally large, the surer, then the one that is farther up."""
    areas = np.bincount(found.labels.ravel(), minlength=found.total + 1)[1:]
    first = [int(np.argmax(found.labels == number)) for number in range(1, found.total + 1)]
    kept = np.lexsort((np.array(first, np.int64), -found.predicted_iou, -areas))[:count]
    numbers = np.zeros(found.total, np.int64)
    numbers[kept] = np.arange(1, len(kept) + 1)
    return FrameInstances(renamed(found.labels, numbers.tolist()), found.predicted_iou[kept])


def _painted(masks: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    labels = np.zeros(size, np.uint16)
    for number, mask in enumerate(masks, 1):
        labels[mask] = number
    return labels


def joint(one: np.ndarray, other: np.ndarray, shape: tuple[int, int], where: np.ndarray | None = None) -> np.ndarray:
    """How many pixels have label a in `one` and b in `other`, both uint16 [H, W]: int64 `shape`.

    `shape`: how many labels each may have, with 0. `where`: bool [H, W], the pixels that count; None for all.
    """
    a, b = (labels.ravel() if where is None else labels[where] for labels in (one, other))
    return np.bincount(a.astype(np.int64) * shape[1] + b, minlength=shape[0] * shape[1]).reshape(shape)


def iou_of(counts: np.ndarray) -> np.ndarray:
    """float64 [A, B], IoU of every pair of labels, from `joint`'s counts of one or (as a sum) several frames.

    Row and column 0 (no instance) are 0.
    """
    union = counts.sum(axis=1)[:, None] + counts.sum(axis=0)[None] - counts
    iou: np.ndarray = counts / np.maximum(union, 1)
    iou[0], iou[:, 0] = 0, 0
    return iou


class Appearance(NamedTuple):
    """Where an instance is in a frame, where it goes, and its colours."""

    area_px: int
    centre_px: np.ndarray  # float64 [2]: x, y
    motion_px_per_s: np.ndarray  # float64 [2]: x, y
    colours: np.ndarray  # float64 [3, COLOUR_BINS]: per channel, the shares of its pixels


def appearances(found: FrameInstances, frame: np.ndarray, motion_px_per_s: np.ndarray) -> list[Appearance]:
    """Of every instance of a frame, uint8 [H, W, 3] RGB; `motion_px_per_s`: float32 [h, w, 2], of the frame's pixels.

    The motion of an instance is the median over its pixels, so that its edges do not count.
    """
    height_px, width_px = found.labels.shape
    labels, count = found.labels.astype(np.int64), found.total
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    y, x = np.mgrid[:height_px, :width_px]
    centres = [np.bincount(labels.ravel(), axis.ravel(), count + 1) / np.maximum(areas, 1) for axis in (x, y)]
    colours = np.stack(
        [
            np.bincount(
                (labels * COLOUR_BINS + frame[..., channel] // (256 // COLOUR_BINS)).ravel(),
                minlength=(count + 1) * COLOUR_BINS,
            ).reshape(count + 1, COLOUR_BINS)
            for channel in range(3)
        ],
        axis=1,
    ) / np.maximum(areas, 1).reshape(-1, 1, 1)
    small = resize_nearest(found.labels[None, ..., None], *motion_px_per_s.shape[:2])[0, ..., 0]
    looks = []
    for number in range(1, count + 1):
        moves = motion_px_per_s[small == number]
        motion = np.median(moves, axis=0).astype(np.float64) if len(moves) else np.zeros(2)
        centre = np.array([centres[0][number], centres[1][number]])
        looks.append(Appearance(int(areas[number]), centre, motion, colours[number]))
    return looks


@dataclass
class Track:
    """One instance over the clip."""

    number: int
    looks: Appearance  # when the network last found it, unless it was being hidden then
    looks_s: float  # the instant of `looks`
    found_s: float  # when the network last found it
    seen_s: float  # when it was last in sight
    predicted_iou: list[float]


class Tracks:
    """The instances of a clip, told apart from key frame to key frame.

    An instance found in a key frame is the one whose mask, carried there, it overlaps best (`min_iou`, pairs chosen
    together by the Hungarian method). What overlaps none is the one it is like in place (its motion continued), size
    and colours, if that was in sight at most `max_gap_s` ago. All else is new. An instance that the network misses
    though most of it is still in sight goes on as it was carried, for at most `max_gap_s`.
    """

    def __init__(self, min_iou: float, max_gap_s: float) -> None:
        self.min_iou, self.max_gap_s = min_iou, max_gap_s
        self.known: dict[int, Track] = {}
        self.in_sight: set[int] = set()
        self.relinked = 0  # instances taken up again that were out of sight at a key frame
        self.link_iou: list[tuple[float, int]] = []  # of every link: the IoU, and the area in pixels
        self.later_px = 0  # found in key frames after the first, pixels
        self.unlinked_px = 0  # of these, what is no known instance

    def start(self, found: FrameInstances, looks: Sequence[Appearance], time_s: float) -> np.ndarray:
        """The instances of the first key frame: all are new. Returns the map of track numbers, uint16 [H, W]."""
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
        """The next key frame. Returns its map of track numbers, uint16 [H, W].

        `carried`: uint16 [H, W], track numbers carried here from the key frame before, 0 where that is not sure.
        `affinity`: float64 [1 + found, 1 + known], how well found label n overlaps track m.
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
        """Which instances that were not found go on: most of each is still in sight, and was found as nothing else."""
        left = np.bincount(carried[found.labels == 0], minlength=len(self.known) + 1)
        return {
            number
            for number in unmatched
            if time_s - self.known[number].found_s <= self.max_gap_s + TIME_SLACK_S
            and left[number] >= COASTING_SHARE * self.known[number].looks.area_px
        }

    def _link_by_looks(self, numbers: list[int], looks: Sequence[Appearance], time_s: float) -> None:
        """What overlaps nothing: instances that are lost, and those whose masks were carried astray."""
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
    """How much what turns up resembles a lost instance, 0 to 1: place, root of the ratio of areas, and colours.

    Place is exp(-d^2 / (s^2 + (w / 2)^2)): d is the distance from where its motion would have brought it, s the root of
    the larger area, w the way that it would have gone: the longer that is, the less certain is the place.
    """
    way_px = track.looks.motion_px_per_s * (time_s - track.looks_s)
    away = ((looks.centre_px - track.looks.centre_px - way_px) ** 2).sum()
    small, large = sorted((looks.area_px, track.looks.area_px))
    reach = large + (way_px**2).sum() / 4
    colours = np.minimum(looks.colours, track.looks.colours).sum(axis=1).mean()
    return float(np.exp(-away / reach) * (small / large) ** 0.5 * colours)


def renamed(labels: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """Label n of uint16 [H, W] becomes the nth of `numbers`; 0 stays 0."""
    return np.array([0, *numbers], np.uint16)[labels]

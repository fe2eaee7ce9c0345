"""Tracking of persons: detections of single frames are linked through a clip by box and pose."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from openuni.manifests.arrays.assignment import linear_assignment

SURE = 0.3  # minimum confidence of a point
BODY = slice(0, 23)  # of the 133 points: body and feet; the face and hands have many more points and would dominate
MIN_POINTS = 3
REACH = 0.1  # standard deviation of point distances, relative to the person's size (square root of the box area)
MIN_SIMILARITY = 0.2  # minimum `pose_similarity`


class Persons(NamedTuple):
    """Detections of one frame: boxes float32 [n, 4] (left, top, right, bottom in pixels) and points [n, 133, 3]."""

    boxes: np.ndarray
    points: np.ndarray


@dataclass
class _Track:
    """State of one tracked person."""

    number: int
    box: np.ndarray
    points: np.ndarray
    time_s: float
    speed_px: np.ndarray  # velocity of the box centre, x and y, pixels per second

    def follow(self, box: np.ndarray, points: np.ndarray, time_s: float) -> None:
        """Update the track with a new detection. The velocity is the mean of the new and the previous estimate."""
        moved = (box[:2] + box[2:] - self.box[:2] - self.box[2:]) / 2
        self.speed_px = (self.speed_px + moved / (time_s - self.time_s)) / 2
        self.box, self.points, self.time_s = box, points, time_s

    def likeness(self, box: np.ndarray, points: np.ndarray, time_s: float) -> float:
        """Similarity to a detection at `time_s`: the higher of those at the last and at the extrapolated position."""
        shift = self.speed_px * (time_s - self.time_s)
        moved = self.points + np.array([*shift, 0])
        return max(
            pose_similarity(self.box, self.points, box, points),
            pose_similarity(self.box + np.tile(shift, 2), moved, box, points),
        )


def track_identities(found: Sequence[Persons], times_s: np.ndarray, max_gap_s: float) -> list[np.ndarray]:
    """Track number of each detected person, int64 [n] per frame; numbers count from 0 in order of appearance.

    Detections are first matched to tracks of the previous frame, then to tracks that were lost for at most `max_gap_s`
    seconds; the others start new tracks. Each matching maximizes the total similarity.
    `times_s`: float64 [T], increasing.
    """
    tracks: list[_Track] = []
    numbers = []
    before_s = -np.inf
    for persons, time_s in zip(found, times_s.tolist(), strict=True):
        mine = np.full(len(persons.boxes), -1, np.int64)
        there = [track for track in tracks if track.time_s == before_s]
        lost = [track for track in tracks if track.time_s != before_s and time_s - track.time_s <= max_gap_s]
        for known in (there, lost):
            free = np.flatnonzero(mine < 0)
            alike = np.array([[track.likeness(*_one(persons, place), time_s) for place in free] for track in known])
            for row, column in linear_assignment(alike.reshape(len(known), len(free)), MIN_SIMILARITY):
                known[row].follow(*_one(persons, free[column]), time_s)
                mine[free[column]] = known[row].number
        for place in np.flatnonzero(mine < 0):
            tracks.append(_Track(len(tracks), *_one(persons, place), time_s, np.zeros(2)))
            mine[place] = tracks[-1].number
        numbers.append(mine)
        before_s = time_s
    return numbers


def _one(persons: Persons, place: np.integer) -> tuple[np.ndarray, np.ndarray]:
    return persons.boxes[place].astype(np.float64), persons.points[place].astype(np.float64)


def pose_similarity(box: np.ndarray, points: np.ndarray, other_box: np.ndarray, other_points: np.ndarray) -> float:
    """Similarity of two persons, 0..1: the mean of the IoU of their boxes and the proximity of their body points.

    Only points that are confident in both are used; with fewer than three, the similarity is the IoU alone.
    """
    overlap = box_overlap(box, other_box)
    sure = (points[BODY, 2] >= SURE) & (other_points[BODY, 2] >= SURE)
    if sure.sum() < MIN_POINTS:
        return overlap
    size_px = np.sqrt(np.sqrt(_area(box) * _area(other_box)))
    off = np.linalg.norm(points[BODY, :2][sure] - other_points[BODY, :2][sure], axis=1) / max(size_px, 1e-6)
    return float((overlap + np.exp(-np.square(off / REACH) / 2).mean()) / 2)


def box_overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union."""
    common = np.clip(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0, None).prod()
    return float(common / max(_area(box) + _area(other) - common, 1e-6))


def _area(box: np.ndarray) -> float:
    return float((box[2:] - box[:2]).prod())

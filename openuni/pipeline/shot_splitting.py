"""From transitions to clips: what holds for all shot detectors. Exact in the timestamps of the film."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from openuni.config.recipe import IngestOptions
from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.errors import ClipError
from openuni.shots.shot_detector import ShotDetector, Timeline, Transition, TransitionKind

NO_CUTTING = "uncut"  # the version of files left whole


class NoUsableShot(ClipError):
    """Nothing of a film lasts as long as a clip must."""


class ShotBoundary(NamedTuple):
    """What a clip begins after, or ends before."""

    kind: TransitionKind
    confidence: float | None = None


class Shot(NamedTuple):
    """Frames `start` to `stop` (half-open) of a film."""

    start: int
    stop: int
    before: ShotBoundary
    after: ShotBoundary


def split_into_clips(transitions: Sequence[Transition], timeline: Timeline, options: IngestOptions) -> list[Shot]:
    """The clips of a film, in order: between transitions, trimmed, split where too long, left out where too short.

    Frames of a dissolve or a fade are in no clip. Raises `NoUsableShot` when nothing is left.
    """
    shots = [_trimmed(shot, options.trim_frames) for shot in _between(transitions, timeline.frame_count)]
    if options.max_s:
        shots = [part for shot in shots for part in _split(shot, timeline, options)]
    least = timeline.ticks(options.min_s)
    clips = [shot for shot in shots if shot.stop > shot.start and timeline.ticks_of(shot.start, shot.stop) >= least]
    if not clips:
        limits = f"min_s = {options.min_s:g}, max_s = {options.max_s:g}, trim_frames = {options.trim_frames}"
        shown = "shot" if len(transitions) == 0 else f"{len(transitions) + 1} shots"
        raise NoUsableShot(f"no clip is left of its {shown} with {limits}")
    return clips


def version(detector: ShotDetector, options: IngestOptions) -> str:
    """16 hex digits over all that decides where a film is cut; `NO_CUTTING` where nothing is."""
    rules = {name: getattr(options, name) for name in ("min_s", "max_s", "split", "trim_frames")}
    if options.shots == IngestOptions.shots and all(
        value == getattr(IngestOptions, name) for name, value in rules.items()
    ):
        return NO_CUTTING
    return fingerprint(detector=detector.version(), **rules)


def _between(transitions: Sequence[Transition], count: int) -> list[Shot]:
    starts = [(0, ShotBoundary("file")), *((one.stop, ShotBoundary(one.kind, one.confidence)) for one in transitions)]
    stops = [
        *((one.start, ShotBoundary(one.kind, one.confidence)) for one in transitions),
        (count, ShotBoundary("file")),
    ]
    return [
        Shot(start, stop, before, after)
        for (start, before), (stop, after) in zip(starts, stops, strict=True)
        if start < stop
    ]


def _trimmed(shot: Shot, frames: int) -> Shot:
    """Without the frames where a transition may be found late; a window's border is exact and needs none."""
    start = shot.start + frames * (shot.before.kind != "window")
    return shot._replace(start=start, stop=max(start, shot.stop - frames * (shot.after.kind != "window")))


def _split(shot: Shot, timeline: Timeline, options: IngestOptions) -> list[Shot]:
    """The shot in parts of at most `max_s`; a single frame that is shown for longer is left out."""
    most = timeline.ticks(options.max_s)
    if timeline.ticks_of(shot.start, shot.stop) <= most:
        return [shot]
    if options.split == "drop":
        return []
    way = _equal if options.split == "equal" else _windows
    places = [shot.start]
    for frame in np.flatnonzero(np.diff(timeline.bounds[shot.start : shot.stop + 1]) > most).tolist():
        places += [*way(places[-1], shot.start + frame, timeline, most), shot.start + frame + 1]
    places += way(places[-1], shot.stop, timeline, most)
    borders = [shot.before, *(ShotBoundary("window") for _ in places[1:-1]), shot.after]
    parts = zip(places[:-1], places[1:], borders[:-1], borders[1:], strict=True)
    found = [Shot(*part) for part in parts if part[0] < part[1] and timeline.ticks_of(part[0], part[1]) <= most]
    return found[:1] if options.split == "first" else found


def _windows(start: int, stop: int, timeline: Timeline, most: Fraction) -> list[int]:
    """Where parts end that are each as long as they may be; no frame lasts longer than `most` ticks."""
    ends = [start]
    while ends[-1] < stop:
        latest = int(timeline.bounds[ends[-1]]) + math.floor(most)
        ends.append(min(stop, int(np.searchsorted(timeline.bounds, latest, side="right")) - 1))
    return ends[1:]


def _equal(start: int, stop: int, timeline: Timeline, most: Fraction) -> list[int]:
    """Where parts end that are as few and as equal as can be, each end moved to the frame at or before it."""
    first, total = int(timeline.bounds[start]), timeline.ticks_of(start, stop)
    for count in range(math.ceil(total / most), stop - start):
        targets = np.array([first + total * number // count for number in range(1, count)], np.int64)
        ends = np.unique([*(np.searchsorted(timeline.bounds, targets, side="right") - 1).tolist(), stop])
        if np.diff(timeline.bounds[[start, *ends]]).max() <= most:
            return [int(end) for end in ends]
    return list(range(start + 1, stop + 1))

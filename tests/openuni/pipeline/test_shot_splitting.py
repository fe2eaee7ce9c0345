"""From transitions to clips: lengths, trimming and splitting, to the frame."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openuni.config.recipe import IngestOptions
from openuni.pipeline.shot_splitting import NoUsableShot, split_into_clips
from openuni.shots.shot_detector import Timeline, Transition
from tests.openuni.shots.edited_films import even

DISSOLVE = Transition(40, 52, "dissolve", 0.9)
HARD = Transition(100, 100, "hard", 0.7)


def spans(transitions, timeline, **options):
    return [(shot.start, shot.stop) for shot in split_into_clips(transitions, timeline, IngestOptions(**options))]


def test_frames_of_a_dissolve_are_in_no_clip():
    shots = split_into_clips([DISSOLVE, HARD], even(150), IngestOptions())
    assert [(shot.start, shot.stop) for shot in shots] == [(0, 40), (52, 100), (100, 150)]
    assert [(shot.before.kind, shot.after.kind) for shot in shots] == [
        ("file", "dissolve"),
        ("dissolve", "hard"),
        ("hard", "file"),
    ]
    assert [(shot.before.confidence, shot.after.confidence) for shot in shots] == [(None, 0.9), (0.9, 0.7), (0.7, None)]


def test_transitions_at_the_ends_leave_no_empty_clip():
    ends = [Transition(0, 12, "fade", 1.0), Transition(140, 150, "fade", 1.0)]
    assert spans(ends, even(150)) == [(12, 140)]


def test_trimming_takes_frames_off_both_ends_but_not_off_windows():
    assert spans([DISSOLVE, HARD], even(150), trim_frames=3) == [(3, 37), (55, 97), (103, 147)]
    windows = [Transition(50, 50, "window", None), Transition(100, 100, "window", None)]
    assert spans(windows, even(150), trim_frames=3) == [(3, 50), (50, 100), (100, 147)]
    assert spans([DISSOLVE, HARD], even(150), trim_frames=20, min_s=0.1) == [(72, 80), (120, 130)]


def test_what_is_too_short_after_all_else_is_left_out():
    assert spans([DISSOLVE, HARD], even(150), min_s=1.9) == [(52, 100), (100, 150)]
    assert spans([DISSOLVE, HARD], even(150), min_s=1.92) == [(52, 100), (100, 150)]  # 48 frames are 1.92 s
    assert spans([DISSOLVE, HARD], even(150), min_s=1.93) == [(100, 150)]
    assert spans([], even(110), max_s=2, split="windows", min_s=1) == [(0, 50), (50, 100)]
    with pytest.raises(NoUsableShot, match="no clip is left of its 3 shots with min_s = 9"):
        spans([DISSOLVE, HARD], even(150), min_s=9)


def test_long_shots_are_split_equally_into_windows_or_left_out():
    assert spans([], even(110), max_s=2) == [(0, 36), (36, 73), (73, 110)]
    assert spans([], even(110), max_s=2, split="windows") == [(0, 50), (50, 100), (100, 110)]
    assert spans([], even(110), max_s=2, split="first") == [(0, 50)]
    assert spans([HARD], even(220), max_s=2, split="first") == [(0, 50), (100, 150)]
    assert spans([HARD], even(220), max_s=2, split="first", trim_frames=4) == [(4, 54), (104, 154)]
    assert spans([], even(40), max_s=2, split="first") == [(0, 40)]
    assert spans([HARD], even(130), max_s=2, split="drop") == [(100, 130)]
    assert spans([], even(100), max_s=2) == [(0, 50), (50, 100)]
    parts = split_into_clips([HARD], even(200), IngestOptions(max_s=2))
    assert [(part.before.kind, part.after.kind) for part in parts[:2]] == [("file", "window"), ("window", "hard")]


def test_a_frame_shown_for_longer_than_a_clip_may_last_is_left_out():
    bounds = np.array([0, 1, 2, 3, 100, 101, 102, 103])  # frame 3 is a still
    shown = Timeline(bounds, Fraction(1, 10))
    for split in ("equal", "windows"):
        assert spans([], shown, max_s=1, split=split) == [(0, 3), (4, 7)]
    assert spans([], shown, max_s=1, split="first") == [(0, 3)]
    still_first = Timeline(np.array([0, 90, 91, 92]), Fraction(1, 10))
    assert spans([], still_first, max_s=1, split="first") == [(1, 3)]


@given(
    durations=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    max_s=st.floats(0.05, 6).map(lambda value: round(value, 2)),
    split=st.sampled_from(["equal", "windows"]),
)
def test_parts_keep_to_the_limit_and_lose_nothing_they_could_hold(durations, max_s, split):
    timeline = Timeline(np.cumsum([0, *durations]), Fraction(1, 90))
    most = Fraction(str(max_s)) * 90
    try:
        parts = spans([], timeline, max_s=max_s, split=split)
    except NoUsableShot:
        parts = []
    assert all(timeline.ticks_of(*part) <= most for part in parts)
    held = [frame for start, stop in parts for frame in range(start, stop)]
    assert held == [frame for frame, duration in enumerate(durations) if duration <= most]

"""Windows by the clock: exact where frames come at an uneven rate, whatever is left at the end."""

from fractions import Fraction

import numpy as np
import pytest

from openuni.manifests.errors import OpenUniError
from openuni.shots.detectors.fixed import Fixed
from openuni.shots.shot_detector import Timeline
from tests.openuni.shots.edited_films import even


def never() -> None:
    """Frames that nobody may ask for."""
    raise AssertionError("a frame was decoded")
    yield


def cuts(detector, timeline):
    return [(one.start, one.stop) for one in detector.transitions(None, never(), timeline)]


def test_windows_of_two_seconds():
    assert cuts(Fixed(window_s=2), even(150)) == [(50, 50), (100, 100)]
    assert cuts(Fixed(window_s=2), even(50)) == []
    assert cuts(Fixed(window_s=2), even(49)) == []


def test_the_remainder_is_kept_joined_or_dropped():
    assert cuts(Fixed(window_s=2), even(120)) == [(50, 50), (100, 100)]
    assert cuts(Fixed(window_s=2, remainder="join"), even(120)) == [(50, 50)]
    assert cuts(Fixed(window_s=2, remainder="drop"), even(120)) == [(50, 50), (100, 120)]
    assert cuts(Fixed(window_s=2, remainder="drop"), even(100)) == [(50, 50)]


def test_no_rounding_piles_up_at_ntsc_rates():
    hour = Timeline(np.arange(0, 108_001) * 1001, Fraction(1, 30000))
    found = cuts(Fixed(window_s=0.1), hour)
    ends_s = np.array([stop for _, stop in found]) * 1001 / 30000
    late_s = ends_s - np.arange(1, len(found) + 1) * 0.1
    assert late_s.min() > -1e-9 and late_s.max() < 1001 / 30000


def test_uneven_frames_go_to_the_window_they_begin_in():
    shown = Timeline(np.array([7, 10, 16, 17, 18, 40, 47]), Fraction(1, 10))
    assert cuts(Fixed(window_s=1), shown) == [(3, 3), (5, 5)]  # 17 begins the second; nothing begins in the third


def test_a_window_has_a_length():
    with pytest.raises(OpenUniError, match="window_s = 0"):
        Fixed(window_s=0)

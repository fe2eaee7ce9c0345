"""Which frames of a clip are encoded: instants of a rate, buckets of size and length, windows."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openuni.config.encode_options import EncodeOptions
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.encode import frame_rate
from openuni.pipeline.encoding.windows import frames_at_rate, size_of, window_starts, windows_of

MS = Fraction(1, 1000)
NTSC = Fraction(30000, 1001)


def clip_of(frames: int = 40, fps: float = 25.0, size_px: tuple[int, int] = (48, 64)) -> Clip:
    return DecodedClip.from_frames(np.zeros((frames, *size_px, 3), np.uint8), fps).clip


def rounded(count: int, fps: Fraction) -> tuple[np.ndarray, int]:
    """Timestamps of a constant rate as Matroska stores them, and their end: whole milliseconds."""
    times = [round(number / fps / MS) for number in range(count + 1)]
    return np.array(times[:-1]), times[-1]


@pytest.mark.parametrize(
    ("times", "end", "unit", "fps", "expected"),
    [
        (range(6), 6, Fraction(1, 30), 30, [0, 1, 2, 3, 4, 5]),
        (range(6), 6, Fraction(1, 30), 15, [0, 2, 4]),
        (range(6), 6, Fraction(1, 30), 10, [0, 3]),
        (range(5), 5, Fraction(1, 25), 50, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),  # a tie is the earlier frame's
        (range(6), 6, Fraction(1, 30), 24, [0, 1, 2, 4, 5]),  # instants 0, 1.25, 2.5 (a tie), 3.75, 5
        ([0, 1, 2, 10, 11, 12], 13, Fraction(1, 10), 10, [0, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 5]),  # a gap of 0.8 s
        ([0, 40, 50, 80], 120, MS, 25, [0, 1, 3]),  # a frame that is nobody's nearest
        ([0], 40, MS, 25, [0]),
        ([0], 10_000, MS, 1, [0, 0, 0, 0, 0, 0]),  # the middle between a last frame and its end
        (range(4), 4, 1 / NTSC, 29.97, [0, 1, 2, 3]),
        (range(4), 4, 1 / NTSC, 59.94, [0, 0, 1, 1, 2, 2, 3, 3]),
    ],
)
def test_each_instant_gets_its_nearest_frame(times, end, unit, fps, expected):
    assert frames_at_rate(np.array(times), end, unit, frame_rate(fps)).tolist() == expected


@pytest.mark.parametrize("fps", [Fraction(24), Fraction(25), NTSC, Fraction(24000, 1001), Fraction(60)])
def test_rounded_timestamps_do_not_matter(fps):
    """A clip at its own rate is itself, at half and double its rate it has every other frame, and each twice."""
    times, end = rounded(200, fps)
    assert frames_at_rate(times, end, MS, fps).tolist() == list(range(200))
    assert frames_at_rate(times, end, MS, fps / 2).tolist() == list(range(0, 200, 2))
    assert frames_at_rate(times, end, MS, fps * 2)[:300].tolist() == [number // 2 for number in range(300)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=30),
    st.fractions(Fraction(1, 2), 60, max_denominator=1001),
    st.sampled_from([MS, Fraction(1, 90), Fraction(1001, 30000)]),
)
def test_as_by_the_definition(gaps, fps, unit):
    """Against a search for the nearest frame with fractions, where a tie within one unit is the earlier frame's."""
    *times, end = np.cumsum([0, *gaps]).tolist()
    expected, number = [], 0
    while number <= 60 * 90 * 30:
        instant = number / fps / unit
        distances = [abs(instant - time) for time in [*times, end]]
        nearest = min(range(len(distances)), key=lambda one: (distances[one], one))
        if nearest and gaps[nearest - 1] >= 4 and distances[nearest - 1] - distances[nearest] <= 1:
            nearest -= 1
        if nearest == len(times):
            break
        expected.append(nearest)
        number += 1
    assert frames_at_rate(np.array(times), end, unit, fps).tolist() == expected


def test_a_rate_above_twice_the_clip_s_is_an_error_and_one_frame_has_none():
    clip, times = clip_of(fps=12), np.arange(40)
    found = windows_of(clip, EncodeOptions(fps=24.0, frames=17), 4, lambda: times)
    assert found.frames.tolist() == [[number // 2 for number in range(17)]] and found.fps == 24
    with pytest.raises(ClipError, match=r"has 12 frames per second, fewer than half of \[encode\] fps = 25"):
        windows_of(clip, EncodeOptions(fps=25.0), 4, lambda: times)
    half = dataclasses.replace(clip, fps=14.985, time_base_num=1001, time_base_den=15000)
    assert windows_of(half, EncodeOptions(fps=30.0, frames=5), 4, lambda: times).frames.tolist() == [[0, 0, 1, 1, 2]]
    one = clip_of(1, fps=0.1)
    assert windows_of(one, EncodeOptions(fps=30.0, frames=(1, 17)), 4).frames.tolist() == [[0]]


@pytest.mark.parametrize(
    ("size_px", "sizes_px", "expected"),
    [
        ((1080, 1920), [[480, 832], [832, 480], [624, 624]], (480, 832)),
        ((1920, 1080), [[480, 832], [832, 480], [624, 624]], (832, 480)),
        ((1000, 1000), [[480, 832], [832, 480], [624, 624]], (624, 624)),
        ((720, 960), [[480, 832], [832, 480], [624, 624]], (480, 832)),  # keeps 0.769 of its area; a square 0.75
        ((700, 900), [[480, 832], [832, 480], [624, 624]], (624, 624)),  # keeps 0.778; 480 x 832 0.742
        ((480, 832), [[240, 416], [480, 832]], (480, 832)),  # equal areas: no scaling
        ((60, 104), [[480, 832], [240, 416]], (240, 416)),  # the least scaling, up
        ((4800, 8320), [[240, 416], [480, 832]], (480, 832)),  # and down
        ((96, 96), [[64, 64], [144, 144]], (64, 64)),  # scaled by 1.5 either way: the first
        ((96, 96), [[144, 144], [64, 64]], (144, 144)),
    ],
)
def test_the_size_that_keeps_most_of_the_picture(size_px, sizes_px, expected):
    options = EncodeOptions(size_px=tuple(map(tuple, sizes_px)))
    assert size_of(clip_of(1, size_px=size_px), options) == expected


@pytest.mark.parametrize(
    ("count", "frames", "expected"),
    [
        (40, (1, 17, 33), 33),
        (33, (1, 17, 33), 33),
        (32, (33, 1, 17), 17),
        (16, (1, 17), 1),
        (1, (1, 17), 1),
        (40, (17,), 17),
        (40, 33, 33),  # a single number is a maximum
        (32, 33, 29),
        (4, 33, 1),
    ],
)
def test_the_longest_window_that_fits(count, frames, expected):
    assert windows_of(clip_of(count), EncodeOptions(frames=frames), 4).frames.shape == (1, expected)


def test_a_clip_too_short_for_any_length_is_an_error():
    with pytest.raises(ClipError, match=r"the clip has 16 frames; the smallest number of \[encode\] frames is 17"):
        windows_of(clip_of(16), EncodeOptions(frames=(17, 33)), 4)
    with pytest.raises(ClipError, match=r"has 16 frames at 12\.5 frames per second"):
        windows_of(clip_of(32), EncodeOptions(frames=(17, 33), fps=12.5), 4, lambda: np.arange(32))


@pytest.mark.parametrize(
    ("last", "options", "expected"),
    [
        (30, {}, [0]),
        (30, {"windows": 2}, [0, 30]),
        (30, {"windows": 4}, [0, 10, 20, 30]),
        (31, {"windows": 3}, [0, 16, 31]),
        (2, {"windows": 5}, [0, 1, 2]),  # short clips: windows that would start at the same frame are one
        (0, {"windows": 5}, [0]),
        (30, {"window_stride_frames": 12}, [0, 12, 24]),
        (24, {"window_stride_frames": 12}, [0, 12, 24]),
        (23, {"window_stride_frames": 12}, [0, 12]),
        (30, {"window_stride_s": 0.5}, [0, 12, 24]),  # at 24 frames per second
        (3, {"window_stride_s": 0.001}, [0, 1, 2, 3]),
    ],
)
def test_where_windows_start(last, options, expected):
    assert window_starts(last, EncodeOptions(**options), 24.0).tolist() == expected


def test_too_many_windows_are_an_error():
    with pytest.raises(ClipError, match="has 10,001 windows; at most 10,000"):
        window_starts(10_000, EncodeOptions(window_stride_frames=1), 24.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps = 0.* above 0"),
        ({"fps": -1.0}, "above 0"),
        ({"fps": float("nan")}, "fps = nan"),
        ({"fps": float("inf")}, "fps = inf"),
        ({"fps": "25"}, 'fps = "25"'),
        ({"fps": 1e9}, "at most 1000"),
        ({"windows": 0}, "windows = 0.* at least 1"),
        ({"windows": 10_001}, "must be at most 10000"),
        ({"windows": 2.5}, "windows = 2.5"),
        ({"window_stride_frames": 0}, "window_stride_frames = 0.* at least 1"),
        ({"window_stride_s": 0.0}, "window_stride_s = 0.* above 0"),
        ({"window_stride_s": float("nan")}, "window_stride_s = nan"),
        ({"windows": 2, "window_stride_s": 1.0}, "windows and window_stride_s are given. Give one"),
        ({"window_stride_frames": 2, "window_stride_s": 1.0}, "Give one of them"),
        ({"frames": (17, 18)}, r"frames = 18: must be 4k \+ 1, such as 17 or 21"),
        ({"frames": ()}, "must have at least one entry"),
        ({"frames": (17, 17)}, "given twice"),
        ({"frames": (0,)}, "at least 1"),
        ({"frames": 16}, r"must be 4k \+ 1, such as 13 or 17"),
        ({"size_px": ()}, "at least one entry"),
        ({"size_px": ((32, 48), (32, 48))}, "given twice"),
        ({"size_px": ((32, 40),)}, "multiples of 16"),
        ({"size_px": ((32, 0),)}, "at least 16"),
        ({"size_px": ((32,),)}, "lists of 2 integers"),
        ({"size_px": (32, 48, 64)}, "2 integers or list of lists of 2 integers"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(OpenUniError, match=message):
        EncodeOptions(**options)


def test_a_codec_says_what_it_can_take():
    from openuni.training.codecs.dct import Dct

    class Coarse(Dct):
        stride = (8, 32, 32)

    EncodeOptions(size_px=(32, 64), frames=17).check_codec(Coarse())
    with pytest.raises(OpenUniError, match=r"size_px = \[48, 64\]: for .* height must be a multiple of 32"):
        EncodeOptions(size_px=((32, 64), (48, 64)), frames=17).check_codec(Coarse())
    with pytest.raises(OpenUniError, match=r"frames = 13: must be 8k \+ 1 for .*, such as 9 or 17"):
        EncodeOptions(size_px=(32, 64), frames=(9, 13)).check_codec(Coarse())

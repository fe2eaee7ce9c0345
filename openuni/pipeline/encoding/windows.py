"""Which frames of a clip are encoded, and at which size: a function of the clip and of `[encode]`, of nothing else.

*Rate.* With `fps`, the instants 0, 1 / fps, 2 / fps, ... seconds after the clip's first frame each get the nearest
frame, by exact timestamps; of two equally near ones, the earlier. Containers round timestamps: frames that are at least
four units of the time base apart are equally near if their distances differ by at most one unit. The last instant is
the last one whose nearest frame is in the clip. All modalities use the same instants.

*Size.* Of `size_px`, the one whose scale-to-cover crop keeps most of the picture's area; of equal ones, the one that
scales least, up or down; then the first.

*Length.* Of a list of `frames`, the largest number that the clip has frames (or instants) for. A single number is a
maximum: the largest 4k + 1 up to it.

*Windows.* The first frames; or `windows` of them, from the first to the last possible start, evenly spaced, in whole
frames; or one every stride, as long as a whole window fits. Windows of a short clip may overlap. Those that would start
at the same frame are one.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from openuni.config.encode_options import MAX_WINDOWS, EncodeOptions
from openuni.manifests.errors import ClipError
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.encode import exact_fps, frame_rate

MAX_REPEATS = 2  # a clip with fewer than 1 / MAX_REPEATS of the frames per second asked for is not encoded
MIN_ROUNDED_GAP = 4  # units of the time base between frames, from which on timestamps may be rounded
RATE_TOLERANCE = 1.01  # mean rates are rounded: 14.985 is half of 30


class ClipWindows(NamedTuple):
    """The windows of a clip to encode: all of the same length and size."""

    frames: np.ndarray  # int64 [N, L]: numbers of the clip's frames, not decreasing within a window
    size_px: tuple[int, int]
    fps: float  # of the encoded video


def windows_of(
    clip: Clip, options: EncodeOptions, stride: int, times: Callable[[], np.ndarray] = lambda: np.zeros(0, np.int64)
) -> ClipWindows:
    """The windows of a clip. Raises `ClipError` if it is too short, or has too few frames per second.

    `stride`: frames per latent frame of the codec. `times`: the timestamps of the clip's frames, int64 [T], in its time
    base, from 0 on; called if `fps` needs them.
    """
    fps = clip.fps if options.fps is None else exact_fps(options.fps)
    if options.fps is None or clip.frame_count == 1:
        frames = np.arange(clip.frame_count)
    else:
        _check_rate(clip, options.fps)
        unit_s = Fraction(clip.time_base_num, clip.time_base_den)
        frames = frames_at_rate(times(), clip.end_pts - clip.start_pts, unit_s, frame_rate(options.fps))
    length = window_length(len(frames), options, stride)
    starts = window_starts(len(frames) - length, options, fps)
    return ClipWindows(frames[starts[:, None] + np.arange(length)], size_of(clip, options), fps)


def frames_at_rate(times: np.ndarray, end: int, unit_s: Fraction, fps: Fraction) -> np.ndarray:
    """The number of the frame for each instant, int64 [N], by exact arithmetic; see the head of this file.

    `times`: int64 [T], of the frames, in units of `unit_s` seconds, from 0 on. `end`: of the last frame.
    """
    following = np.append(times[1:], end)
    middles = times + following + (following - times >= MIN_ROUNDED_GAP)  # doubled, and half a unit later
    step = 2 / (fps * unit_s)  # between instants
    count = int(int(middles[-1]) // step) + 1
    # an instant x is behind a middle m if x > m, for whole m if ceil(x) - 1 >= m
    before = np.array([-(-number * step.numerator // step.denominator) - 1 for number in range(count)], np.int64)
    return np.searchsorted(middles, before, side="right")


def window_length(count: int, options: EncodeOptions, stride: int) -> int:
    """Number of frames per window of a clip with `count` frames at the encoded rate.

    Raises `ClipError` if the clip is too short.
    """
    if isinstance(options.frames, int):
        return (min(count, options.frames) - 1) // stride * stride + 1
    fitting = [length for length in options.frames if length <= count]
    if not fitting:
        rate = f" at {options.fps:g} frames per second" if options.fps is not None else ""
        raise ClipError(
            f"the clip has {count} frames{rate}; the smallest number of [encode] frames is {min(options.frames)}. Add "
            "a smaller one, such as 1, or drop short clips with keep."
        )
    return max(fitting)


def window_starts(last: int, options: EncodeOptions, fps: float) -> np.ndarray:
    """The first frame of each window, int64 [N], increasing. `last`: of the last possible one."""
    stride = options.window_stride_frames
    if options.window_stride_s is not None:
        stride = max(1, round(options.window_stride_s * fps))
    if stride is not None:
        starts = np.arange(0, last + 1, stride)
    else:
        gaps = max(1, options.windows - 1)
        starts = np.unique((np.arange(options.windows) * last * 2 + gaps) // (2 * gaps))
    if len(starts) > MAX_WINDOWS:
        raise ClipError(
            f"the clip has {len(starts):,} windows; at most {MAX_WINDOWS:,} are allowed. Raise [encode] "
            "window_stride_frames, or cut it into shorter clips ([ingest] max_s)."
        )
    return starts


def size_of(clip: Clip, options: EncodeOptions) -> tuple[int, int]:
    """Height and width at which a clip is encoded."""

    def loss(size_px: tuple[int, int]) -> tuple[Fraction, Fraction]:
        across, down = Fraction(size_px[1], clip.width_px), Fraction(size_px[0], clip.height_px)
        scale = max(across, down)
        return -min(across, down) / scale, max(scale, 1 / scale)  # share of the area that is kept, negative; scaling

    return min(options.sizes_px, key=loss)  # the first of equal ones


def _check_rate(clip: Clip, fps: float) -> None:
    if exact_fps(fps) > MAX_REPEATS * RATE_TOLERANCE * clip.fps:
        raise ClipError(
            f"the clip has {clip.fps:.4g} frames per second, fewer than half of [encode] fps = {fps:g}. Frames are "
            "repeated at most twice on average: lower fps, or drop the clip with keep."
        )

"""Windows of a clip: the frames, times and motion vectors of one decode, for every window size and overlap."""

import numpy as np
import pytest

from openuni.manifests.video.container import Limits
from openuni.manifests.video.probe import make_clip, probe
from openuni.manifests.video.reader import decode_frames, iter_windows
from openuni.manifests.video.video_errors import CorruptVideo, LimitExceeded, VideoError
from tests.coded_clips import encode


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = encode(tmp_path_factory.mktemp("windows") / "clip.mp4", options={"bf": "2", "g": "12"})
    info = probe(str(path))
    return make_clip(str(path), info)


def new_parts(windows, overlap):
    """Frames, times and vectors without the overlap, which is checked to be the end of the window before."""
    frames, times_s, vectors, before = [], [], [], None
    for window in windows:
        shared = 0 if before is None else min(overlap, len(before.frames))
        if shared:
            np.testing.assert_array_equal(window.frames[:shared], before.frames[-shared:])
            np.testing.assert_array_equal(window.times_s[:shared], before.times_s[-shared:])
        assert len(window.frames) == len(window.times_s)
        frames.append(window.frames[shared:])
        times_s.append(window.times_s[shared:])
        vectors += [] if window.vectors is None else window.vectors[shared:]
        before = window
    return np.concatenate(frames), np.concatenate(times_s), vectors, [len(part) for part in frames]


@pytest.mark.parametrize("size", [1, 2, 7, 39, 40, 100])
@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_windows_join_to_the_whole_decode(clip, size, overlap):
    whole = decode_frames(clip, short_side_px=24)
    frames, times_s, _, counts = new_parts(iter_windows(clip, 24, Limits(), size, overlap), overlap)
    np.testing.assert_array_equal(frames, whole.frames)
    np.testing.assert_array_equal(times_s, whole.times_s)
    assert counts == [size] * (40 // size) + [40 % size] * (40 % size > 0)


def test_windows_of_a_sample_with_motion_vectors(clip):
    def chosen(times_s):
        assert len(times_s) == 40
        return np.arange(0, 40, 3)

    whole = decode_frames(clip, chosen, vectors=True)
    frames, times_s, vectors, counts = new_parts(iter_windows(clip, 0, Limits(), 5, 1, chosen, vectors=True), 1)
    np.testing.assert_array_equal(frames, whole.frames)
    np.testing.assert_array_equal(times_s, whole.times_s)
    assert counts == [5, 5, 4] and [one is None for one in vectors] == [one is None for one in whole.vectors]
    for one, other in zip(vectors, whole.vectors, strict=True):
        if one is not None:
            np.testing.assert_array_equal(one.shifts_px, other.shifts_px)


def test_the_limit_is_that_of_one_window(clip):
    limits = Limits(max_decoded_bytes=6 * 64 * 48 * 3)
    assert sum(len(window.frames) for window in iter_windows(clip, 0, limits, 5, 1)) == 40 + 7
    with pytest.raises(LimitExceeded, match="7 frames of 64x48"):
        next(iter_windows(clip, 0, limits, 6, 1))


def test_a_window_has_a_frame(clip):
    with pytest.raises(VideoError, match="at least 1, got 0"):
        next(iter_windows(clip, 0, Limits(), 0))


@pytest.mark.parametrize("threads", [1, 2])
def test_damage_ends_the_windows_after_those_before_it(tmp_path, threads):
    path = encode(tmp_path / "clip.mkv", "ffv1", options={"level": "3", "slicecrc": "1"})
    found = make_clip(str(path), probe(str(path)))
    data = bytearray(path.read_bytes())
    place = len(data) * 3 // 4
    data[place : place + 40] = b"\x55" * 40
    path.write_bytes(bytes(data))
    found = make_clip(str(path), probe(str(path)))
    seen = 0
    with pytest.raises(CorruptVideo):
        for window in iter_windows(found, 0, Limits(), 4, 0, threads=threads):
            seen += len(window.frames)
    assert 20 <= seen < 40

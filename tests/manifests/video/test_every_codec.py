"""Every codec in every container we name, at even and uneven times: each access gives the frame asked for."""

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.video.container import Limits
from openuni.manifests.video.probe import make_clip, probe, probe_clip
from openuni.manifests.video.reader import iter_frames
from openuni.manifests.video.video_errors import CorruptVideo, LimitExceeded, SourceChanged
from tests.coded_clips import encode, numbers, picture

COUNT = 24
G = {"g": "8", "keyint_min": "8"}
X264 = G | {"bf": "3", "sc_threshold": "0"}
X264_OPEN = {"x264-params": "open-gop=1:keyint=8:min-keyint=8:scenecut=0:bframes=3:b-pyramid=2"}
X265 = {"x265-params": "keyint=8:min-keyint=8:bframes=3:open-gop=0:log-level=none"}
X265_OPEN = {"x265-params": "keyint=8:min-keyint=8:bframes=3:open-gop=1:log-level=none"}
AV1 = {"g": "8", "preset": "10"}
VP9 = {"g": "8", "cpu-used": "8", "deadline": "realtime"}
DEEP = {"pix_fmt": "yuv420p10le"}
CODECS = {  # name: encoder, options, containers that keep times, FFmpeg's name of the codec
    "h264": ("libx264", X264, "mp4 mov mkv ts", "h264"),
    "h264_open_gop": ("libx264", X264_OPEN, "mp4 mov mkv ts", "h264"),
    "h264_10_bit": ("libx264", X264 | DEEP, "mp4 mkv", "h264"),
    "hevc": ("libx265", X265, "mp4 mov mkv ts", "hevc"),
    "hevc_open_gop": ("libx265", X265_OPEN, "mp4 mkv", "hevc"),
    "hevc_10_bit": ("libx265", X265_OPEN | DEEP, "mp4 mov mkv", "hevc"),
    "vp8": ("libvpx", G, "webm mkv", "vp8"),
    "vp9": ("libvpx-vp9", VP9, "webm mkv mp4", "vp9"),
    "av1": ("libsvtav1", AV1, "mp4 mkv webm", "av1"),
    "av1_10_bit": ("libsvtav1", AV1 | DEEP, "mkv", "av1"),
    "mpeg4": ("mpeg4", G, "mp4 mov mkv", "mpeg4"),
    "mpeg4_b": ("mpeg4", G | {"bf": "2"}, "mp4 mov", "mpeg4"),
    "mpeg2": ("mpeg2video", G | {"bf": "2"}, "ts mkv", "mpeg2video"),
    "prores": ("prores_ks", {"pix_fmt": "yuv422p10le"}, "mov", "prores"),
    "mjpeg": ("mjpeg", {"pix_fmt": "yuvj420p"}, "mov mkv", "mjpeg"),
}
CASES = [f"{name}.{suffix}" for name, (_, _, suffixes, _) in CODECS.items() for suffix in suffixes.split()]
AVI = ["h264.avi", "h264_open_gop.avi", "mpeg4.avi", "mpeg4_b.avi", "vp9.avi", "mjpeg.avi"]  # times are counts there
STEPS = [2, 8, 40, 1, 7, 7, 100, 4, 8, 8, 24]
UNEVEN, UNIT = (140 + np.cumsum([0, *STEPS, 3, *STEPS])).tolist(), Fraction(1, 200)  # from 0.7 s on
UNEVEN_25 = np.cumsum([3, 1, 1, 4, 2, 1] * 4).tolist()  # for what has no other rates than television's


def coded(folder: Path, case: str, uneven: bool) -> Path:
    name, _, suffix = case.partition(".")
    encoder, options, *_ = CODECS[name]
    times, unit = (UNEVEN, UNIT) if uneven else (range(COUNT), Fraction(1, 25))
    if uneven and name == "mpeg2":
        times, unit = UNEVEN_25, Fraction(1, 25)
    return encode(folder / f"{name}.{suffix}", encoder, times, options, unit)


def check_every_access(path: Path, wanted_s: np.ndarray) -> None:
    """Whole, each frame by its index, by its time and by its PTS."""
    info = probe(str(path))
    assert info.codec == CODECS[path.stem][3]
    unit_s = info.time_base_num / info.time_base_den
    np.testing.assert_allclose((info.pts - info.pts[0]) * unit_s, wanted_s, atol=1.1e-3)  # Matroska counts milliseconds
    clip = make_clip(str(path), info)
    assert numbers(decode(clip).frames) == list(range(COUNT))
    for index in range(COUNT):
        assert numbers(decode(clip, np.array([index]), threads=1).frames) == [index]
    spread = [1, 6, 7, 8, 15, 22]
    by_time = decode(clip, lambda times_s: np.searchsorted(times_s, wanted_s[spread] - 2e-3))
    assert numbers(by_time.frames) == spread
    np.testing.assert_allclose(by_time.times_s, wanted_s[spread], atol=1.1e-3)
    for index in range(0, COUNT, 5):  # a clip of the frames that are shown from this PTS on, before that one
        stop = min(index + 3, COUNT)
        end_pts = int(info.pts[stop]) if stop < COUNT else info.end_pts
        start, end = np.searchsorted(info.pts, [info.pts[index], end_pts])
        part = decode(make_clip(str(path), info, int(start), int(end)), threads=1)
        assert numbers(part.frames) == list(range(index, stop))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("uneven", [False, True], ids=["even", "uneven"])
def test_every_access_gives_the_frame_asked_for(tmp_path: Path, case: str, uneven: bool) -> None:
    path = coded(tmp_path, case, uneven)
    times_s = np.arange(COUNT) / 25
    if uneven:
        times_s = np.array(UNEVEN_25) / 25 if case.startswith("mpeg2") else np.array(UNEVEN) * float(UNIT)
    check_every_access(path, times_s - times_s[0])


@pytest.mark.parametrize("case", AVI)
def test_every_access_in_a_container_that_only_counts(tmp_path: Path, case: str) -> None:
    check_every_access(coded(tmp_path, case, uneven=False), np.arange(COUNT) / 25)


@pytest.mark.parametrize("case", ["vp9.webm", "vp8.mkv", "mpeg4.avi", "av1.mkv", "hevc_444.mp4", "h264_444.mkv"])
@pytest.mark.parametrize(("height_px", "width_px"), [(67, 91), (66, 91), (67, 90)])
def test_odd_sizes(tmp_path: Path, case: str, height_px: int, width_px: int) -> None:
    name = case.partition(".")[0]
    encoder, options, *_ = CODECS[name.removesuffix("_444")]
    options = options | ({"pix_fmt": "yuv444p"} if "444" in name else {})
    bars = np.repeat((np.arange(8)[:, None] >> np.arange(3) & 1) * 190 + 30, [11, 11, width_px - 22], axis=1)
    pictures = [np.broadcast_to(row[None, :, None], (height_px, width_px, 3)).astype(np.uint8).copy() for row in bars]
    path = encode(tmp_path / case, encoder, range(8), options, pictures=pictures)
    clip = probe_clip(str(path))
    assert (clip.width_px, clip.height_px) == (width_px, height_px)
    for frames, sharp in (
        (decode(clip).frames, pictures),
        (decode(clip, np.array([5])).frames, pictures[5:]),
    ):
        assert frames.shape[1:] == (height_px, width_px, 3)
        assert all(np.abs(a.astype(int) - b).mean() < 8 for a, b in zip(frames, sharp, strict=False))
    assert decode(clip, short_side_px=33).frames.shape[1:3] == (33, round(33 * width_px / height_px))


# ---------------------------------------------------------------------- interlaced


def woven(number: int) -> np.ndarray:
    """The even lines of one moment, and between them the lines of the next: what an interlaced camera gives."""
    frame = picture(2 * number)
    frame[1::2] = picture(2 * number + 1)[1::2]
    return frame


FIELDS = {
    "h264.mp4": ("libx264", {"flags": "+ildct+ilme", "x264-params": "tff=1", "crf": "8", "g": "8"}),
    "h264_bottom_first.mkv": ("libx264", {"flags": "+ildct+ilme", "x264-params": "bff=1", "crf": "8", "g": "8"}),
    "mpeg2.mpg": ("mpeg2video", {"flags": "+ildct+ilme", "qscale": "2", "b": "4M"}),
    "mpeg2_422.ts": ("mpeg2video", {"flags": "+ildct+ilme", "pix_fmt": "yuv422p", "b": "4M"}),
    "mpeg4.avi": ("mpeg4", {"flags": "+ildct+ilme", "qscale": "2", "b": "4M"}),
    "prores.mov": ("prores_ks", {"flags": "+ildct", "pix_fmt": "yuv422p10le"}),
}


@pytest.mark.parametrize("case", FIELDS)
@pytest.mark.parametrize("short_side_px", [0, 24])
def test_fields_of_two_moments_are_not_mixed(tmp_path: Path, case: str, short_side_px: int) -> None:
    encoder, options = FIELDS[case]
    path = encode(tmp_path / case, encoder, range(12), options, pictures=[woven(number) for number in range(12)])
    info = probe(str(path))
    assert info.interlaced and (info.width_px, info.height_px) == (64, 48)
    clip = make_clip(str(path), info)
    assert clip.interlaced
    frames = decode(clip, short_side_px=short_side_px).frames
    assert numbers(frames) == [2 * number for number in range(12)]
    levels = frames.astype(int).mean(axis=-1)
    assert np.abs(levels - levels[:, :1]).max() < 40  # no line differs from the first: none is of the other moment
    assert numbers(decode(clip, np.array([7]), short_side_px=short_side_px).frames) == [14]


def test_the_field_keeps_colours_and_place_of_the_picture(tmp_path: Path) -> None:
    ramp = np.linspace(30, 220, 96)[:, None, None] * np.array([1.0, 0.6, 0.3])
    still = np.repeat(ramp, 128, axis=1).round().astype(np.uint8)
    paths = [
        encode(tmp_path / f"{name}.mp4", "libx264", range(3), {"crf": "4"} | more, pictures=[still] * 3)
        for name, more in (("whole", {}), ("fields", {"flags": "+ildct+ilme", "x264-params": "tff=1"}))
    ]
    whole, fields = (decode(probe_clip(str(path))).frames.astype(int) for path in paths)
    assert np.abs(whole - fields).mean() < 2.5 and np.abs(whole - fields)[:, 4:-4].max() < 8  # half a line is 1 level


@pytest.mark.parametrize("height_px", [576, 720, 1080])
def test_a_field_has_the_colour_matrix_of_the_whole_picture(tmp_path: Path, height_px: int) -> None:
    plain = np.full((height_px, 64, 3), (200, 60, 40), np.uint8)
    whole, field = (
        decode(probe_clip(str(encode(tmp_path / "a.mp4", "libx264", range(2), how, pictures=[plain] * 2))))
        for how in ({}, {"flags": "+ildct+ilme", "x264-params": "tff=1"})
    )
    assert field.clip.interlaced and not whole.clip.interlaced
    assert np.abs(whole.frames.astype(int) - field.frames).max() <= 2


def test_what_the_stream_calls_progressive_stays_as_it_is(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", "ffv1", range(2), pictures=[woven(0), woven(1)])
    info = probe(str(path))
    assert not info.interlaced
    frames = decode(make_clip(str(path), info)).frames
    assert np.abs(np.diff(frames[0].astype(int), axis=0)).max() > 100


def test_pictures_that_are_single_fields_stay_as_they_are(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", "libx265", range(8), {"x265-params": "interlace=tff:log-level=none"})
    info = probe(str(path))
    assert not info.interlaced and len(info.pts) == 8
    assert numbers(decode(make_clip(str(path), info)).frames) == list(range(8))


# ---------------------------------------------------------------------- pixels that are not square


@pytest.mark.parametrize(
    ("sar", "shown"), [("4/3", (128, 96)), ("8/9", (85, 96)), ("2", (192, 96)), ("201/200", (96, 96)), ("1", (96, 96))]
)
@pytest.mark.parametrize("case", ["h264.mp4", "hevc.mkv", "mpeg4.avi", "mpeg2.mkv", "prores.mov"])
def test_pixels_are_made_square(tmp_path: Path, case: str, sar: str, shown: tuple[int, int]) -> None:
    name = case.partition(".")[0]
    encoder, options, *_ = CODECS[name]
    # 96 px wide: at 48 px the x265 encoder writes past its own memory.
    pictures = [image[:, ::4].repeat(6, axis=1).repeat(2, axis=0) for image in map(picture, range(6))]
    path = encode(tmp_path / case, encoder, range(6), options | {"sar": sar}, pictures=pictures)
    clip = probe_clip(str(path))
    if name == "mpeg2" and sar not in ("4/3", "1"):
        pytest.skip("MPEG-2 knows four shapes of the whole picture only")
    assert (clip.width_px, clip.height_px) == shown
    decoded = decode(clip)
    assert decoded.frames.shape[1:3] == shown[::-1]
    assert numbers(decoded.frames) == list(range(6))
    assert min(decode(clip, short_side_px=24).frames.shape[1:3]) == 24
    (one,) = iter_frames(make_clip(str(path), probe(str(path)), 4, 5))
    np.testing.assert_array_equal(one, decode(clip, np.array([4]), threads=1).frames[0])


def test_long_pixels_are_stretched_before_the_picture_is_turned(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", times=range(3), options={"sar": "4/3"}, rotation=(90, False, False))
    clip = probe_clip(str(path))
    assert (clip.width_px, clip.height_px) == (48, 85)
    assert decode(clip).frames.shape[1:3] == (85, 48)


def test_impossible_pixels_and_pictures_too_large_when_shown_are_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", times=range(3), options={"sar": "5"})
    with pytest.raises(CorruptVideo, match=r"sample aspect ratio must be 1/4 to 4, got 5\."):
        probe(str(path))
    path = encode(tmp_path / "b.mp4", times=range(3), options={"sar": "2"})
    with pytest.raises(LimitExceeded, match="128x48"):
        probe(str(path), Limits(max_pixels=127 * 48))


# ---------------------------------------------------------------------- real clips


@pytest.mark.skipif("OPENUNI_CLIPS" not in os.environ, reason="OPENUNI_CLIPS names a folder of real clips")
def test_real_clips_decode_and_every_way_gives_the_same_frames() -> None:
    paths = [path for path in sorted(Path(os.environ["OPENUNI_CLIPS"]).iterdir()) if path.suffix in (".mp4", ".mkv")]
    assert paths
    for path in paths:
        info = probe(str(path))
        clip = make_clip(str(path), info)
        whole = decode(clip, short_side_px=36)
        np.testing.assert_allclose(whole.times_s, (info.pts - info.pts[0]) * info.time_base_num / info.time_base_den)
        some = np.unique(np.linspace(0, clip.frame_count - 1, 15).astype(np.int64))
        np.testing.assert_array_equal(decode(clip, some, short_side_px=36, threads=1).frames, whole.frames[some])
        middle = clip.frame_count // 2
        part = make_clip(str(path), info, middle, min(middle + 5, clip.frame_count))
        frames = decode(part, short_side_px=36).frames
        np.testing.assert_array_equal(frames, whole.frames[middle : middle + 5])
        with pytest.raises(SourceChanged):
            decode(replace(clip, pts_hash="0" * 16))

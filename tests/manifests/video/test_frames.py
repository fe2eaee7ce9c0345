"""Colour and orientation of decoded frames against the standards' formulas and another decoder."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.video.encode import write_video
from openuni.manifests.video.frames import apply_orientation
from openuni.manifests.video.probe import make_clip, probe, probe_clip
from tests.coded_clips import encode

KR_KB = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # H.273 matrix codes
YUV = [(81, 90, 240), (145, 54, 34), (41, 240, 110), (180, 128, 128), (100, 150, 90), (16, 128, 128), (235, 128, 128)]


def expected_rgb(yuv: tuple[int, int, int], matrix: int, full: bool) -> np.ndarray:
    """H.273's equations for 8 bits, rounded and clipped to 0..255."""
    red_share, blue_share = KR_KB[matrix]
    luma = yuv[0] / 255 if full else (yuv[0] - 16) / 219
    blue_difference, red_difference = ((value - 128) / (255 if full else 224) for value in yuv[1:])
    red = luma + 2 * (1 - red_share) * red_difference
    blue = luma + 2 * (1 - blue_share) * blue_difference
    green = (luma - red_share * red - blue_share * blue) / (1 - red_share - blue_share)
    return np.clip(np.rint(np.array([red, green, blue]) * 255), 0, 255)


def write_flat(path: Path, matrix: int, full: bool, height_px: int) -> None:
    """Lossless 4:4:4 video of one colour per frame, tagged with a matrix and a range."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, height_px, "yuv444p"
        stream.colorspace, stream.color_range = matrix, 2 if full else 1
        for number, yuv in enumerate(YUV):
            planes = np.broadcast_to(np.array(yuv, np.uint8)[:, None, None], (3, height_px, 64))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(planes), format="yuv444p")
            frame.colorspace, frame.color_range = matrix, 2 if full else 1
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("stated", "meant", "height_px"),
    [(1, 1, 48), (5, 5, 48), (6, 6, 48), (9, 9, 48), (2, 6, 48), (2, 6, 718), (2, 1, 720), (6, 6, 720)],
)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("short_side_px", [0, 24])
def test_the_stated_matrix_and_range_are_used(
    tmp_path: Path, stated: int, meant: int, height_px: int, full: bool, short_side_px: int
) -> None:
    path = tmp_path / "a.mkv"
    write_flat(path, stated, full, height_px)
    clip = make_clip(str(path), probe(str(path)))
    frames = decode(clip, short_side_px=short_side_px).frames
    for frame, yuv in zip(frames, YUV, strict=True):
        wanted = expected_rgb(yuv, meant, full)
        assert np.abs(frame.astype(int) - wanted).max() <= 2, (yuv, frame[0, 0], wanted)


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [1, 6], ids=["bt709", "bt601"])
@pytest.mark.parametrize(
    ("codec", "name", "pix_fmt", "options"),
    [
        ("libx264", "h264.mp4", "yuv420p", {"crf": "4"}),
        ("libx264", "h264.avi", "yuv420p", {"crf": "4", "bf": "0"}),
        ("libx265", "hevc.mov", "yuv420p", {"crf": "4", "x265-params": "log-level=none"}),
        ("libx265", "hevc_10_bit.mkv", "yuv420p10le", {"crf": "4", "x265-params": "log-level=none"}),
        ("libvpx-vp9", "vp9.webm", "yuv420p", {"crf": "4", "b": "0"}),
        ("libsvtav1", "av1.mp4", "yuv420p", {"crf": "4", "preset": "8", "g": "1"}),
        ("libsvtav1", "av1_10_bit.mkv", "yuv420p10le", {"crf": "4", "preset": "8", "g": "1"}),
    ],
)
def test_matrix_and_range_are_kept_in_every_codec(
    tmp_path: Path, codec: str, name: str, pix_fmt: str, options: dict[str, str], matrix: int, full: bool
) -> None:
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, pix_fmt
        stream.colorspace, stream.color_range = matrix, 2 if full else 1
        for number, yuv in enumerate(YUV):
            planes = np.broadcast_to(np.array(yuv, np.uint8)[:, None, None], (3, 64, 64))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(planes), format="yuv444p")
            frame.colorspace, frame.color_range = matrix, 2 if full else 1
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for frame, yuv in zip(decode(probe_clip(str(tmp_path / name))).frames, YUV, strict=True):
        wanted = expected_rgb(yuv, matrix, full)
        assert np.abs(frame[32, 32].astype(int) - wanted).max() <= 5, (yuv, frame[32, 32], wanted)


def test_written_video_decodes_to_the_colours_given(tmp_path: Path) -> None:
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40)], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (len(colours), 48, 64, 3)).copy()
    path = tmp_path / "a.mp4"
    write_video(path, frames, 25, crf=1)
    decoded = decode(make_clip(str(path), probe(str(path)))).frames
    assert np.abs(decoded.astype(int) - frames).max() <= 3
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.colorspace, stream.color_primaries, stream.color_trc, stream.color_range) == (1, 1, 1, 1)


def corners(height_px: int = 48, width_px: int = 80) -> np.ndarray:
    """Red at the top left, green at the top right, blue at the bottom left, black at the bottom right."""
    image = np.full((height_px, width_px, 3), 128, np.uint8)
    image[:16, :16], image[:16, -16:], image[-16:, :16], image[-16:, -16:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 0
    return image


@pytest.mark.parametrize("degrees", [0, 90, -90, 180])
def test_rotation_is_applied_as_another_decoder_does(tmp_path: Path, degrees: int) -> None:
    path = encode(tmp_path / "a.mp4", times=range(3), rotation=(degrees, False, False), pictures=[corners()] * 3)
    info = probe(str(path))
    assert (info.width_px, info.height_px) == ((48, 80) if degrees % 180 else (80, 48))
    clip = make_clip(str(path), info)
    other = cv2.VideoCapture(str(path))
    theirs = cv2.cvtColor(other.read()[1], cv2.COLOR_BGR2RGB)
    other.release()
    ours = decode(clip).frames[0]
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).mean() < 4  # chroma is interpolated differently at the edges
    assert np.abs(ours.astype(int) - np.rot90(corners(), degrees // 90)).mean() < 4
    assert decode(clip, short_side_px=24).frames.shape[1:3] == ((40, 24) if degrees % 180 else (24, 40))


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
        ((1, 0, 0, -1), lambda image: image[::-1]),
        ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda image: image.swapaxes(0, 1)[::-1, ::-1]),
    ],
)
def test_mirrors_are_applied(tmp_path: Path, matrix: tuple[int, int, int, int], shown: object) -> None:
    path = tmp_path / "a.mp4"
    a, b, c, d = (value * 65536 for value in matrix)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))
        container.mux(stream.encode(av.VideoFrame.from_ndarray(corners(), format="rgb24")))
        container.mux(stream.encode(None))
    frames = decode(make_clip(str(path), probe(str(path)))).frames
    assert np.abs(frames[0].astype(int) - shown(corners())).mean() < 4


def test_turned_follows_the_display_matrix_pixel_by_pixel() -> None:
    image = np.arange(2 * 3).reshape(2, 3, 1)
    for a, b, c, d in [(1, 0, 0, 1), (-1, 0, 0, -1), (0, 1, -1, 0), (0, -1, 1, 0), (0, 1, 1, 0), (-1, 0, 0, 1)]:
        places = {}
        for y in range(2):
            for x in range(3):
                places[a * x + c * y, b * x + d * y] = image[y, x, 0]
        columns, rows = (sorted({place[axis] for place in places}) for axis in (0, 1))
        expected = [[places[column, row] for column in columns] for row in rows]
        np.testing.assert_array_equal(apply_orientation(image, (a, b, c, d))[..., 0], expected)

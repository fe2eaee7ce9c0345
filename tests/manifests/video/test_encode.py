"""Writing: exact planes of every kind and size, damage found, browser-playable video for people."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.video.encode import (
    PixelFormat,
    decode_lossless,
    encode_lossless,
    exact_fps,
    frame_rate,
    write_video,
)
from openuni.manifests.video.probe import make_clip, probe
from openuni.manifests.video.video_errors import CorruptVideo, VideoError

KINDS = [("uint8", 1), ("uint16", 1), ("uint8", 3), ("uint16", 3)]
SIZES = [
    (1, 1, 1),
    (3, 1, 2),
    (2, 3, 1),
    (2, 7, 5),
    (1, 37, 64),
    (2, 352, 352),
    (2, 353, 35),
    (2, 35, 353),
    (1, 481, 833),
]


def noise(kind: tuple[str, int], size: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    dtype, channels = kind
    top = np.iinfo(dtype).max
    planes = np.random.default_rng(seed).integers(0, top, (*size, channels), dtype=dtype, endpoint=True)
    planes.flat[0], planes.flat[-1] = 0, top
    return planes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_lossless_planes_come_back_exactly(kind: tuple[str, int], size: tuple[int, int, int]) -> None:
    for planes in (noise(kind, size), np.zeros((*size, kind[1]), kind[0])):
        back = decode_lossless(encode_lossless(planes, 25))
        assert back.dtype == planes.dtype
        np.testing.assert_array_equal(back, planes)


def test_equal_planes_give_equal_bytes() -> None:
    planes = noise(("uint16", 3), (3, 20, 30))
    assert encode_lossless(planes, 25) == encode_lossless(planes.copy(), 25)
    strided = np.repeat(planes, 2, axis=2)[:, :, ::2]
    assert encode_lossless(strided, 25) == encode_lossless(planes, 25)


@pytest.mark.parametrize("kind", KINDS)
def test_any_flipped_byte_is_found_or_harmless(kind: tuple[str, int]) -> None:
    planes = noise(kind, (3, 12, 16))
    data = encode_lossless(planes, 25)
    found = 0
    for place in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        try:
            np.testing.assert_array_equal(decode_lossless(bytes(damaged)), planes)
        except CorruptVideo:
            found += 1
    assert found > len(data) / 7 / 2  # the rest lies in fields that only players read


def test_a_flipped_pixel_is_found_where_the_decoder_would_hide_it() -> None:
    planes = noise(("uint16", 1), (4, 64, 64))
    data = bytearray(encode_lossless(planes, 25))
    data[len(data) // 2] ^= 1
    with av.open(io.BytesIO(bytes(data)), options={"err_detect": "crccheck+explode"}) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 4  # FFmpeg hands out all frames,
    assert not any(frame.is_corrupt for frame in frames)  # marks none,
    assert any((frame.to_ndarray() != plane[..., 0]).any() for frame, plane in zip(frames, planes, strict=True))
    with pytest.raises(CorruptVideo, match="damaged"):
        decode_lossless(bytes(data))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8, 0.99])
def test_truncated_planes_are_an_error(share: float) -> None:
    data = encode_lossless(noise(("uint8", 3), (5, 20, 30)), 25)
    with pytest.raises(CorruptVideo):
        decode_lossless(data[: int(len(data) * share)])


def test_planes_written_by_others_are_not_taken_for_ours() -> None:
    target = io.BytesIO()
    with av.open(target, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 8, 8, "gray"
        container.mux([*stream.encode(av.VideoFrame(8, 8, "gray")), *stream.encode(None)])
    with pytest.raises(CorruptVideo, match="expected unknown"):
        decode_lossless(target.getvalue())


@pytest.mark.parametrize(
    "planes",
    [
        np.zeros((2, 4, 4, 2), np.uint8),
        np.zeros((2, 4, 4, 1), np.float32),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((0, 4, 4, 1), np.uint8),
    ],
)
def test_other_planes_are_refused(planes: np.ndarray) -> None:
    with pytest.raises(VideoError, match="planes must be"):
        encode_lossless(planes, 25)


def test_lossless_planes_carry_slice_checksums_and_any_player_opens_them() -> None:
    planes = noise(("uint8", 1), (3, 400, 400))
    with av.open(io.BytesIO(encode_lossless(planes, Fraction(30000, 1001)))) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "ffv1"
        assert float(stream.average_rate) == pytest.approx(29.97, rel=1e-3)
        frames = [frame.to_ndarray() for frame in container.decode(stream)]
    np.testing.assert_array_equal(np.stack(frames), planes[..., 0])


def test_written_video_is_what_browsers_play(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    path = tmp_path / "a.mp4"
    write_video(path, frames, 29.97)
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    info = probe(str(path))
    assert len(info.pts) == 12
    assert info.fps == pytest.approx(30000 / 1001)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(("pixels", "crf", "worst"), [("yuv420p", 1, 40), ("yuv444p", 1, 4), ("rgb", 0, 0)])
def test_colour_is_kept_as_the_pixel_format_says(tmp_path: Path, pixels: PixelFormat, crf: int, worst: int) -> None:
    frames = np.zeros((3, 33, 47, 3) if pixels != "yuv420p" else (3, 32, 48, 3), np.uint8)
    frames[:, :, ::2] = (255, 0, 0)  # columns one pixel wide: 4:2:0 has no room for their colours
    frames[:, :, 1::2] = (0, 0, 255)
    path = tmp_path / "a.mp4"
    write_video(path, iter(frames), 25, crf, pixels=pixels)
    back = decode(make_clip(str(path), probe(str(path)))).frames
    error = np.abs(back.astype(int) - frames).max()
    assert error <= worst if pixels != "yuv420p" else error > worst


def test_one_thread_gives_equal_bytes(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    for name in "ab":
        write_video(tmp_path / name, frames, 25, threads=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(av.FFmpegError):
        write_video(path, np.zeros((4, 2, 40000, 3), np.uint8), 25)  # wider than H.264 can be
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((2, 47, 64, 3), "uint8", "must be even for yuv420p, got 64x47"),
        ((2, 48, 63, 3), "uint8", "must be even for yuv420p, got 63x48"),
        ((2, 48, 64, 1), "uint8", "frames must be uint8"),
        ((0, 48, 64, 3), "uint8", "frames must be uint8"),
        ((2, 48, 64, 3), "float32", "frames must be uint8"),
    ],
)
def test_frames_that_cannot_be_written_are_named(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, words: str
) -> None:
    with pytest.raises(VideoError, match=words):
        write_video(tmp_path / "a.mp4", np.zeros(shape, dtype), 25)


def test_frame_rates_become_the_fractions_they_stand_for() -> None:
    assert frame_rate(29.97) == Fraction(30000, 1001)
    assert frame_rate(23.976) == frame_rate(23.98) == frame_rate(23.97) == Fraction(24000, 1001)
    assert frame_rate(59.94) == Fraction(60000, 1001) and frame_rate(14.985) == Fraction(15000, 1001)
    assert frame_rate(119.88) == Fraction(120000, 1001) and frame_rate(47.95) == Fraction(48000, 1001)
    assert frame_rate(23.9) == Fraction(239, 10) and frame_rate(24) == 24 and frame_rate(29.9) == Fraction(299, 10)
    assert exact_fps(23.98) == 24000 / 1001 and exact_fps(12.3456789) == 12.3456789
    assert frame_rate(25.0) == 25
    assert frame_rate(12.5) == Fraction(25, 2)
    assert frame_rate(Fraction(60000, 1001)) == Fraction(60000, 1001)
    with pytest.raises(VideoError, match="fps must be positive"):
        frame_rate(0)

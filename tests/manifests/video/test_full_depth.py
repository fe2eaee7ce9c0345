"""Frames of more than 8 bits: in every pixel format the colours that `decode` gives, only finer."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.format import VideoFormat
from av.video.format import names as format_names
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.video.frames import to_rgb24, to_rgb48
from openuni.manifests.video.probe import probe_clip
from openuni.manifests.video.reader import decode_full_depth

HEIGHT_PX, WIDTH_PX = 32, 64
TOLERANCE = 1.6 / 255  # rounding to 8 bits, and a level of libswscale's


def colourful(height_px: int = HEIGHT_PX, width_px: int = WIDTH_PX) -> np.ndarray:
    """uint16 [H, W, 3]: gradients in all three channels, and an edge between saturated colours."""
    y, x = np.mgrid[:height_px, :width_px] / [[[height_px]], [[width_px]]]
    rgb = np.stack([0.1 + 0.8 * x, 0.1 + 0.8 * y, 0.5 + 0.4 * np.sin(7 * (x + y))], axis=-1)
    rgb[:, : width_px // 4] = (0.9, 0.1, 0.1)
    return np.rint(rgb * 65535).astype(np.uint16)


def in_format(name: str, full: bool, matrix: int, picture: np.ndarray) -> av.VideoFrame:
    """The picture in another pixel format; tagged with range and matrix."""
    return VideoReformatter().reformat(
        av.VideoFrame.from_ndarray(picture, format="rgb48le"),
        format=name,
        dst_color_range=2 if full else 1,
        dst_colorspace=matrix,
        interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
        threads=1,
    )


def deep_formats() -> list[str]:
    """All little-endian formats of more than 8 bits that libswscale can write."""
    found = []
    for name in sorted(format_names):
        components = VideoFormat(name).components
        if name.endswith("le") and components and max(component.bits for component in components) > 8:
            try:
                in_format(name, False, Colorspace.ITU709, colourful())
            except OSError:
                continue
            found.append(name)
    return found


def error_of(frame: av.VideoFrame) -> float:
    deep = to_rgb48(frame, VideoReformatter()) / 65535
    return float(np.abs(deep - to_rgb24(frame, frame.width, frame.height, VideoReformatter()) / 255).max())


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [Colorspace.ITU709, Colorspace.ITU601], ids=["bt709", "bt601"])
def test_every_pixel_format_has_the_same_colours_at_both_depths(full: bool, matrix: Colorspace) -> None:
    formats = deep_formats()
    assert {"yuv420p10le", "yuv422p10le", "yuv440p10le", "yuv420p12le", "gbrp12le", "gray10le", "p010le"} < set(formats)
    errors = {name: error_of(in_format(name, full, matrix, colourful())) for name in formats}
    assert {name: error for name, error in errors.items() if error > TOLERANCE} == {}


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (33, 65), (720, 16)])
@pytest.mark.parametrize("name", ["yuv420p10le", "yuv422p10le", "yuv440p10le", "p010le"])
def test_odd_sizes_and_tall_frames_have_the_same_colours(name: str, size: tuple[int, int]) -> None:
    assert error_of(in_format(name, False, Colorspace.ITU709, colourful(*size))) <= TOLERANCE


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("libx265", "yuv420p10le", "mp4"),
        ("libx265", "yuv422p10le", "mp4"),
        ("libx265", "yuv444p12le", "mkv"),
        ("libx264", "yuv420p10le", "mp4"),
        ("ffv1", "yuv420p12le", "mkv"),
        ("ffv1", "gbrp16le", "mkv"),
        ("ffv1", "gray10le", "mkv"),
        ("ffv1", "gray12le", "mkv"),
        ("prores_ks", "yuv422p10le", "mov"),
    ],
)
def test_files_have_the_colours_of_decode(tmp_path: Path, codec: str, pix_fmt: str, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, pix_fmt
        for number in range(2):
            frame = in_format(pix_fmt, False, Colorspace.ITU601, np.roll(colourful(), 8 * number, axis=1))
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = probe_clip(str(path))
    deep, shallow = decode_full_depth(clip), decode(clip).frames
    assert deep.dtype == np.uint16 and deep.shape == shallow.shape
    assert np.abs(deep / 65535 - shallow / 255).max() <= TOLERANCE

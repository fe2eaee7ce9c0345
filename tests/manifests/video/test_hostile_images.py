"""Images and arrays that declare more than they hold: refused from the header, before memory is taken."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import OpenEXR
import pytest
from PIL import Image

from openuni.exchange.importers import _plain_maps
from openuni.exchange.importers._dataset_layout import ClipLocation
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.skeleton import Skeleton, SkeletonConstants
from openuni.manifests.video.images import image_size, read_image
from openuni.manifests.video.passthrough import PassthroughFiles, PixelDecoding, pack_files


def exr(path: Path, names: list[str], side_px: int = 8) -> bytes:
    plane = np.zeros((side_px, side_px), np.float32)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, dict.fromkeys(names, plane)).write(str(path))
    return path.read_bytes()


def with_window(data: bytes, corners: tuple[int, int, int, int]) -> bytes:
    for name in (b"dataWindow", b"displayWindow"):
        start = data.index(name + b"\0box2i\0") + len(name) + 11
        data = data[:start] + struct.pack("<4i", *corners) + data[start + 16 :]
    return data


def png(width_px: int, height_px: int, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", head, *more, chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def jpeg(width_px: int, height_px: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height_px, width_px)
    return bytes(data)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([f"c{number:03}" for number in range(300)], r"has the channels c000, .*, \.\.\.\. Allowed"),
        ([f"layer{number:03}.R" for number in range(300)], r"has 300 layers \(layer000\.R, .*, \.\.\.\)"),
        (["R", "G", "B", *(f"view{number:03}.A" for number in range(300))], r"has the channels B, .*\.\.\.\. Allowed"),
    ],
)
def test_the_channels_of_an_exr_are_counted_before_pixels_are_read(tmp_path, names, reason):
    data = exr(tmp_path / "many.exr", names)
    cut = data[: len(data) - 40]  # the pixels are damaged: whoever reads them first says so
    with pytest.raises(ClipError, match=reason) as caught:
        read_image(cut, "exr", "many.exr")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("corners", "reason"),
    [
        ((0, 0, 10**5, 10**5), "1 frames of 100001 x 100001 exceed"),
        ((0, 0, 2**31 - 2, 2**31 - 2), "damaged"),
        ((5, 5, 0, 0), "damaged"),
        ((-(2**31), -(2**31), 2**31 - 1, 0), "damaged"),
    ],
)
def test_windows_of_an_exr(tmp_path, corners, reason):
    data = with_window(exr(tmp_path / "a.exr", ["R", "G", "B"]), corners)
    with pytest.raises(ClipError, match=reason):
        PassthroughFiles(pack_files("exr", 1, [data], PixelDecoding()), "a map").values()


def test_sizes_of_png_and_jpeg():
    bomb = zlib.compress(bytes(50_000_000), 9)
    for side_px, reason in {2**31 - 1: "exceed Limits", 60_000: "exceed Limits", 0: "damaged"}.items():
        with pytest.raises(ClipError, match=reason):
            PassthroughFiles(pack_files("png", 1, [png(side_px, side_px)], PixelDecoding()), "a map").values()
    for name in (b"zTXt", b"iCCP"):
        with pytest.raises(ClipError, match="damaged"):
            read_image(png(16, 16, chunk(name, b"k\0\0" + bomb)), "png", "a.png")
    for read in (image_size, read_image):
        with pytest.raises(ClipError, match=r"is damaged.* exceeds limit"):
            read(jpeg(65_000, 65_000), "jpg", "a.jpg")


def npy(shape: str, descr: str = "'<f4'") -> bytes:
    return npy_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}")


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


def saved(shape: tuple[int, ...], dtype: str) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(shape, dtype))
    return buffer.getvalue()


INVALID = r"is not a valid \.npy file"
ARRAYS = {
    "nothing": (b"", INVALID),
    "a thousand million million": (npy("(1000000, 1000000, 1000)"), INVALID),
    "an overflow": (npy("(9223372036854775807, 9)"), INVALID),
    "beyond 64 bits": (npy(f"({2**70},)"), INVALID),
    "negative": (npy("(-1, -1, -1)"), INVALID),
    "nested": (npy("(" * 2000 + ")" * 2000), INVALID),
    "signs": (npy_header("-" * 5000 + "1"), INVALID),
    "not closed": (npy_header("{'descr': (((("), INVALID),
    "keys that cannot be sorted": (npy_header("{1: 2, 'a': 3}"), INVALID),
    "objects": (npy("(5, 16, 16)", "'|O'"), INVALID),
    "a long header": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"(" * 100_000, INVALID),
    "an archive": (b"PK\x03\x04" + bytes(1000), INVALID),
    "another dimension": (saved((5, 16, 16, 1, 1), "f4"), r"contains float32 \(5, 16, 16, 1, 1\); expected"),
    "texts": (saved((5, 16, 16), "S4"), r"contains \|S4 \(5, 16, 16\); expected"),
    "cells of no bytes": (npy("(1000000, 1000000, 1000)", "'V0'"), r"contains \|V0 .*; expected"),
    "more frames": (saved((50, 16, 16, 1), "f4"), r"has \(50, 16, 16, 1\), more than 5 frames of 16 x 16 require"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_measured_before_they_are_read(tmp_path, name):
    data, reason = ARRAYS[name]
    (tmp_path / "depth.npy").write_bytes(data)
    inputs = _plain_maps.PlainMapInputs(
        **dict.fromkeys(_plain_maps.PlainMapInputs._fields)
        | {"location": ClipLocation(str(tmp_path), str(tmp_path), None), "size": (5, 16, 16)}
    )
    with pytest.raises(ClipError, match=rf"depth\.npy {reason}"):
        _plain_maps._array(inputs, "depth")


@pytest.mark.parametrize(
    "header",
    [
        {"points": {"dtype": "F32", "shape": [2**40, 1, 133, 3], "data_offsets": [0, 0]}},
        {"points": {"dtype": "F32", "shape": [1, 1, 133, 3], "data_offsets": [0, 2**62]}},
        {f"p{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(1000)},
        "[" * 100_000,
    ],
)
def test_a_safetensors_header(header):
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    for length in (len(text), 2**62):
        with pytest.raises(ClipError, match="skeleton: stored"):
            Skeleton.decode(struct.pack("<Q", length) + text, SkeletonConstants(64, 64, 1))

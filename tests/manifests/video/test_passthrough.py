"""Kept files: values exactly as the set has them, equal bytes for equal files, and nothing hostile gets far."""

import io
import json
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from openuni.manifests.arrays.srgb import srgb_to_linear
from openuni.manifests.contracts.payloads import decode_payload
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.albedo import Albedo, AlbedoConstants
from openuni.manifests.modalities.irradiance import Irradiance, IrradianceConstants
from openuni.manifests.modalities.normal import Normal, NormalConstants
from openuni.manifests.modalities.rgb import RGB, RGBConstants
from openuni.manifests.video.encode import decode_lossless, encode_lossless
from openuni.manifests.video.passthrough import (
    MANIFEST_NAME,
    PassthroughFiles,
    PixelDecoding,
    is_passthrough,
    pack_files,
    suffix_of,
)

FRAMES, HEIGHT_PX, WIDTH_PX = 5, 12, 20
PLAIN = PixelDecoding()


def noise(dtype: type, channels: int = 3) -> np.ndarray:
    values = np.random.default_rng(0).random((FRAMES, HEIGHT_PX, WIDTH_PX, channels))
    return (values if np.dtype(dtype).kind == "f" else values * np.iinfo(dtype).max).astype(dtype)


def exr(image: np.ndarray) -> bytes:
    import OpenEXR

    target = io.BytesIO()
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"RGB": np.ascontiguousarray(image)}).write(target)
    return target.getvalue()


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1] if image.shape[-1] == 3 else image)[1].tobytes()


def kept(array: np.ndarray, reading: PixelDecoding = PLAIN) -> bytes:
    kind, write = ("exr", exr) if array.dtype.kind == "f" else ("png", png)
    return pack_files(kind, len(array), [write(image) for image in array], reading)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint16, np.uint8])
def test_values_are_the_files_own(dtype: type) -> None:
    array = noise(dtype)
    data = kept(array)
    most = 1 if array.dtype.kind == "f" else np.float32(np.iinfo(dtype).max)
    np.testing.assert_array_equal(PassthroughFiles(data, "x").values(), array.astype(np.float32) / most)
    assert kept(array) == data and is_passthrough(data)
    assert suffix_of(data, "mkv") == ("exr.zip" if array.dtype.kind == "f" else "png.zip")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:  # as anyone opens it
        assert archive.testzip() is None and archive.namelist()[0] == MANIFEST_NAME
        assert len(archive.namelist()) == FRAMES + 1


def test_steps_of_a_reading() -> None:
    array = noise(np.uint16)
    unit = array.astype(np.float32) / np.float32(65535)
    found = PassthroughFiles(
        kept(array, PixelDecoding("srgb", scale=4.0, offset=-0.5, lowest=0.0, highest=2.0)), "x"
    ).values()
    np.testing.assert_array_equal(found, np.clip(srgb_to_linear(unit) * np.float32(4) - np.float32(0.5), 0, 2))
    np.testing.assert_allclose(
        PassthroughFiles(kept(array, PixelDecoding(channels=1)), "x").values()[..., 0], unit.mean(-1), rtol=1e-6
    )
    levels = PassthroughFiles(kept(array, PixelDecoding(levels=True)), "x").values()
    assert levels.dtype == np.uint8
    np.testing.assert_array_equal(levels, np.rint(array / 257))
    grey = PassthroughFiles(kept(noise(np.uint16, 1), PixelDecoding(channels=3)), "x").values()
    np.testing.assert_array_equal(grey, np.repeat(noise(np.uint16, 1) / np.float32(65535), 3, axis=-1))


def test_modalities_of_kept_files() -> None:
    halves = noise(np.float16)
    albedo = Albedo.read(kept(halves, PixelDecoding(lowest=0.0, highest=1.0)), AlbedoConstants())
    np.testing.assert_array_equal(albedo.array, halves.astype(np.float32))
    light = Irradiance.read(kept(halves, PixelDecoding(scale=2.0)), IrradianceConstants(1.5))
    np.testing.assert_array_equal(light.array, halves.astype(np.float32) * 2)
    assert light.constants().white == 1.5
    away = PixelDecoding(scale=2.0, offset=-1.0, unit_length=True, signs=(1, -1, -1))
    normal = Normal.read(kept(noise(np.uint16), away), NormalConstants())
    given = (noise(np.uint16) / 65535 * 2 - 1) * [1, -1, -1]
    length = np.linalg.norm(given, axis=-1, keepdims=True)
    wanted = np.where(length < 0.25, 0, given / length)
    np.testing.assert_allclose(normal.array, wanted, atol=1e-6)
    with pytest.raises(ClipError, match=r"albedo: reflectance must be within 0\.\.1"):
        Albedo.read(kept(halves, PixelDecoding(scale=2.0)), AlbedoConstants())


def test_videos_and_their_renderings() -> None:
    planes = noise(np.uint8)
    data = pack_files("mkv", FRAMES, [encode_lossless(planes, 12)], PixelDecoding("rendering", levels=True))
    np.testing.assert_array_equal(RGB.read(data, RGBConstants()).array, planes)
    assert suffix_of(data, "mkv") == "mkv.zip" and PassthroughFiles(data, "x").size_px() == (HEIGHT_PX, WIDTH_PX)
    deep = pack_files("mkv", FRAMES, [encode_lossless(noise(np.uint16), 12)], PixelDecoding())
    np.testing.assert_array_equal(PassthroughFiles(deep, "x").values(), noise(np.uint16) / np.float32(65535))
    with pytest.raises(ClipError, match=r"the video has 5 frames, kept\.json declares 4"):
        PassthroughFiles(pack_files("mkv", 4, [encode_lossless(planes, 12)], PixelDecoding()), "x").values()


def test_pictures_coded_by_earlier_versions_are_read() -> None:
    planes = noise(np.uint8)
    ffv1 = encode_lossless(planes, 12)
    np.testing.assert_array_equal(RGB.read(ffv1, RGBConstants()).array, planes)
    now = RGB(planes).encode(12)
    assert now.data != ffv1 and RGB(planes).encode(12).data == now.data
    np.testing.assert_array_equal(RGB.read(now.data, now.constants).array, planes)
    assert decode_lossless(now.data).dtype == np.uint8


def rezipped(data: bytes, change: Callable[[list[tuple[str, bytes]]], None], **how: int) -> bytes:
    """The same ZIP with other entries."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    change(entries)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", **how) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return target.getvalue()


def sheet_with(**facts: object) -> Callable[[list[tuple[str, bytes]]], None]:
    def change(entries: list[tuple[str, bytes]]) -> None:
        entries[0] = (MANIFEST_NAME, json.dumps(json.loads(entries[0][1]) | facts).encode())

    return change


def patched(data: bytes, place: int, new: bytes) -> bytes:
    place = place if place >= 0 else len(data) + place
    return data[:place] + new + data[place + len(new) :]


def with_flags(data: bytes, flags: int) -> bytes:
    """Every entry of the directory with these flags."""
    place = data.index(b"PK\x01\x02")
    while data[place : place + 4] == b"PK\x01\x02":
        data = patched(data, place + 8, struct.pack("<H", flags))
        name, extra, comment = struct.unpack("<3H", data[place + 28 : place + 34])
        place += 46 + name + extra + comment
    return data


def with_last_longer(data: bytes, nbytes: int) -> bytes:
    """The directory says that the last entry goes on beyond the end."""
    place = data.rindex(b"PK\x01\x02")
    stored, size = struct.unpack("<2I", data[place + 20 : place + 28])
    return patched(data, place + 20, struct.pack("<2I", stored + nbytes, size + nbytes))


def vast_png() -> bytes:
    """A PNG whose header, with the right checksum, claims 100,000 x 100,000 pixels."""
    import zlib

    header = struct.pack(">II5B", 100_000, 100_000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


SOUND = kept(noise(np.uint16))
HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda data: data[: len(data) // 2], "plain ZIP"),
    "nothing but magic": (lambda data: data[:4], "plain ZIP"),
    "more behind": (lambda data: data + b"\0", "plain ZIP"),
    "a comment": (lambda data: patched(data, -2, b"\1\0") + b"x", "plain ZIP"),
    "compressed": (lambda data: rezipped(data, lambda entries: None, compression=zipfile.ZIP_DEFLATED), "uncompressed"),
    "encrypted": (lambda data: with_flags(data, 1), "stored uncompressed and unencrypted"),
    "a way out": (
        lambda data: rezipped(data, lambda entries: entries.append(("../../etc/passwd", b"x"))),
        r"the files are 000000\.png",
    ),
    "another name": (
        lambda data: rezipped(data, lambda entries: entries.insert(0, ("a", b"x"))),
        "must be kept.json, got 'a'",
    ),
    "one twice": (lambda data: rezipped(data, lambda entries: entries.append(entries[1])), r"the files are"),
    "no sheet": (lambda data: rezipped(data, lambda entries: entries.pop(0)), r"must be kept\.json"),
    "a vast sheet": (
        lambda data: rezipped(data, lambda entries: entries.__setitem__(0, (MANIFEST_NAME, b" " * 70_000))),
        r"must be kept\.json",
    ),
    "no JSON": (
        lambda data: rezipped(data, lambda entries: entries.__setitem__(0, (MANIFEST_NAME, b"{"))),
        "kept.json is invalid",
    ),
    "another format": (lambda data: rezipped(data, sheet_with(format="x")), "kept.json is invalid"),
    "another step": (lambda data: rezipped(data, sheet_with(reading={"coding": "exec"})), "kept.json is invalid"),
    "an unknown step": (lambda data: rezipped(data, sheet_with(reading={"run": "ls"})), "kept.json is invalid"),
    "fewer frames": (lambda data: rezipped(data, sheet_with(frames=4)), "declares 4 frames"),
    "no frames": (lambda data: rezipped(data, sheet_with(frames=0)), "declares 0 frames"),
    "countless frames": (lambda data: rezipped(data, sheet_with(frames=10**12)), "declares 1000000000000 frames"),
    "a path as kind": (lambda data: rezipped(data, sheet_with(kind="../x")), r"kind '\.\./x'"),
    "a file that ends late": (lambda data: with_last_longer(data, 450), "damaged"),
    "bits": (lambda data: patched(data, 700, bytes([data[700] ^ 1])), "damaged"),
    "vast pictures": (
        lambda data: pack_files("png", 1, [vast_png()], PixelDecoding()),
        r"100000 x 100000 exceed Limits.max_pixels",
    ),
    "unequal sizes": (
        lambda data: pack_files("png", 2, [png(noise(np.uint8)[0]), png(noise(np.uint8)[0, 1:])], PixelDecoding()),
        r"000001\.png must be 20 x 12",
    ),
    "unequal depth": (
        lambda data: pack_files("png", 2, [png(noise(np.uint8)[0]), png(noise(np.uint16)[0])], PixelDecoding()),
        r"must be uint8 .* like the first, got uint16",
    ),
    "a playlist": (
        lambda data: rezipped(
            pack_files("mkv", 3, [b"#EXTM3U\nfile:///etc/passwd"], PixelDecoding()),
            lambda entries: entries.__setitem__(
                slice(None),
                [(MANIFEST_NAME, entries[0][1].replace(b'"mkv"', b'"m3u8"')), ("video.m3u8", entries[1][1])],
            ),
        ),
        "is a playlist",
    ),
    "no video": (lambda data: pack_files("mp4", 3, [b"\0" * 500], PixelDecoding()), "x"),
    "no EXR": (lambda data: pack_files("exr", 1, [b"v/1\x01" + b"\0" * 50], PixelDecoding()), "not an EXR file"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_at_once(name: str) -> None:
    make, reason = HOSTILE[name]
    data = make(SOUND)
    assert is_passthrough(data)
    began = time.process_time()
    with pytest.raises(ClipError, match=reason):
        PassthroughFiles(data, "x").values()
    assert time.process_time() - began < 2


def test_a_directory_of_millions_is_not_parsed() -> None:
    crowd = b"PK\x03\x04" + b"PK\x01\x02" + b"\0" * 50_000_000
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 6, 6, len(crowd) - 4, 4, 0)
    with pytest.raises(ClipError, match="plain ZIP"):
        PassthroughFiles(crowd + end, "x").values()


def test_stored_maps_from_elsewhere_are_measured_before_they_are_decoded(tmp_path: Path) -> None:
    data = kept(noise(np.uint16))
    size_px = (HEIGHT_PX, WIDTH_PX)
    found = decode_payload(Albedo, data, {"transfer": "linear"}, "x", FRAMES, size_px)
    np.testing.assert_array_equal(found.array, noise(np.uint16) / np.float32(65535))
    for frames, size in ((FRAMES + 1, size_px), (FRAMES, (6, 10))):
        with pytest.raises(ClipError, match="the file has 5 maps of 20 x 12"):
            decode_payload(Albedo, data, {"transfer": "linear"}, "x", frames, size)


def test_only_what_can_be_read_is_packed() -> None:
    for kind, reason in {"": "''", "m-p4": "'m-p4'", "PNG": "'PNG'"}.items():
        with pytest.raises(
            ClipError, match=rf"passthrough of {reason} files is not supported\. Allowed: exr, png, jpg, mp4"
        ):
            pack_files(kind, 1, [b"x"], PLAIN)
    with pytest.raises(ClipError, match="passthrough of 9 png frames requires 9 files, got 1"):
        pack_files("png", 9, [b"x"], PLAIN)


@pytest.mark.parametrize(
    ("array", "reading", "reason"),
    [
        (noise(np.uint16), PixelDecoding(signs=(1, -1)), r"signs must be 1 or -1 for each of 3 .*, got \[1, -1\]"),
        (noise(np.uint16), PixelDecoding(signs=(1, 2, 1)), r"signs must be 1 or -1"),
        (noise(np.uint8), PixelDecoding(levels=True, signs=(1, -1, -1)), "levels cannot be combined with .* signs"),
        (
            noise(np.uint16, 1),
            PixelDecoding(unit_length=True),
            "unit_length requires 3 channels, got 1",
        ),
        (noise(np.uint16), PixelDecoding(channels=1, unit_length=True), "unit_length requires 3 channels"),
        (noise(np.float16), PixelDecoding(scale=1e39), r"numbers must be within float32 .*, got 1e\+39"),
        (noise(np.float16), PixelDecoding(lowest=1.0, highest=0.0), "lowest = 1 is above highest = 0"),
    ],
)
def test_steps_that_the_pictures_cannot_take_are_refused(
    array: np.ndarray, reading: PixelDecoding, reason: str
) -> None:
    with pytest.raises(ClipError, match=f"x: invalid decoding in kept.json: .*{reason}"):
        PassthroughFiles(kept(array, reading), "x").values()

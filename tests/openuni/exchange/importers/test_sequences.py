"""Pictures from image sequences: values as they stand in the file, whatever way they were read."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from openuni.exchange.importers._mattes import composite
from openuni.exchange.importers._sequences import find_stream, read_indices, read_stream, sequence_of
from openuni.manifests.arrays.srgb import linear_to_srgb
from openuni.manifests.errors import ClipError
from openuni.manifests.video.images import ValueLookup
from openuni.manifests.video.passthrough import PixelDecoder, PixelDecoding
from tests.openuni.exchange.importers.made_sets import write_png


def write_channels(path: Path, channels: dict[str, np.ndarray]) -> np.ndarray:
    """Channels by name as the only EXR of a sequence, read back."""
    import OpenEXR

    path.mkdir()
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, channels).write(str(path / "0000.exr"))
    return read_stream(sequence_of(path, path.name, path.parent))


def test_exr_channels_by_any_order_and_type(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    planes = [rng.random((6, 8)).astype(np.float16) for _ in range(4)]
    wanted = np.stack(planes[:3], axis=-1)[None]
    for name, names in {"rgb": "RGB", "rgba": "RGBA", "xyz": "XYZ"}.items():
        found = write_channels(tmp_path / name, dict(zip(names, planes, strict=False)))
        assert found.dtype == np.float16 and np.array_equal(found, wanted), name
    layered = write_channels(
        tmp_path / "layer", {f"d.{part}": plane for part, plane in zip("RGB", planes, strict=False)}
    )
    assert np.array_equal(layered, wanted)
    single = write_channels(tmp_path / "single", {"Y": planes[0]})
    assert np.array_equal(single, wanted[..., :1])
    mixed = write_channels(tmp_path / "mixed", {"R": planes[0], "G": planes[1].astype(np.float32), "B": planes[2]})
    assert mixed.dtype == np.float32 and np.array_equal(mixed, wanted)
    with pytest.raises(ClipError, match="has 2 layers"):
        write_channels(tmp_path / "two", dict(zip(["R", "G", "B", "depth.Z"], planes, strict=True)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32])
def test_values_are_the_same_by_table_and_one_by_one(dtype: type, channels: int) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    values = bits.view(np.float16) if dtype == np.float16 else bits.astype(dtype)
    array = np.random.default_rng(0).permutation(values)[: 65535 // channels * channels].reshape(1, -1, 5, channels)
    given = np.concatenate([array, array[:, ::-1]])
    plain = given.astype(np.float32)
    if given.dtype.kind == "u":
        plain /= np.iinfo(dtype).max
    unit = ValueLookup(np.float32, given.dtype)
    found = np.stack([unit(image) for image in given])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, plain)
    with np.errstate(invalid="ignore"):
        convert = PixelDecoder(PixelDecoding(channels=1), given.dtype)
        grey = np.stack([convert(image) for image in given])[..., 0]
    finite = np.isfinite(plain).all(axis=-1)
    np.testing.assert_allclose(grey[finite], plain.mean(axis=-1, dtype=np.float64)[finite], rtol=1e-5, atol=1e-2)
    curve = ValueLookup(lambda values: linear_to_srgb(np.clip(values, 0, 1)), given.dtype)
    curved = np.stack([curve(image) for image in given])
    np.testing.assert_allclose(curved, linear_to_srgb(np.clip(plain, 0, 1)), rtol=1e-6)


def test_composites_are_rounded_from_the_formula() -> None:
    rng = np.random.default_rng(0)
    alpha = rng.integers(0, 256, (2, 9, 7, 1)).astype(np.float32) / np.float32(255)
    front, rear = rng.integers(0, 256, (2, 2, 9, 7, 3), np.uint8)
    exact = alpha.astype(np.float64) * front + (1 - alpha.astype(np.float64)) * rear
    assert np.abs(composite(alpha, front, rear) - exact).max() <= 0.5 + 1e-4
    assert np.array_equal(composite(np.ones_like(alpha), front, rear), front)
    assert np.array_equal(composite(np.zeros_like(alpha), front, rear), rear)


def with_chunk(data: bytes, kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    """A PNG with another chunk behind its header."""
    real = zlib.crc32(kind + body) if crc is None else crc
    return data[:33] + struct.pack(">I", len(body)) + kind + body + struct.pack(">I", real) + data[33:]


def test_png_checksums(tmp_path: Path) -> None:
    write_png(tmp_path / "a", np.random.default_rng(0).integers(0, 65536, (1, 20, 30, 3), np.uint16))
    file = tmp_path / "a/0000.png"
    sound = file.read_bytes()
    faults = {
        "empty": b"",
        "another": b"GIF89a" + sound[6:],
        "cut": sound[: len(sound) // 2],
        "cut in the end": sound[:-6],
        "flipped": sound[:200] + bytes([sound[200] ^ 1]) + sound[201:],
        "text": with_chunk(sound, b"tEXt", b"a\0b", crc=7),
        "endless": sound[:33] + b"\xff\xff\xff\xff" + sound[37:],
    }
    for name, data in faults.items():
        file.write_bytes(data)
        with pytest.raises(ClipError, match=r"0000\.png is damaged or not an image"):
            print(name, read_stream(sequence_of(file.parent, "a", tmp_path)))
    file.write_bytes(with_chunk(sound, b"tEXt", b"a\0b"))
    assert read_stream(sequence_of(file.parent, "a", tmp_path)).shape == (1, 20, 30, 3)


def test_exr_that_is_not_plain_colour_is_refused(tmp_path: Path) -> None:
    import OpenEXR

    whole = np.arange(48, dtype=np.uint32).reshape(6, 8)
    half = np.zeros((6, 8), np.float16)
    for name, channels in {"all": dict.fromkeys("RGB", whole), "one": {"R": half, "G": whole, "B": half}}.items():
        with pytest.raises(ClipError, match=r"0000\.exr has integer channels \(UINT\)\. Allowed: HALF and FLOAT"):
            write_channels(tmp_path / name, channels)
    with pytest.raises(ClipError, match=r"0000\.exr has no colour, only A"):
        write_channels(tmp_path / "alpha", {"A": half})
    (tmp_path / "parts").mkdir()
    planes = np.zeros((6, 8, 3), np.float16)
    kind = OpenEXR.scanlineimage
    parts = [OpenEXR.Part({"type": kind}, {"RGB": planes}, name=name) for name in ("beauty", "albedo")]
    OpenEXR.File(parts).write(str(tmp_path / "parts/0000.exr"))
    with pytest.raises(ClipError, match=r"has 2 parts \(beauty, albedo\)\. Write one part per file"):
        read_stream(sequence_of(tmp_path / "parts", "parts", tmp_path))


def grey_png(levels: np.ndarray, bits: int) -> bytes:
    """Grey levels [H, W], W a multiple of 8, as a PNG of 1, 2, 4 or 8 bits."""
    places = np.arange(bits)[::-1]
    rows = np.packbits(((levels[..., None] >> places) & 1).astype(np.uint8).reshape(len(levels), -1), axis=1)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">II5B", levels.shape[1], levels.shape[0], bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_ids_are_the_levels_that_are_stored(tmp_path: Path, bits: int) -> None:
    ids = np.random.default_rng(0).integers(0, 1 << bits, (6, 16))
    (tmp_path / "ids").mkdir()
    (tmp_path / "ids/0000.png").write_bytes(grey_png(ids, bits))
    found = read_indices(sequence_of(tmp_path / "ids", "ids", tmp_path))
    np.testing.assert_array_equal(found[0, ..., 0], ids)


def test_videos_are_found_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    (tmp_path / "rgb.MP4").write_bytes(b"x")
    stream = find_stream(tmp_path, "rgb", tmp_path)
    assert stream is not None and stream.files == (tmp_path / "rgb.MP4",)
    (tmp_path / "rgb.mp4").write_bytes(b"x")
    with pytest.raises(ClipError, match=r"has rgb\.MP4 and rgb\.mp4: expected one"):
        find_stream(tmp_path, "rgb", tmp_path)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    write_png(tmp_path / "a", np.zeros((2, 6, 8, 3), np.uint8))
    (tmp_path / "a/0002.png").mkdir()
    with pytest.raises(ClipError, match=r"a/0002\.png is not a file"):
        sequence_of(tmp_path / "a", "a", tmp_path)

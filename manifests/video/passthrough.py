"""Passthrough storage of map files: an image sequence or a video, and how its values are decoded.

Datasets of other projects store maps losslessly in common formats (EXR, 16-bit PNG), or in lossy videos. Re-encoding
them takes several times as long as reading them, and results in larger files or rounding errors. A shard can therefore
contain such files unchanged, in an uncompressed ZIP: `kept.json` describes the files and how values are decoded
(`PixelDecoding`), followed by `000000.exr`, ... or `video.mp4`. `unzip` opens it; `Modality.read` decodes the modality.

The data is untrusted: nothing is extracted to disk, names are compared but never used as paths, compressed entries are
rejected, number and sizes of entries are checked before the directory is parsed, and image headers before pixels are
decoded.
"""

import io
import json
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from openuni.manifests.arrays.srgb import srgb_to_linear
from openuni.manifests.arrays.vectors import rescale_vectors, vector_lengths
from openuni.manifests.errors import ClipError
from openuni.manifests.video.container import Limits
from openuni.manifests.video.images import KINDS, ValueLookup, image_size, read_image
from openuni.manifests.video.probe import probe_clip
from openuni.manifests.video.reader import decode_full_depth

FORMAT = "openuni-kept-1"
MANIFEST_NAME = "kept.json"
MAGIC = b"PK\x03\x04"
MAX_MANIFEST_BYTES = 1 << 16
MAX_FRAMES = 60_000  # a plain ZIP has at most 65,535 entries
MAX_NAME_BYTES = 32
VIDEO_KINDS = ("mp4", "mkv", "mov", "webm", "avi", "m4v")  # kinds that are written; other video kinds can be read
FRAMES_AT_ONCE = 8
MAX_FLOAT32 = float(np.finfo(np.float32).max)
MIN_NORMAL_LENGTH = 0.25  # shorter vectors mean "no surface"
ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error)  # zipfile's errors for damaged files
# end record of a ZIP: magic, disk numbers, numbers of entries, size and offset of the directory, comment length
ZIP_END = struct.Struct("<4s4H2IH")


class PixelDecoding(NamedTuple):
    """How a modality's values are decoded from pictures. The steps are applied in the order of the fields.

    Integer levels (8 or 16 bits) are scaled to 0..1, floats are used unchanged.
    """

    coding: Literal["linear", "srgb", "rendering"] = "linear"  # srgb: to linear light; rendering: `Modality.from_rgb`
    scale: float = 1.0  # factor
    offset: float = 0.0  # summand
    lowest: float | None = None  # minimum for clipping
    highest: float | None = None  # maximum for clipping
    channels: Literal[0, 1, 3] = 0  # 0: unchanged; 1: mean of the channels; 3: a single channel repeated
    unit_length: bool = False  # normalize vectors to length 1; zero if shorter than 0.25
    signs: tuple[int, ...] = ()  # factor 1 or -1 per channel; empty: none
    levels: bool = False  # output uint8, 0..1 scaled to 0..255; else float32

    def check(self, channels: int, where: str) -> None:
        """Raise `ClipError` if the steps cannot be applied to pictures with this number of channels."""
        out_channels = self.channels or channels
        max_number = max(map(abs, (self.scale, self.offset, self.lowest or 0.0, self.highest or 0.0)))
        lo, hi = (
            (-math.inf if self.lowest is None else self.lowest),
            (math.inf if self.highest is None else self.highest),
        )
        faults = {
            f"numbers must be within float32 (up to {MAX_FLOAT32:g}), got {max_number:g}": max_number > MAX_FLOAT32,
            f"lowest = {lo:g} is above highest = {hi:g}": lo > hi,
            f"signs must be 1 or -1 for each of {out_channels} channels, got {list(self.signs)}": bool(self.signs)
            and (len(self.signs) != out_channels or bool(set(self.signs) - {1, -1})),
            f"unit_length requires 3 channels, got {out_channels}": self.unit_length and out_channels != 3,
            "levels cannot be combined with channels = 1, unit_length or signs": self.levels
            and (self.channels == 1 or self.unit_length or bool(self.signs)),
        }
        applicable = [text for text, is_fault in faults.items() if is_fault]
        if applicable:
            raise ClipError(f"{where}: invalid decoding in {MANIFEST_NAME}: {'; '.join(applicable)}")


class PixelDecoder:
    """Applies a `PixelDecoding` to pictures of one dtype (uint8, uint16, float16, float32), image by image.

    `is_plain`: the decoding is the identity. `values`: the element-wise steps, those before `channels`.
    """

    def __init__(self, reading: PixelDecoding, dtype: np.dtype) -> None:
        self.reading = reading
        identities = (PixelDecoding(levels=True), PixelDecoding("rendering", levels=True))
        self.is_plain = reading in identities and dtype == np.uint8
        self.values: Callable[[np.ndarray], np.ndarray] = (
            np.asarray if self.is_plain else ValueLookup(self.decode_values, dtype)
        )

    def decode_values(self, values: np.ndarray) -> np.ndarray:
        """Apply the element-wise steps: float32 of any shape -> float32 or uint8 of the same shape."""
        reading = self.reading
        out = srgb_to_linear(values) if reading.coding == "srgb" else values
        if reading.scale != 1.0:
            out = out * np.float32(reading.scale)
        if reading.offset:
            out = out + np.float32(reading.offset)
        if reading.lowest is not None or reading.highest is not None:
            out = np.clip(out, reading.lowest, reading.highest)
        return np.rint(out * np.float32(255)).astype(np.uint8) if reading.levels else out

    def joined(self, values: np.ndarray) -> np.ndarray:
        """Apply the steps from `channels` on to the result of `values`: [H, W, C] -> [H, W, C']."""
        import cv2

        reading = self.reading
        if reading.channels == 1 and values.shape[-1] > 1:
            total = values[..., 0].copy()
            for channel in range(1, values.shape[-1]):
                total += values[..., channel]
            values = (total / values.shape[-1])[..., None]
        elif reading.channels == 3 and values.shape[-1] == 1:
            values = cv2.merge((values, values, values))
        if reading.unit_length:
            values = rescale_vectors(values, vector_lengths(values), 1.0, MIN_NORMAL_LENGTH)
        if reading.signs:
            values = values * np.array(reading.signs, values.dtype)
        return values

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Decode an image: [H, W, C] as stored -> float32 or uint8 [H, W, C']."""
        return self.joined(self.values(image))


def is_passthrough(data: bytes) -> bool:
    """Whether a payload consists of passthrough files rather than an encoded map."""
    return data[: len(MAGIC)] == MAGIC


def suffix_of(data: bytes, otherwise: str) -> str:
    """Suffix of a payload's shard entry: such as "exr.zip" for passthrough files, else `otherwise`."""
    if not is_passthrough(data):
        return otherwise
    files = PassthroughFiles(data, "the stored map")
    return f"{files.names[0].rpartition('.')[2]}.zip"


def pack_files(kind: str, frames: int, files: Sequence[bytes], reading: PixelDecoding) -> bytes:
    """Pack map files into one payload; equal files give equal bytes.

    `kind`: "exr", "png" or "jpg" for a sequence with one file per frame, in order; or a video suffix for a single file.
    `frames`: number of frames. `reading`: how their values are decoded. Raises `ClipError` for other kinds, and for
    another number of files.
    """
    if kind not in (*KINDS, *VIDEO_KINDS):
        raise ClipError(
            f"passthrough of {kind!r} files is not supported. Allowed: {', '.join((*KINDS, *VIDEO_KINDS))}."
        )
    names = _file_names(kind, frames)
    if len(files) != len(names):
        raise ClipError(f"passthrough of {frames} {kind} frames requires {len(names)} files, got {len(files)}")
    target = io.BytesIO()
    manifest = {"format": FORMAT, "kind": kind, "frames": frames, "reading": reading._asdict()}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        contents = [json.dumps(manifest, sort_keys=True).encode(), *files]
        for name, data in zip([MANIFEST_NAME, *names], contents, strict=True):
            info = zipfile.ZipInfo(name)  # has a fixed date
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, data)
    return target.getvalue()


def _is_plain_zip(data: bytes) -> bool:
    """Whether the end record describes a plain ZIP without comment whose directory has a bounded size."""
    if len(data) < ZIP_END.size:
        return False
    magic, disk, first_disk, entries, total, size, offset, comment = ZIP_END.unpack(data[-ZIP_END.size :])
    is_plain = magic == b"PK\x05\x06" and not (disk or first_disk or comment) and entries == total
    fits = offset + size + ZIP_END.size == len(data) and size <= entries * (46 + MAX_NAME_BYTES)
    return bool(is_plain and fits and 2 <= entries <= MAX_FRAMES + 1)


def _file_names(kind: str, frames: int) -> list[str]:
    return [f"{number:06}.{kind}" for number in range(frames)] if kind in KINDS else [f"video.{kind}"]


class _PassthroughManifest(NamedTuple):
    """Contents of `kept.json`."""

    format: Literal["openuni-kept-1"]
    kind: str
    frames: int
    reading: PixelDecoding


@dataclass(frozen=True)
class PassthroughFiles:
    """Reader of passthrough files. `where`: location for errors. All members raise `ClipError` for invalid data."""

    data: bytes
    where: str

    @cached_property
    def archive(self) -> zipfile.ZipFile:
        """The ZIP, after its number of entries, sizes and flags were checked."""
        if not _is_plain_zip(self.data):
            text = f"passthrough files must be a plain ZIP without comment, with 2 to {MAX_FRAMES + 1} entries"
            raise ClipError(f"{self.where}: {text}")
        try:
            archive = zipfile.ZipFile(io.BytesIO(self.data))
            infos = archive.infolist()
        except ZIP_ERRORS as error:
            raise ClipError(f"{self.where}: the ZIP of passthrough files is damaged: {error}") from error
        is_stored = all(
            info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size and not info.flag_bits & 1
            for info in infos
        )
        if not is_stored or sum(info.file_size for info in infos) > len(self.data):
            raise ClipError(f"{self.where}: passthrough files must be stored uncompressed and unencrypted in their ZIP")
        return archive

    @cached_property
    def manifest(self) -> _PassthroughManifest:
        """Kind and number of the files and their decoding, checked against the file names."""
        from pydantic import ConfigDict, TypeAdapter

        names = self.archive.namelist()
        if names[0] != MANIFEST_NAME or self.archive.getinfo(MANIFEST_NAME).file_size > MAX_MANIFEST_BYTES:
            raise ClipError(f"{self.where}: the first entry must be {MANIFEST_NAME}, got {names[0]!r}")
        adapter = TypeAdapter(_PassthroughManifest, config=ConfigDict(allow_inf_nan=False, extra="forbid"))
        try:
            manifest = adapter.validate_json(self._read(MANIFEST_NAME))
        except ValueError as error:
            raise ClipError(f"{self.where}: {MANIFEST_NAME} is invalid: {error}") from error
        is_suffix = manifest.kind.isascii() and manifest.kind.isalnum()
        if not (is_suffix and 1 <= manifest.frames <= MAX_FRAMES) or names[1:] != _file_names(
            manifest.kind, manifest.frames
        ):
            text = f"{manifest.frames} frames of kind {manifest.kind!r}, but the files are {', '.join(names[1:4])}, ..."
            raise ClipError(f"{self.where}: {MANIFEST_NAME} declares {text}")
        return manifest

    @property
    def names(self) -> list[str]:
        """Names of the picture or video files."""
        return _file_names(self.manifest.kind, self.manifest.frames)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.manifest.frames

    def size_px(self, limits: Limits = Limits()) -> tuple[int, int]:
        """(height, width), from the header of the first file."""
        data = self._read(self.names[0])
        if self.manifest.kind in KINDS:
            return image_size(data, self.manifest.kind, self.where)
        clip = probe_clip(self.where, limits, data)
        return clip.height_px, clip.width_px

    def values(self, limits: Limits = Limits()) -> np.ndarray:
        """Decode all frames: float32 or uint8 [T, H, W, C]."""
        out: np.ndarray | None = None
        decode: PixelDecoder | None = None
        for number, image in enumerate(self._images(limits)):
            if decode is None:
                self.manifest.reading.check(image.shape[-1], self.where)
                decode = PixelDecoder(self.manifest.reading, image.dtype)
            values = decode(image)
            if out is None:
                out = np.empty((self.frames, *values.shape), values.dtype)
            out[number] = values
        assert out is not None  # there is at least one frame
        return out

    def renderings(self, limits: Limits = Limits()) -> Iterator[np.ndarray]:
        """Decode renderings, `FRAMES_AT_ONCE` at a time: float32 [t, H, W, 3] in 0..1."""
        levels = self.values(limits) if self.manifest.reading.levels else None
        if levels is None or levels.shape[-1] != 3:
            raise ClipError(f"{self.where}: renderings must be decoded with levels = true and three channels")
        for start in range(0, len(levels), FRAMES_AT_ONCE):
            yield levels[start : start + FRAMES_AT_ONCE].astype(np.float32) / np.float32(255)

    def _images(self, limits: Limits) -> Iterator[np.ndarray]:
        """The stored images, [H, W, C], all of the same size and dtype."""
        if self.manifest.kind not in KINDS:
            data = self._read(self.names[0])
            clip = probe_clip(self.where, limits, data)
            if clip.frame_count != self.frames:
                text = f"the video has {clip.frame_count} frames, {MANIFEST_NAME} declares {self.frames}"
                raise ClipError(f"{self.where}: {text}")
            yield from decode_full_depth(clip, limits, data)
            return
        size_px = self.size_px(limits)
        nbytes = size_px[0] * size_px[1] * 12
        if size_px[0] * size_px[1] > limits.max_pixels or nbytes * self.frames > limits.max_decoded_bytes:
            text = f"{self.frames} frames of {size_px[1]} x {size_px[0]} exceed Limits.max_pixels or max_decoded_bytes"
            raise ClipError(f"{self.where}: {text}")
        first: tuple[np.dtype, tuple[int, ...]] | None = None
        for name in self.names:
            data, where = self._read(name), f"{self.where}, {name}"
            if image_size(data, self.manifest.kind, where) != size_px:
                raise ClipError(f"{where} must be {size_px[1]} x {size_px[0]} like the first frame")
            image = read_image(data, self.manifest.kind, where)
            first = first or (image.dtype, image.shape)
            if (image.dtype, image.shape) != first:
                raise ClipError(
                    f"{where} must be {first[0]} {first[1]} like the first, got {image.dtype} {image.shape}"
                )
            yield image

    def _read(self, name: str) -> bytes:
        try:
            return self.archive.read(name)
        except (*ZIP_ERRORS, KeyError, RuntimeError, OSError, EOFError) as error:  # RuntimeError: encrypted
            raise ClipError(f"{self.where}: passthrough file {name} is damaged: {error}") from error

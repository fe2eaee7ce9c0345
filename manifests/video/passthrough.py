"""Maps kept in the files they came in: an image sequence or a video, and how its values are read.

Other projects' sets hold maps without loss in files that any tool opens (EXR, 16-bit PNG), or in a lossy video that
nothing makes better. Coding them anew costs several times what reading them does, and larger files or rounding. So a
shard may hold such files as they are, in a ZIP without compression: `kept.json` says what they are and how values are
read (`PixelDecoding`), then come `000000.exr`, ... or `video.mp4`. `unzip` opens it; `Modality.read` gives the
modality.

These bytes may be anyone's: nothing is extracted to disk, names are compared and never used as paths, entries are
stored (so nothing unfolds), their number and sizes are checked before the directory is parsed, and image headers
before pixels are decoded.
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
VIDEO_KINDS = ("mp4", "mkv", "mov", "webm", "avi", "m4v")  # that are written; a video of another kind is read too
FRAMES_AT_ONCE = 8
MAX_FLOAT32 = float(np.finfo(np.float32).max)
MIN_NORMAL_LENGTH = 0.25  # a vector shorter than this is no surface
DAMAGED = (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error)  # what zipfile raises for it
END = struct.Struct("<4s4H2IH")  # of a ZIP: magic, disks, entries, size and place of the directory, comment


class PixelDecoding(NamedTuple):
    """How a modality's values are read from pictures: the steps in this order.

    Levels of 8 and 16 bits stand for 0..1, floats for themselves.
    """

    coding: Literal["linear", "srgb", "rendering"] = "linear"  # rendering: of the modality, by its `from_rgb`
    scale: float = 1.0
    offset: float = 0.0
    lowest: float | None = None  # values are clipped to these
    highest: float | None = None
    channels: Literal[0, 1, 3] = 0  # 0: as they are; 1: their mean; 3: a single one repeated
    unit_length: bool = False  # vectors are brought to length 1; zero where shorter than 0.25
    signs: tuple[int, ...] = ()  # each channel times 1 or -1; empty: none
    levels: bool = False  # uint8, 0..1 as 0..255; else float32

    def check(self, channels: int, where: str) -> None:
        """Raise `ClipError` where pictures of so many channels cannot be read so."""
        given = self.channels or channels
        largest = max(map(abs, (self.scale, self.offset, self.lowest or 0.0, self.highest or 0.0)))
        lo, hi = (
            (-math.inf if self.lowest is None else self.lowest),
            (math.inf if self.highest is None else self.highest),
        )
        faults = {
            f"its numbers reach {largest:g}, float32 ends at {MAX_FLOAT32:g}": largest > MAX_FLOAT32,
            f"lowest = {lo:g} is above highest = {hi:g}": lo > hi,
            f"signs are 1 or -1 for each of {given} channels, found {list(self.signs)}": bool(self.signs)
            and (len(self.signs) != given or bool(set(self.signs) - {1, -1})),
            f"only vectors of 3 channels have a length, these have {given}": self.unit_length and given != 3,
            "levels have no mean, no length and no signs": self.levels
            and (self.channels == 1 or self.unit_length or bool(self.signs)),
        }
        wrong = [text for text, holds in faults.items() if holds]
        if wrong:
            raise ClipError(f"{where}: the files cannot be read as {MANIFEST_NAME} says: {'; '.join(wrong)}")


class PixelDecoder:
    """A reading of pictures of one dtype (uint8, uint16, float16, float32), image by image."""

    def __init__(self, reading: PixelDecoding, dtype: np.dtype) -> None:
        self.reading = reading
        as_they_are = (PixelDecoding(levels=True), PixelDecoding("rendering", levels=True))
        self.is_plain = reading in as_they_are and dtype == np.uint8  # nothing is to be done
        # each value by itself: the steps up to `channels`
        self.values: Callable[[np.ndarray], np.ndarray] = (
            np.asarray if self.is_plain else ValueLookup(self.decode_values, dtype)
        )

    def decode_values(self, values: np.ndarray) -> np.ndarray:
        """float32 of any shape -> what each value alone becomes."""
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
        """The steps from `channels` on, of what `values` gave."""
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
        """[H, W, C] as stored -> float32 or uint8 [H, W, C']."""
        return self.joined(self.values(image))


def is_passthrough(data: bytes) -> bool:
    """Whether stored bytes are kept files, not a coded map."""
    return data[: len(MAGIC)] == MAGIC


def suffix_of(data: bytes, otherwise: str) -> str:
    """The suffix under which stored bytes go: "exr.zip" of kept files, else the modality's own."""
    if not is_passthrough(data):
        return otherwise
    kept = PassthroughFiles(data, "the stored map")
    return f"{kept.names[0].rpartition('.')[2]}.zip"


def pack_files(kind: str, frames: int, files: Sequence[bytes], reading: PixelDecoding) -> bytes:
    """One payload of a sequence's files in order, or of a video's only file. `kind`: "exr", "png", "jpg", or a video's
    suffix. Equal files give equal bytes. Raises `ClipError` for another kind, or another number of files.
    """
    if kind not in (*KINDS, *VIDEO_KINDS):
        raise ClipError(f"files of the kind {kind!r} cannot be kept. Allowed: {', '.join((*KINDS, *VIDEO_KINDS))}.")
    names = _names(kind, frames)
    if len(files) != len(names):
        raise ClipError(f"{len(files)} files of the kind {kind} cannot be kept as {frames} frames: {len(names)} needed")
    target = io.BytesIO()
    sheet = {"format": FORMAT, "kind": kind, "frames": frames, "reading": reading._asdict()}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        contents = [json.dumps(sheet, sort_keys=True).encode(), *files]
        for name, data in zip([MANIFEST_NAME, *names], contents, strict=True):
            info = zipfile.ZipInfo(name)  # of a fixed date
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, data)
    return target.getvalue()


def _is_plain(data: bytes) -> bool:
    """Whether a ZIP of few files ends here, by its last bytes: so its directory is known to be small."""
    if len(data) < END.size:
        return False
    magic, disk, first, entries, total, size, place, comment = END.unpack(data[-END.size :])
    plain = magic == b"PK\x05\x06" and not (disk or first or comment) and entries == total
    fits = place + size + END.size == len(data) and size <= entries * (46 + MAX_NAME_BYTES)
    return bool(plain and fits and 2 <= entries <= MAX_FRAMES + 1)


def _names(kind: str, frames: int) -> list[str]:
    return [f"{number:06}.{kind}" for number in range(frames)] if kind in KINDS else [f"video.{kind}"]


class _PassthroughManifest(NamedTuple):
    """What `kept.json` holds."""

    format: Literal["openuni-kept-1"]
    kind: str
    frames: int
    reading: PixelDecoding


@dataclass(frozen=True)
class PassthroughFiles:
    """Kept files, opened: `where` names them in errors. Everything raises `ClipError` for what is not as it must be."""

    data: bytes
    where: str

    @cached_property
    def archive(self) -> zipfile.ZipFile:
        """The ZIP, its entries counted and weighed."""
        if not _is_plain(self.data):
            raise ClipError(f"{self.where}: kept files must be a plain ZIP without comment, of 2 to {MAX_FRAMES} files")
        try:
            archive = zipfile.ZipFile(io.BytesIO(self.data))
            infos = archive.infolist()
        except DAMAGED as error:
            raise ClipError(f"{self.where}: the ZIP of kept files is damaged: {error}") from error
        stored = all(
            info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size and not info.flag_bits & 1
            for info in infos
        )
        if not stored or sum(info.file_size for info in infos) > len(self.data):
            raise ClipError(f"{self.where}: kept files must be stored in their ZIP, neither compressed nor encrypted")
        return archive

    @cached_property
    def manifest(self) -> _PassthroughManifest:
        """What the files are, checked against their names."""
        from pydantic import ConfigDict, TypeAdapter

        names = self.archive.namelist()
        if names[0] != MANIFEST_NAME or self.archive.getinfo(MANIFEST_NAME).file_size > MAX_MANIFEST_BYTES:
            raise ClipError(f"{self.where}: the first of the kept files must be {MANIFEST_NAME}, found {names[0]!r}")
        adapter = TypeAdapter(_PassthroughManifest, config=ConfigDict(allow_inf_nan=False, extra="forbid"))
        try:
            sheet = adapter.validate_json(self._read(MANIFEST_NAME))
        except ValueError as error:
            raise ClipError(f"{self.where}: {MANIFEST_NAME} does not say how the files are read: {error}") from error
        suffix = sheet.kind.isascii() and sheet.kind.isalnum()
        if not (suffix and 1 <= sheet.frames <= MAX_FRAMES) or names[1:] != _names(sheet.kind, sheet.frames):
            text = f"{sheet.frames} frames of kind {sheet.kind!r}, the files are {', '.join(names[1:4])}, ..."
            raise ClipError(f"{self.where}: {MANIFEST_NAME} says {text}")
        return sheet

    @property
    def names(self) -> list[str]:
        """Of the files with pictures."""
        return _names(self.manifest.kind, self.manifest.frames)

    @property
    def frames(self) -> int:
        """How many."""
        return self.manifest.frames

    def size_px(self, limits: Limits = Limits()) -> tuple[int, int]:
        """Height and width, by the first header."""
        data = self._read(self.names[0])
        if self.manifest.kind in KINDS:
            return image_size(data, self.manifest.kind, self.where)
        clip = probe_clip(self.where, limits, data)
        return clip.height_px, clip.width_px

    def values(self, limits: Limits = Limits()) -> np.ndarray:
        """float32 or uint8 [T, H, W, C]: all that the files show, by the reading."""
        out: np.ndarray | None = None
        convert: PixelDecoder | None = None
        for number, image in enumerate(self._images(limits)):
            if convert is None:
                self.manifest.reading.check(image.shape[-1], self.where)
                convert = PixelDecoder(self.manifest.reading, image.dtype)
            values = convert(image)
            if out is None:
                out = np.empty((self.frames, *values.shape), values.dtype)
            out[number] = values
        assert out is not None  # there is a frame
        return out

    def renderings(self, limits: Limits = Limits()) -> Iterator[np.ndarray]:
        """float32 [t, H, W, 3] in 0..1, some frames at a time."""
        shown = self.values(limits) if self.manifest.reading.levels else None
        if shown is None or shown.shape[-1] != 3:
            raise ClipError(f"{self.where}: a rendering must be read as levels of three channels")
        for start in range(0, len(shown), FRAMES_AT_ONCE):
            yield shown[start : start + FRAMES_AT_ONCE].astype(np.float32) / np.float32(255)

    def _images(self, limits: Limits) -> Iterator[np.ndarray]:
        """[H, W, C] as stored, all of one size and dtype."""
        if self.manifest.kind not in KINDS:
            data = self._read(self.names[0])
            clip = probe_clip(self.where, limits, data)
            if clip.frame_count != self.frames:
                text = f"the video has {clip.frame_count} frames, {MANIFEST_NAME} says {self.frames}"
                raise ClipError(f"{self.where}: {text}")
            yield from decode_full_depth(clip, limits, data)
            return
        size_px = self.size_px(limits)
        nbytes = size_px[0] * size_px[1] * 12
        if size_px[0] * size_px[1] > limits.max_pixels or nbytes * self.frames > limits.max_decoded_bytes:
            raise ClipError(f"{self.where}: {self.frames} frames of {size_px[1]} x {size_px[0]} are too many at once")
        first: tuple[np.dtype, tuple[int, ...]] | None = None
        for name in self.names:
            data, where = self._read(name), f"{self.where}, {name}"
            if image_size(data, self.manifest.kind, where) != size_px:
                raise ClipError(f"{where} is not {size_px[1]} x {size_px[0]} as the first is")
            image = read_image(data, self.manifest.kind, where)
            first = first or (image.dtype, image.shape)
            if (image.dtype, image.shape) != first:
                raise ClipError(f"{where}: {image.dtype} {image.shape}, the first is {first[0]} {first[1]}")
            yield image

    def _read(self, name: str) -> bytes:
        try:
            return self.archive.read(name)
        except (*DAMAGED, KeyError, RuntimeError, OSError, EOFError) as error:  # RuntimeError: encrypted
            raise ClipError(f"{self.where}: the kept file {name} is damaged: {error}") from error

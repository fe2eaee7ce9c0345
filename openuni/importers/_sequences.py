"""Pictures of a clip from a numbered image sequence or a video, with limits before anything is decoded.

Sequences are EXR (read by OpenEXR), PNG (OpenCV, its checksums proved before) or JPEG (Pillow).
"""

import mmap
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from manifests.clip import Clip
from manifests.errors import ClipError, MissingPart
from manifests.video import Limits, decode_deep, whole_clip
from openuni.importers._sets import inside

IMAGES = (".exr", ".png", ".jpg", ".jpeg")
VIDEOS = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
LAST_NUMBER = re.compile(r"(\d+)(?!.*\d)")


class Stream(NamedTuple):
    """One modality's files, not opened yet."""

    name: str  # for errors: what the set calls it
    kind: str  # "video", "exr", "png" or "jpg"
    files: tuple[Path, ...]  # one video, or the frames in order

    @property
    def where(self) -> Path:
        """The video, or the folder of the sequence."""
        return self.files[0] if self.kind == "video" else self.files[0].parent


class Pictures(NamedTuple):
    """What a stream shows. `array` [T, H, W, 1 or 3]: uint8, uint16, or float16 or float32 (EXR alone, as there)."""

    array: np.ndarray
    stream: Stream
    video: Clip | None  # None: a sequence of images, which does not tell its rate

    @property
    def is_float(self) -> bool:
        """Whether values are light itself, not levels."""
        return self.array.dtype.kind == "f"

    def unit(self) -> np.ndarray:
        """float32 [T, H, W, C]: levels as 0..1, EXR as it is; the array itself where that is float32."""
        if self.array.dtype == np.float32:
            return self.array
        out = np.empty(self.array.shape, np.float32)
        for target, image in zip(out, self.array, strict=True):
            if self.is_float:
                _widen(image, target)
            else:
                np.divide(image, np.float32(np.iinfo(image.dtype).max), out=target, dtype=np.float32)
        return out

    def units(self) -> Iterator[np.ndarray]:
        """The same frame by frame, each [H, W, C] only there until the next one is asked for."""
        room = np.empty(self.array.shape[1:], np.float32)
        yield from self.array if self.array.dtype == np.float32 else self._through(np.positive, repeat(room))

    def through(self, function: Callable[[np.ndarray], np.ndarray], dtype: type[np.generic]) -> np.ndarray:
        """`function` of every value, taken as `unit` gives it: [T, H, W, C] of `dtype`, uint8 or float32."""
        out = np.empty(self.array.shape, dtype)
        for _ in self._through(function, out):
            pass
        return out

    def _through(
        self, function: Callable[[np.ndarray], np.ndarray], targets: Iterable[np.ndarray]
    ) -> Iterator[np.ndarray]:
        """Frames put into `targets`. Of 8 or 16 bits there are so few different values that each is computed once."""
        import cv2

        if self.array.dtype == np.float32:
            for target, image in zip(targets, self.array, strict=False):
                target[:] = function(image)
                yield target
            return
        levels = np.arange(1 << 8 * self.array.dtype.itemsize).astype(f"u{self.array.dtype.itemsize}")
        values = levels.view(np.float16) if self.is_float else levels / np.float32(levels[-1])
        table = None
        for target, image in zip(targets, self.array.view(levels.dtype), strict=False):
            if table is None:
                with np.errstate(all="ignore"):  # the table has entries for NaN too, whether it occurs or not
                    table = function(values.astype(np.float32)).astype(target.dtype)
            cv2.LUT(image, table, dst=target)
            yield target


def find_stream(folder: Path, name: str, root: str | Path) -> Stream | None:
    """The sequence `folder/name/` or the video `folder/name.mp4` (.mkv, ...); None when there is neither.

    Raises `ClipError` when there are both, when numbers are missing from a sequence, and when a link leaves `root`.
    """
    videos = [folder / f"{name}{suffix}" for suffix in VIDEOS if (folder / f"{name}{suffix}").is_file()]
    sequence = folder / name
    found = [*videos, *([sequence] if sequence.is_dir() else [])]
    if len(found) > 1:
        raise ClipError(f"{folder} has {' and '.join(path.name for path in found)}: one is needed, remove the other")
    if not found:
        return None
    if videos:
        return Stream(name, "video", (inside(videos[0], root),))
    return sequence_of(sequence, name, root)


def sequence_of(folder: Path, name: str, root: str | Path) -> Stream:
    """The numbered images of a folder. The last digits of a file's name are its number; they count up by one."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGES and not path.name.startswith(".")]
    if not files:
        raise ClipError(f"{folder} holds no images ({', '.join(IMAGES)})")
    kinds = Counter(path.suffix.lower() for path in files)
    if len(kinds) > 1:
        found = ", ".join(f"{count} {suffix}" for suffix, count in sorted(kinds.items()))
        raise ClipError(f"{folder} holds {found}: a sequence has one kind of image")
    numbers: dict[int, Path] = {}
    for path in sorted(files):
        digits = LAST_NUMBER.search(path.stem)
        if digits is None:
            raise ClipError(f"{path} has no number in its name: frames are named like 0001{path.suffix}")
        number = int(digits[1])
        if number in numbers:
            raise ClipError(f"{folder}: {numbers[number].name} and {path.name} have the same number {number}")
        numbers[number] = inside(path, root)
    ordered = sorted(numbers)
    lost = ordered[-1] - ordered[0] + 1 - len(ordered)
    if lost:
        gap = next(before + 1 for before, after in pairwise(ordered) if after > before + 1)
        text = f"{lost} of the frames {ordered[0]} to {ordered[-1]} are missing, the first is {gap}"
        raise ClipError(f"{folder}: {text}. Fetch or render them again.")
    kind = next(iter(kinds)).removeprefix(".").replace("jpeg", "jpg")
    return Stream(name, kind, tuple(numbers[number] for number in ordered))


def read_stream(stream: Stream, limits: Limits = Limits(), *, widen: bool = False) -> Pictures:
    """All pictures. Raises `ClipError` naming the file that is damaged, of another size, or over the limits.

    `widen`: float16 becomes float32 picture by picture, which is quicker than `unit` of all of them.
    """
    if stream.kind == "video":
        video = whole_clip(str(stream.files[0]), limits)
        return Pictures(decode_deep(video, limits), stream, video)
    count = len(stream.files)
    if count > limits.max_frame_count:
        raise ClipError(f"{stream.where} has {count} frames; at most {limits.max_frame_count} are read")
    read_size = _exr_size if stream.kind == "exr" else _image_size
    size = read_size(stream.files[0])
    if size[0] * size[1] > limits.max_pixels or size[0] * size[1] * count * 12 > limits.max_decoded_bytes:
        text = f"{count} frames of {size[1]} x {size[0]}"
        raise ClipError(f"{stream.where}: {text} are more than is read at once: scale them down or cut the clip")
    array, kind = None, None
    for number, path in enumerate(stream.files):
        found = read_size(path)
        if found != size:
            raise ClipError(f"{path} is {found[1]} x {found[0]}, the frames before it are {size[1]} x {size[0]}")
        image = _read_exr(path) if stream.kind == "exr" else _read_image(path)
        kind = kind or (image.dtype, image.shape)
        if (image.dtype, image.shape) != kind:
            raise ClipError(f"{stream.where}: the images differ in bit depth or channels; write all of them alike")
        wide = widen and image.dtype == np.float16
        if array is None:
            array = np.empty((count, *image.shape), np.float32 if wide else image.dtype)
        if wide:
            _widen(np.ascontiguousarray(image), array[number])
        else:
            array[number] = image
    assert array is not None  # a sequence has an image
    return Pictures(array, stream, None)


@cache
def _halves() -> np.ndarray:
    """float32 [65536]: what each pattern of a 16-bit float stands for."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _widen(image: np.ndarray, target: np.ndarray) -> None:
    """float16 -> float32 [H, W, C]; a table is several times faster than numpy's conversion."""
    import cv2

    cv2.LUT(image.view(np.uint16), _halves(), dst=target)


def check_alike(pictures: dict[str, Pictures], first: str) -> None:
    """Raise `ClipError` unless all have the frames and the size of the one called `first`."""
    wanted = pictures[first].array.shape[:3]
    for given in pictures.values():
        found = given.array.shape[:3]
        if found[0] != wanted[0]:
            text = f"{found[0]} frames, {first} has {wanted[0]}"
            raise ClipError(f"{given.stream.where} has {text}: all streams of a clip need as many")
        if found != wanted:
            sizes = f"{found[2]} x {found[1]}, {first} is {wanted[2]} x {wanted[1]}"
            raise ClipError(f"{given.stream.where} is {sizes}: all streams of a clip need one size")


def read_indices(stream: Stream, limits: Limits = Limits()) -> np.ndarray:
    """uint16 [T, H, W, 1]: the palette's indices, or the grey levels, of a PNG sequence."""
    from PIL import Image

    if stream.kind != "png":
        raise ClipError(f"{stream.where}: ids are read from PNG images, found {stream.kind}")
    height_px, width_px = size = _image_size(stream.files[0])
    if height_px * width_px * len(stream.files) * 4 > limits.max_decoded_bytes:
        raise ClipError(f"{stream.where}: {len(stream.files)} images of {width_px} x {height_px} are too many at once")
    images = []
    for path in stream.files:
        if _image_size(path) != size:
            raise ClipError(f"{path} is not {width_px} x {height_px} as the images before it are")
        try:
            with Image.open(path, formats=("PNG",)) as image:
                if image.mode not in ("P", "L", "I;16", "1"):
                    raise ClipError(f"{path} is a {image.mode} picture; ids are a palette's indices or grey levels")
                images.append(np.asarray(image).astype(np.uint16))
        except (OSError, SyntaxError, ValueError) as error:
            raise ClipError(f"{path} is damaged: {error}") from error
    return np.stack(images)[..., None]


def _image_size(path: Path) -> tuple[int, int]:
    """Height and width from the header of a PNG or JPEG; proves a PNG's checksums."""
    from PIL import Image

    try:
        if path.suffix.lower() == ".png":
            return _png_size(path)
        with Image.open(path, formats=("JPEG",)) as image:
            width_px, height_px = image.size
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise ClipError(f"{path} is damaged or no image: {error}") from error
    return height_px, width_px


def _png_size(path: Path) -> tuple[int, int]:
    """Height and width; the checksum of every chunk is computed, as OpenCV passes over wrong ones."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:8] != PNG_MAGIC or data[12:16] != b"IHDR":
            raise ValueError("it does not begin as a PNG does")
        width_px, height_px = struct.unpack(">II", data[16:24])
        place, kind = 8, b""
        while kind != b"IEND":
            length, kind = struct.unpack(">I4s", data[place : place + 8])
            end = place + 8 + length
            if struct.pack(">I", zlib.crc32(data[place + 4 : end])) != data[end : end + 4]:
                raise ValueError(f"the checksum of the chunk at byte {place} is wrong")
            place = end + 4
    return height_px, width_px


def _read_image(path: Path) -> np.ndarray:
    """uint8 or uint16 [H, W, 1 or 3] of a PNG or JPEG, opaque: a transparent one is refused."""
    import cv2
    from PIL import Image

    if path.suffix.lower() != ".png":
        try:
            with Image.open(path, formats=("JPEG",)) as image:
                pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise ClipError(f"{path} is damaged: {error}") from error
        return pixels if pixels.ndim == 3 else pixels[..., None]
    levels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if levels is None or levels.dtype not in (np.uint8, np.uint16):
        raise ClipError(f"{path} is damaged or no PNG of 8 or 16 bits")
    if levels.ndim == 2:
        return levels[..., None]
    if levels.shape[-1] == 4:
        if int(levels[..., 3].min()) < (255 if levels.dtype == np.uint8 else 65535):
            raise ClipError(f"{path} is transparent in places: give pictures without an alpha channel")
        levels = levels[..., :3]
    return cv2.cvtColor(levels, cv2.COLOR_BGR2RGB)


def _exr(path: Path, *, header_only: bool = False, packed: bool = False) -> Any:
    try:
        import OpenEXR
    except ImportError as error:
        raise MissingPart("EXR files need a package that is not installed: pip install OpenEXR") from error
    try:
        return OpenEXR.File(str(path), separate_channels=not packed, header_only=header_only, num_threads=0)
    except (RuntimeError, ValueError, OSError) as error:
        raise ClipError(f"{path} is damaged or no EXR file: {error}") from error


def _exr_size(path: Path) -> tuple[int, int]:
    try:
        header = _exr(path, header_only=True).header()
        (left, top), (right, bottom) = (corner.tolist() for corner in header["dataWindow"])
        shown = [corner.tolist() for corner in header["displayWindow"]]
    except (RuntimeError, ValueError, KeyError) as error:
        raise ClipError(f"{path} is damaged or no EXR file: {error}") from error
    if shown != [[left, top], [right, bottom]]:
        raise ClipError(f"{path} is cropped: its data window is not its display window; render whole frames")
    return bottom - top + 1, right - left + 1


def _read_exr(path: Path) -> np.ndarray:
    """float16 or float32 [H, W, 1 or 3]: the file's only R, G, B (or X, Y, Z, or single) channels, without alpha."""
    pixels = _interleaved(path)
    if pixels is None:
        pixels = _joined_planes(path)
    return pixels if pixels.dtype == np.float16 else pixels.astype(np.float32, copy=False)


def _interleaved(path: Path) -> np.ndarray | None:
    """[H, W, 3] as the reader itself puts R, G, B together, with or without A; None where it cannot."""
    try:
        channels = _exr(path, packed=True).channels()
    except (ClipError, RuntimeError, ValueError):  # types that differ, or damage: the other way says which
        return None
    names = set(channels)
    return channels[names.pop()].pixels[..., :3] if names in ({"RGB"}, {"RGBA"}) else None


def _joined_planes(path: Path) -> np.ndarray:
    """[H, W, 1 or 3] of a file whose channels must be looked at one by one."""
    try:
        channels = _exr(path).channels()
    except (RuntimeError, ValueError) as error:  # reading the pixels failed
        raise ClipError(f"{path} is damaged: {error}") from error
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, channel in channels.items():
        layer, _, part = name.rpartition(".")
        if part.upper() != "A":
            layers.setdefault(layer, {})[part.upper()] = channel.pixels
    if len(layers) != 1:
        raise ClipError(f"{path} has {len(layers)} layers ({', '.join(sorted(channels))}): write one layer per file")
    (parts,) = layers.values()
    order = next((names for names in ("RGB", "XYZ") if set(names) == set(parts)), "")
    planes = [parts[name] for name in order] if order else list(parts.values())
    if len(planes) not in (1, 3) or (len(planes) == 3 and not order):
        raise ClipError(f"{path} has the channels {', '.join(sorted(channels))}; read are R G B, X Y Z, or one alone")
    if any(plane.shape != planes[0].shape for plane in planes):
        raise ClipError(f"{path}: its channels are sampled at different sizes")
    return np.stack(planes, axis=-1)

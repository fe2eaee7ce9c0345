"""Frames of a clip from a numbered image sequence or a video, with limits checked before anything is decoded."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openuni.exchange.importers._dataset_layout import resolve_inside
from openuni.manifests.errors import ClipError
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.container import Limits
from openuni.manifests.video.images import image_size, read_image, read_png_indices
from openuni.manifests.video.passthrough import VIDEO_KINDS
from openuni.manifests.video.probe import probe_clip
from openuni.manifests.video.reader import decode_full_depth
from openuni.pipeline.phases import decoder_threads

IMAGES = (".exr", ".png", ".jpg", ".jpeg")
VIDEOS = tuple(f".{kind}" for kind in VIDEO_KINDS)
MAX_FILE_BYTES = 2 * 10**9  # maximum size of an image file
LAST_NUMBER = re.compile(r"(\d+)(?!.*\d)")


class StreamFiles(NamedTuple):
    """The files of one modality, not opened yet."""

    name: str  # name in the dataset, for errors
    kind: str  # "video", "exr", "png" or "jpg"
    files: tuple[Path, ...]  # one video, or the frames in order
    first: int = 0  # number of the first frame of a sequence

    @property
    def where(self) -> Path:
        """Path of the video, or of the folder of the sequence."""
        return self.files[0] if self.kind == "video" else self.files[0].parent


def find_stream(folder: Path, name: str, root: str | Path) -> StreamFiles | None:
    """The sequence `folder/name/` or the video `folder/name.mp4` (.mkv, .MP4, ...); None if neither exists.

    Raises `ClipError` if both exist, if frames are missing from a sequence, or if a link leads outside `root`.
    """
    # listing the folder for each clip is too slow: it may contain a hundred thousand clips
    named = (folder / f"{name}{case(suffix)}" for suffix in VIDEOS for case in (str, str.upper))
    # by inode: on case-insensitive file systems .mp4 and .MP4 are the same file
    same = {path.stat().st_ino: path for path in named if path.is_file()}
    videos = sorted(same.values())
    sequence = folder / name
    found = [*videos, *([sequence] if sequence.is_dir() else [])]
    if len(found) > 1:
        raise ClipError(f"{folder} has {' and '.join(path.name for path in found)}: expected one. Remove the other.")
    if not found:
        return None
    if videos:
        return StreamFiles(name, "video", (resolve_inside(videos[0], root),))
    return sequence_of(sequence, name, root)


def sequence_of(folder: Path, name: str, root: str | Path) -> StreamFiles:
    """The numbered images of a folder. The last digits of a file name are the frame number; numbers are contiguous."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGES and not path.name.startswith(".")]
    if not files:
        raise ClipError(f"{folder} has no images ({', '.join(IMAGES)})")
    kinds = Counter(path.suffix.lower() for path in files)
    if len(kinds) > 1:
        found = ", ".join(f"{count} {suffix}" for suffix, count in sorted(kinds.items()))
        raise ClipError(f"{folder} has {found}: a sequence must have one kind of image")
    numbers: dict[int, Path] = {}
    for path in sorted(files):
        if not path.is_file():
            raise ClipError(f"{path} is not a file. Remove it, or replace it by the image.")
        digits = LAST_NUMBER.search(path.stem)
        if digits is None:
            raise ClipError(f"{path} has no frame number in its name; expected a name like 0001{path.suffix}")
        number = int(digits[1])
        if number in numbers:
            raise ClipError(f"{folder}: {numbers[number].name} and {path.name} have the same number {number}")
        numbers[number] = resolve_inside(path, root)
    ordered = sorted(numbers)
    missing = ordered[-1] - ordered[0] + 1 - len(ordered)
    if missing:
        gap = next(before + 1 for before, after in pairwise(ordered) if after > before + 1)
        text = f"{missing} of the frames {ordered[0]} to {ordered[-1]} are missing, the first is {gap}"
        raise ClipError(f"{folder}: {text}. Download or render them again.")
    kind = next(iter(kinds)).removeprefix(".").replace("jpeg", "jpg")
    return StreamFiles(name, kind, tuple(numbers[number] for number in ordered), ordered[0])


class StreamReader:
    """Reads the frames of a stream one by one, within the limits; `data` collects the files read so far.

    Raises `ClipError` for a file that is damaged, has another size, or exceeds the limits.
    """

    def __init__(self, stream: StreamFiles, limits: Limits = Limits()) -> None:
        self.stream, self.limits = stream, limits
        self.data: list[bytes] = []
        self.frames: np.ndarray | None = None  # frames of a video, after `images` was called
        self.video: Clip | None = None  # None for an image sequence, which has no frame rate
        if stream.kind == "video":
            self.video = probe_clip(str(stream.files[0]), limits)
            self.count, self.size_px = self.video.frame_count, (self.video.height_px, self.video.width_px)
            return
        self.count = len(stream.files)
        if self.count > limits.max_frame_count:
            raise ClipError(f"{stream.where} has {self.count} frames; the limit is {limits.max_frame_count}")
        self.first = _bytes(stream.files[0])
        self.size_px = height_px, width_px = image_size(self.first, stream.kind, str(stream.files[0]))
        pixels = height_px * width_px
        if pixels > limits.max_pixels or pixels * self.count * 12 > limits.max_decoded_bytes:
            text = f"{self.count} frames of {width_px} x {height_px}"
            raise ClipError(f"{stream.where}: {text} exceed the memory limit. Scale the frames down, or cut the clip.")

    def nbytes(self) -> int:
        """Total size of the stream's files."""
        return sum(path.stat().st_size for path in self.stream.files)

    def images(self, *, keep: bool = False) -> Iterator[np.ndarray]:
        """Yield [H, W, 1 or 3] as stored, all of one dtype and shape; `keep`: also collect the files in `data`."""
        if self.video is not None:
            if keep:
                self.data.append(self.stream.files[0].read_bytes())
            # one thread, because the streams of a clip, and clips, are read in parallel
            self.frames = decode_full_depth(self.video, self.limits, self.data[0] if keep else None, threads=1)
            yield from self.frames
            return
        kind: tuple[np.dtype, tuple[int, ...]] | None = None
        rest = (_bytes(path) for path in self.stream.files[1:])
        for path, data in zip(self.stream.files, chain([self.first], rest), strict=True):
            if data is not self.first:
                self._check_size(path, data)
            image = read_image(path if self.stream.kind == "exr" else data, self.stream.kind, str(path))
            kind = kind or (image.dtype, image.shape)
            if (image.dtype, image.shape) != kind:
                raise ClipError(f"{self.stream.where}: images differ in bit depth or channels; all must be the same")
            if keep:
                self.data.append(data)
            yield np.ascontiguousarray(image)

    def _check_size(self, path: Path, data: bytes) -> None:
        found = image_size(data, self.stream.kind, str(path))
        if found != self.size_px:
            sizes = f"{found[1]} x {found[0]}, the frames before it are {self.size_px[1]} x {self.size_px[0]}"
            raise ClipError(f"{path} is {sizes}")


def read_stream(stream: StreamFiles, limits: Limits = Limits()) -> np.ndarray:
    """All frames at once: [T, H, W, 1 or 3], uint8, uint16, or as stored in EXR float16 or float32.

    Raises `ClipError` as `StreamReader` does.
    """
    reader = StreamReader(stream, limits)
    if reader.video is not None:
        return decode_full_depth(reader.video, limits, None, decoder_threads())
    array = None
    for number, image in enumerate(reader.images()):
        if array is None:
            array = np.empty((reader.count, *image.shape), image.dtype)
        array[number] = image
    assert array is not None  # a sequence has at least one image
    return array


def check_same(sizes: dict[str, tuple[Path, tuple[int, ...]]], first: str) -> None:
    """Raise `ClipError` unless all streams (path; frames, height_px, width_px) match the one named `first`."""
    expected = sizes[first][1]
    for where, found in sizes.values():
        if found[0] != expected[0]:
            text = f"{found[0]} frames, {first} has {expected[0]}"
            raise ClipError(f"{where} has {text}: all streams of a clip must have the same number")
        if found != expected:
            shapes = f"{found[2]} x {found[1]}, {first} is {expected[2]} x {expected[1]}"
            raise ClipError(f"{where} is {shapes}: all streams of a clip must have the same size")


def check_numbers(streams: Iterable[StreamFiles]) -> None:
    """Raise `ClipError` unless all image sequences start at the same number, since frames are paired by order."""
    sequences = [stream for stream in streams if stream.kind != "video"]
    for stream in sequences:
        if stream.first != sequences[0].first:
            text = f"starts at frame {stream.first}, {sequences[0].where} at frame {sequences[0].first}"
            raise ClipError(f"{stream.where} {text}: cannot pair frames. Number all streams the same way.")


def read_indices(stream: StreamFiles, limits: Limits = Limits()) -> np.ndarray:
    """Palette indices, or grey levels as stored, of a PNG sequence: uint16 [T, H, W, 1]."""
    if stream.kind != "png":
        raise ClipError(f"{stream.where}: ids must be PNG images, got {stream.kind}")
    height_px, width_px = size = _size(stream.files[0])
    if height_px * width_px * len(stream.files) * 4 > limits.max_decoded_bytes:
        raise ClipError(
            f"{stream.where}: {len(stream.files)} images of {width_px} x {height_px} exceed the memory limit"
        )
    images = []
    for path in stream.files:
        if _size(path) != size:
            raise ClipError(f"{path} is not {width_px} x {height_px} like the images before it")
        images.append(read_png_indices(path))
    return np.stack(images)[..., None]


def _size(path: Path) -> tuple[int, int]:
    return image_size(_bytes(path), "png", str(path))


def _bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ClipError(f"{path} has {size:,} bytes; the limit for an image is {MAX_FILE_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise ClipError(f"{path} cannot be read: {error.strerror}") from error

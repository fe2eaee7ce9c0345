"""Pictures of a clip from a numbered image sequence or a video, with limits before anything is decoded."""

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
from openuni.manifests.video.images import image_size, read_image
from openuni.manifests.video.passthrough import VIDEO_KINDS
from openuni.manifests.video.probe import probe_clip
from openuni.manifests.video.reader import decode_full_depth
from openuni.pipeline.phases import decoder_threads

IMAGES = (".exr", ".png", ".jpg", ".jpeg")
VIDEOS = tuple(f".{kind}" for kind in VIDEO_KINDS)
MAX_FILE_BYTES = 2 * 10**9  # of an image
GREY_STRETCH = {2: 85, 4: 17}  # what Pillow multiplies grey levels of so many bits by
LAST_NUMBER = re.compile(r"(\d+)(?!.*\d)")


class StreamFiles(NamedTuple):
    """One modality's files, not opened yet."""

    name: str  # for errors: what the set calls it
    kind: str  # "video", "exr", "png" or "jpg"
    files: tuple[Path, ...]  # one video, or the frames in order
    first: int = 0  # number of the first frame of a sequence

    @property
    def where(self) -> Path:
        """The video, or the folder of the sequence."""
        return self.files[0] if self.kind == "video" else self.files[0].parent


def find_stream(folder: Path, name: str, root: str | Path) -> StreamFiles | None:
    """The sequence `folder/name/` or the video `folder/name.mp4` (.mkv, .MP4, ...); None when there is neither.

    Raises `ClipError` when there are both, when numbers are missing from a sequence, and when a link leaves `root`.
    """
    # a folder may hold a hundred thousand clips: it is not listed for each of them
    named = (folder / f"{name}{case(suffix)}" for suffix in VIDEOS for case in (str, str.upper))
    same = {path.stat().st_ino: path for path in named if path.is_file()}  # where .mp4 and .MP4 are one name, one file
    videos = sorted(same.values())
    sequence = folder / name
    found = [*videos, *([sequence] if sequence.is_dir() else [])]
    if len(found) > 1:
        raise ClipError(f"{folder} has {' and '.join(path.name for path in found)}: one is needed, remove the other")
    if not found:
        return None
    if videos:
        return StreamFiles(name, "video", (resolve_inside(videos[0], root),))
    return sequence_of(sequence, name, root)


def sequence_of(folder: Path, name: str, root: str | Path) -> StreamFiles:
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
        if not path.is_file():
            raise ClipError(f"{path} is no file: remove it, or put the image there")
        digits = LAST_NUMBER.search(path.stem)
        if digits is None:
            raise ClipError(f"{path} has no number in its name: frames are named like 0001{path.suffix}")
        number = int(digits[1])
        if number in numbers:
            raise ClipError(f"{folder}: {numbers[number].name} and {path.name} have the same number {number}")
        numbers[number] = resolve_inside(path, root)
    ordered = sorted(numbers)
    lost = ordered[-1] - ordered[0] + 1 - len(ordered)
    if lost:
        gap = next(before + 1 for before, after in pairwise(ordered) if after > before + 1)
        text = f"{lost} of the frames {ordered[0]} to {ordered[-1]} are missing, the first is {gap}"
        raise ClipError(f"{folder}: {text}. Fetch or render them again.")
    kind = next(iter(kinds)).removeprefix(".").replace("jpeg", "jpg")
    return StreamFiles(name, kind, tuple(numbers[number] for number in ordered), ordered[0])


class StreamReader:
    """A stream's pictures one by one, within the limits; `data` holds the files that have been read so far.

    Raises `ClipError` naming the file that is damaged, of another size, or over the limits.
    """

    def __init__(self, stream: StreamFiles, limits: Limits = Limits()) -> None:
        self.stream, self.limits = stream, limits
        self.data: list[bytes] = []
        self.frames: np.ndarray | None = None  # of a video, once its images are asked for
        self.video: Clip | None = None  # None: a sequence of images, which does not tell its rate
        if stream.kind == "video":
            self.video = probe_clip(str(stream.files[0]), limits)
            self.count, self.size_px = self.video.frame_count, (self.video.height_px, self.video.width_px)
            return
        self.count = len(stream.files)
        if self.count > limits.max_frame_count:
            raise ClipError(f"{stream.where} has {self.count} frames; at most {limits.max_frame_count} are read")
        self.first = _bytes(stream.files[0])
        self.size_px = height_px, width_px = image_size(self.first, stream.kind, str(stream.files[0]))
        pixels = height_px * width_px
        if pixels > limits.max_pixels or pixels * self.count * 12 > limits.max_decoded_bytes:
            text = f"{self.count} frames of {width_px} x {height_px}"
            raise ClipError(f"{stream.where}: {text} are more than is read at once: scale them down or cut the clip")

    def nbytes(self) -> int:
        """Of the stream's files."""
        return sum(path.stat().st_size for path in self.stream.files)

    def images(self, *, keep: bool = False) -> Iterator[np.ndarray]:
        """[H, W, 1 or 3] as stored, of one dtype and shape; `keep`: also put the files into `data`."""
        if self.video is not None:
            if keep:
                self.data.append(self.stream.files[0].read_bytes())
            # one thread: the streams of a clip are read at once, and so are clips
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
                raise ClipError(
                    f"{self.stream.where}: the images differ in bit depth or channels; write all of them alike"
                )
            if keep:
                self.data.append(data)
            yield np.ascontiguousarray(image)

    def _check_size(self, path: Path, data: bytes) -> None:
        found = image_size(data, self.stream.kind, str(path))
        if found != self.size_px:
            sizes = f"{found[1]} x {found[0]}, the frames before it are {self.size_px[1]} x {self.size_px[0]}"
            raise ClipError(f"{path} is {sizes}")


def read_stream(stream: StreamFiles, limits: Limits = Limits()) -> np.ndarray:
    """All pictures at once: [T, H, W, 1 or 3], uint8, uint16, or float16 or float32 (EXR alone, as there).

    Raises `ClipError` as `StreamReader` does.
    """
    film = StreamReader(stream, limits)
    if film.video is not None:
        return decode_full_depth(film.video, limits, None, decoder_threads())
    array = None
    for number, image in enumerate(film.images()):
        if array is None:
            array = np.empty((film.count, *image.shape), image.dtype)
        array[number] = image
    assert array is not None  # a sequence has an image
    return array


def check_same(sizes: dict[str, tuple[Path, tuple[int, ...]]], first: str) -> None:
    """Raise `ClipError` unless all (where they lie; frames, height_px, width_px) are as the one called `first`."""
    wanted = sizes[first][1]
    for where, found in sizes.values():
        if found[0] != wanted[0]:
            text = f"{found[0]} frames, {first} has {wanted[0]}"
            raise ClipError(f"{where} has {text}: all streams of a clip need as many")
        if found != wanted:
            shapes = f"{found[2]} x {found[1]}, {first} is {wanted[2]} x {wanted[1]}"
            raise ClipError(f"{where} is {shapes}: all streams of a clip need one size")


def check_numbers(streams: Iterable[StreamFiles]) -> None:
    """Raise `ClipError` unless all image sequences begin with the same number: frames are paired by their order."""
    sequences = [stream for stream in streams if stream.kind != "video"]
    for stream in sequences:
        if stream.first != sequences[0].first:
            text = f"begins with frame {stream.first}, {sequences[0].where} with frame {sequences[0].first}"
            raise ClipError(f"{stream.where} {text}: which belong together is not known. Number all streams alike.")


def read_indices(stream: StreamFiles, limits: Limits = Limits()) -> np.ndarray:
    """uint16 [T, H, W, 1]: the palette's indices, or the grey levels as stored, of a PNG sequence."""
    from PIL import Image

    if stream.kind != "png":
        raise ClipError(f"{stream.where}: ids are read from PNG images, found {stream.kind}")
    height_px, width_px = size = _size(stream.files[0])
    if height_px * width_px * len(stream.files) * 4 > limits.max_decoded_bytes:
        raise ClipError(f"{stream.where}: {len(stream.files)} images of {width_px} x {height_px} are too many at once")
    images = []
    for path in stream.files:
        if _size(path) != size:
            raise ClipError(f"{path} is not {width_px} x {height_px} as the images before it are")
        try:
            with Image.open(path, formats=("PNG",)) as image:
                if image.mode not in ("P", "L", "I;16", "1"):
                    raise ClipError(f"{path} is a {image.mode} picture; ids are a palette's indices or grey levels")
                stretch = GREY_STRETCH.get(_bits(path), 1) if image.mode == "L" else 1
                images.append(np.asarray(image).astype(np.uint16) // stretch)
        except (OSError, SyntaxError, ValueError) as error:
            raise ClipError(f"{path} is damaged: {error}") from error
    return np.stack(images)[..., None]


def _bits(path: Path) -> int:
    """Of a level of a PNG, whose header was looked at before."""
    with path.open("rb") as file:
        return file.read(25)[24]


def _size(path: Path) -> tuple[int, int]:
    return image_size(_bytes(path), "png", str(path))


def _bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ClipError(f"{path} has {size:,} bytes; of an image at most {MAX_FILE_BYTES:,} are read")
        return path.read_bytes()
    except OSError as error:
        raise ClipError(f"{path} cannot be read: {error.strerror}") from error

"""One look at every picture of a stream: what range its values have, small pictures to compare, its files to keep.

Nothing of a stream whose files are kept is unfolded but one picture at a time. Ranges are of all values; small pictures
and what `watch` sees are of every second to n-th row and column, as many as two pictures of 96 px have.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from openuni.exchange.importers._alignment import SHORT_SIDE_PX, thumbnails
from openuni.exchange.importers._sequences import VIDEOS, StreamFiles, StreamReader
from openuni.manifests.contracts.modality import Payload
from openuni.manifests.errors import ClipError
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.passthrough import MAX_FRAMES, PixelDecoder, PixelDecoding, pack_files
from openuni.pipeline.phases import decoder_threads

MAX_BYTES_PER_PX = 8.0  # of files that are kept: 16 bits of three channels take 6, without any compression
MAX_BYTES = 10**9
LARGEST_HALF = np.uint16(0x7BFF)  # as a pattern
SIGN = np.uint16(0x8000)

T = TypeVar("T")


class StreamScan(NamedTuple):
    """What a look at a stream found."""

    stream: StreamFiles
    video: Clip | None  # None: a sequence of images
    shape: tuple[int, int, int, int]  # T, H, W, C of the pictures
    lo: float  # of all values as they are: levels as 0..1, EXR as it is
    hi: float
    small: np.ndarray  # float32 [T, h, w, C]: `thumbnails` of the values read
    reading: PixelDecoding
    array: np.ndarray | None  # the values read [T, H, W, C]; None where files are kept and no array was asked for
    files: list[bytes]  # that are kept; none: they are not
    dtype: np.dtype  # of the pictures

    @property
    def where(self) -> Path:
        """The video, or the folder of the sequence."""
        return self.stream.where

    def value_range(self) -> tuple[float, float]:
        """Smallest and largest of the values read, before they are clipped. For readings that keep the order."""
        free = PixelDecoder(self.reading._replace(lowest=None, highest=None, levels=False), np.dtype(np.float32))
        lo, hi = free.decode_values(np.array([self.lo, self.hi], np.float32)).tolist()
        return lo, hi

    def payload(self, constants: Any) -> Payload | None:
        """The stream's files as a map's storage, None where they are not kept. `constants`: of the map's modality."""
        if not self.files:
            return None
        kind = self.stream.files[0].suffix[1:].lower() if self.video is not None else self.stream.kind
        return passthrough_payload(kind, self.files, self.reading, constants, self.shape[1:3], self.shape[0])


def passthrough_payload(
    kind: str, files: list[bytes], reading: PixelDecoding, constants: Any, size_px: tuple[int, int], frames: int
) -> Payload:
    """Files as a map's storage. `kind`: their suffix without the dot; `constants`: of the map's modality."""
    return Payload(pack_files(kind, frames, files, reading), f"{kind}.zip", constants, size_px, frames)


def is_named_as_video(path: Path) -> bool:
    """Whether a video can be kept under its own suffix: links may lead to files of any name."""
    return path.suffix.lower() in VIDEOS


def scan_stream(
    stream: StreamFiles,
    reading: Callable[[np.dtype, int], PixelDecoding],
    keep: bool,
    watch: Callable[[np.ndarray], None] = lambda values: None,
    *,
    whole: bool = False,
) -> StreamScan:
    """Look at all pictures. Raises `ClipError` for damage, for NaN and infinities.

    `reading`: how values are read from pictures of a dtype and so many channels; may raise `ClipError`. `keep`: the
    files, unless they are larger than what coding anew would make of them at worst. `watch`: is given samples
    [h, w, C] of every picture's values, before channels are put together. `whole`: the array is wanted too.
    """
    film = StreamReader(stream)
    height_px, width_px = film.size_px
    kept = keep and film.nbytes() <= min(MAX_BYTES, MAX_BYTES_PER_PX * film.count * height_px * width_px)
    kept = kept and film.count <= MAX_FRAMES and (stream.kind != "video" or is_named_as_video(stream.files[0]))
    convert, small, array, stored = None, [], None, np.empty((0, 0, 0), np.uint8)
    ranges: list[tuple[float, float]] = []
    for number, image in enumerate(film.images(keep=kept)):
        if convert is None:
            stored = image  # its size may be another than a video's as displayed
            convert = PixelDecoder(reading(image.dtype, image.shape[-1]), image.dtype)
        ranges.append(range_of(image))
        if not np.isfinite(ranges[-1]).all():
            wrong = int(np.count_nonzero(~np.isfinite(image)))
            raise ClipError(f"{stream.where}: picture {number} has {wrong} values that are NaN or infinite")
        values = convert.values(subsample(image))
        watch(values)
        small.append(thumbnails(convert.joined(values)[None])[0])
        if convert.is_plain and film.frames is not None:
            array = film.frames if whole or not kept else None
        elif whole or not kept:
            full = convert(image)
            array = np.empty((film.count, *full.shape), full.dtype) if array is None else array
            array[number] = full
    assert convert is not None  # a stream has a picture
    lo, hi = min(low for low, _ in ranges), max(high for _, high in ranges)
    shape = (film.count, *stored.shape)
    return StreamScan(
        stream, film.video, shape, lo, hi, np.stack(small), convert.reading, array, film.data, stored.dtype
    )


def sampled(frames: np.ndarray) -> np.ndarray:
    """float32 [T, h, w, C]: small pictures of [T, H, W, C], as a look takes them."""
    return thumbnails(subsample_frames(frames))


def subsample_frames(frames: np.ndarray) -> np.ndarray:
    """The rows and columns of [T, H, W, C] that a look's samples have."""
    return np.stack([subsample(image) for image in frames])


def subsample(image: np.ndarray) -> np.ndarray:
    """[h, w, C] of [H, W, C]: every n-th row and column, the shorter side still at least two small pictures'."""
    import cv2

    height_px, width_px = image.shape[:2]
    step = max(1, min(height_px, width_px) // (2 * SHORT_SIDE_PX))
    if step == 1:
        return image
    bits = image.view(np.uint16) if image.dtype == np.float16 else image  # which OpenCV does not resize
    found = cv2.resize(bits, (width_px // step, height_px // step), interpolation=cv2.INTER_NEAREST)
    return found.reshape(*found.shape[:2], -1).view(image.dtype)


def range_of(image: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value, levels as 0..1; NaN or infinite where any value is."""
    if image.dtype == np.float16:
        return _range_of_halves(image)
    lo, hi = float(image.min()), float(image.max())
    most = 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)
    return lo / most, hi / most


def _range_of_halves(image: np.ndarray) -> tuple[float, float]:
    """By patterns, which is many times faster: those of positive numbers rise with them, of negative ones fall."""
    bits = image.view(np.uint16)
    least, most = bits.min(), bits.max()
    highest = bits.view(np.int16).max()  # of the positive ones, if there are any
    if most & ~SIGN > LARGEST_HALF or (highest >= 0 and highest > LARGEST_HALF):
        return float("nan"), float("nan")
    hi = np.uint16(highest) if highest >= 0 else least
    lo = most if most & SIGN else least
    return float(lo.view(np.float16)), float(hi.view(np.float16))


def map_in_threads(work: Callable[[str], T], names: list[str]) -> dict[str, T]:
    """`work` of each name, in as many threads as this process has cores for; of several errors the first name's."""
    threads = decoder_threads()
    if threads == 1 or len(names) == 1:
        return {name: work(name) for name in names}
    with ThreadPoolExecutor(threads or None, thread_name_prefix="look") as pool:
        futures = {name: pool.submit(work, name) for name in names}
        return {name: future.result() for name, future in futures.items()}

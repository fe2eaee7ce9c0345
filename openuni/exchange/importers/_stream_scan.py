"""One pass over all frames of a stream: value range, thumbnails for comparison, and the files for passthrough.

If the files are stored as they are, only one frame is decoded at a time. Ranges are of all values; thumbnails and the
samples for `observe` use every n-th row and column, such that the shorter side has at least 192 samples.
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

MAX_BYTES_PER_PX = 8.0  # limit for passthrough; uncompressed 16-bit RGB takes 6
MAX_BYTES = 10**9
LARGEST_HALF = np.uint16(0x7BFF)  # bit pattern of the largest finite float16
SIGN = np.uint16(0x8000)

T = TypeVar("T")


class StreamScan(NamedTuple):
    """The result of scanning a stream."""

    stream: StreamFiles
    video: Clip | None  # None: an image sequence
    shape: tuple[int, int, int, int]  # T, H, W, C of the frames
    lo: float  # minimum of all raw values: integer levels as 0..1, EXR as stored
    hi: float
    small: np.ndarray  # float32 [T, h, w, C]: `thumbnails` of the decoded values
    decoding: PixelDecoding
    array: np.ndarray | None  # decoded values [T, H, W, C]; None for passthrough without `whole`
    files: list[bytes]  # contents for passthrough, else empty
    dtype: np.dtype  # of the frames

    @property
    def where(self) -> Path:
        """Path of the video, or of the folder of the sequence."""
        return self.stream.where

    def value_range(self) -> tuple[float, float]:
        """Minimum and maximum of the decoded values before clipping. Only for decodings that are monotonic."""
        free = PixelDecoder(self.decoding._replace(lowest=None, highest=None, levels=False), np.dtype(np.float32))
        lo, hi = free.decode_values(np.array([self.lo, self.hi], np.float32)).tolist()
        return lo, hi

    def payload(self, constants: Any) -> Payload | None:
        """The stream's files as a payload with the `constants` of the modality; None without passthrough."""
        if not self.files:
            return None
        kind = self.stream.files[0].suffix[1:].lower() if self.video is not None else self.stream.kind
        return passthrough_payload(kind, self.files, self.decoding, constants, self.shape[1:3], self.shape[0])


def passthrough_payload(
    kind: str, files: list[bytes], decoding: PixelDecoding, constants: Any, size_px: tuple[int, int], frames: int
) -> Payload:
    """Files as a payload. `kind`: their suffix without the dot; `constants`: those of the modality."""
    return Payload(pack_files(kind, frames, files, decoding), f"{kind}.zip", constants, size_px, frames)


def is_named_as_video(path: Path) -> bool:
    """Whether the file has a video suffix, which passthrough requires; links may lead to files of any name."""
    return path.suffix.lower() in VIDEOS


def scan_stream(
    stream: StreamFiles,
    decoding: Callable[[np.dtype, int], PixelDecoding],
    keep: bool,
    observe: Callable[[np.ndarray], None] = lambda values: None,
    *,
    whole: bool = False,
) -> StreamScan:
    """Scan all frames. Raises `ClipError` for damaged files, NaN and infinities.

    `decoding`: returns the decoding for a dtype and number of channels; may raise `ClipError`. `keep`: pass the files
    through, unless they are larger than re-encoded data at worst. `observe`: called with samples [h, w, C] of the
    values of every frame, before channels are combined. `whole`: also return the array.
    """
    reader = StreamReader(stream)
    height_px, width_px = reader.size_px
    passthrough = keep and reader.nbytes() <= min(MAX_BYTES, MAX_BYTES_PER_PX * reader.count * height_px * width_px)
    passthrough = (
        passthrough and reader.count <= MAX_FRAMES and (stream.kind != "video" or is_named_as_video(stream.files[0]))
    )
    convert, small, array, stored = None, [], None, np.empty((0, 0, 0), np.uint8)
    pixel_decoding = PixelDecoding()
    ranges: list[tuple[float, float]] = []
    for number, image in enumerate(reader.images(keep=passthrough)):
        if convert is None:
            stored = image  # its size may differ from a video's display size
            pixel_decoding = decoding(image.dtype, image.shape[-1])
            convert = PixelDecoder(pixel_decoding, image.dtype)
        ranges.append(range_of(image))
        if not np.isfinite(ranges[-1]).all():
            wrong = int(np.count_nonzero(~np.isfinite(image)))
            raise ClipError(f"{stream.where}: frame {number} has {wrong} values that are NaN or infinite")
        values = convert.values(subsample(image))
        observe(values)
        small.append(thumbnails(convert.joined(values)[None])[0])
        if convert.is_plain and reader.frames is not None:
            array = reader.frames if whole or not passthrough else None
        elif whole or not passthrough:
            full = convert(image)
            array = np.empty((reader.count, *full.shape), full.dtype) if array is None else array
            array[number] = full
    assert convert is not None  # a stream has at least one frame
    lo, hi = min(low for low, _ in ranges), max(high for _, high in ranges)
    shape = (reader.count, *stored.shape)
    return StreamScan(
        stream, reader.video, shape, lo, hi, np.stack(small), pixel_decoding, array, reader.data, stored.dtype
    )


def sampled(frames: np.ndarray) -> np.ndarray:
    """float32 [T, h, w, C]: thumbnails of [T, H, W, C], as in a scan."""
    return thumbnails(subsample_frames(frames))


def subsample_frames(frames: np.ndarray) -> np.ndarray:
    """The rows and columns of [T, H, W, C] that a scan samples."""
    return np.stack([subsample(image) for image in frames])


def subsample(image: np.ndarray) -> np.ndarray:
    """[h, w, C] from [H, W, C]: every n-th row and column, the shorter side at least twice that of a thumbnail."""
    import cv2

    height_px, width_px = image.shape[:2]
    step = max(1, min(height_px, width_px) // (2 * SHORT_SIDE_PX))
    if step == 1:
        return image
    bits = image.view(np.uint16) if image.dtype == np.float16 else image  # OpenCV does not resize float16
    found = cv2.resize(bits, (width_px // step, height_px // step), interpolation=cv2.INTER_NEAREST)
    return found.reshape(*found.shape[:2], -1).view(image.dtype)


def range_of(image: np.ndarray) -> tuple[float, float]:
    """Minimum and maximum, integer levels as 0..1; NaN or infinite if any value is."""
    if image.dtype == np.float16:
        return _range_of_halves(image)
    lo, hi = float(image.min()), float(image.max())
    most = 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)
    return lo / most, hi / most


def _range_of_halves(image: np.ndarray) -> tuple[float, float]:
    """Computed on bit patterns, which is many times faster: they rise with positive, fall with negative numbers."""
    bits = image.view(np.uint16)
    least, most = bits.min(), bits.max()
    highest = bits.view(np.int16).max()  # of the positive numbers, if any
    if most & ~SIGN > LARGEST_HALF or (highest >= 0 and highest > LARGEST_HALF):
        return float("nan"), float("nan")
    hi = np.uint16(highest) if highest >= 0 else least
    lo = most if most & SIGN else least
    return float(lo.view(np.float16)), float(hi.view(np.float16))


def map_in_threads(work: Callable[[str], T], names: list[str]) -> dict[str, T]:
    """`work(name)` for all names, with one thread per core; of several errors, that of the first name is raised."""
    threads = decoder_threads()
    if threads == 1 or len(names) == 1:
        return {name: work(name) for name in names}
    with ThreadPoolExecutor(threads or None, thread_name_prefix="scan") as pool:
        futures = {name: pool.submit(work, name) for name in names}
        return {name: future.result() for name, future in futures.items()}

"""Video encoding: browser-playable H.264 for viewing, lossless FFV1 or H.264 for stored maps."""

import io
import itertools
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.container import demux
from openuni.manifests.video.decoder.limits import Limits
from openuni.manifests.video.decoder.process import isolated
from openuni.manifests.video.source_file import CalledFile
from openuni.manifests.video.video_errors import CorruptVideo, VideoError

# NumPy dtype and number of channels -> input and stored pixel format. FFV1 has no 24-bit RGB; the padding byte of bgr0
# costs nothing after its lossless colour transform.
PLANE_FORMATS = {
    ("uint8", 1): ("gray", "gray"),
    ("uint16", 1): ("gray16le", "gray16le"),
    ("uint8", 3): ("rgb24", "bgr0"),
    ("uint16", 3): ("rgb48le", "rgb48le"),
}
PixelFormat = Literal["yuv420p", "yuv444p", "rgb"]  # colour format of an H.264 video
ACROSS_FRAMES = {1: ("libx264", "gray"), 3: ("libx264rgb", "rgb24")}  # number of channels -> encoder, pixel format
NTSC_NOMINAL_FPS = (15, 24, 30, 48, 60, 72, 90, 96, 120, 240)  # divided by 1.001
MAX_FPS = 1000  # limit of common players
KEYFRAME_INTERVAL = 24  # frames; allows reading single frames without decoding the whole clip
CHECKSUM_TAG = "PLANES"
READ_BYTES = 1 << 20  # of a stored map at a time
DAMAGED = "stored planes are damaged ({}); recompute this column group"
# The AVX-512 code of x264 gives other bytes than its C code, and not the same ones each time
X264_PARAMS = "cpu-independent=1"


def check_fps(fps: float, option: str) -> None:
    """Raise `OpenUniError` unless the frame rate is within 1..`MAX_FPS`. `option`: name for the message."""
    if not 1 <= fps <= MAX_FPS:  # also false for NaN
        raise OpenUniError(f"{option} {fps:g}: must be 1 to {MAX_FPS} frames per second")


def _ntsc_rate(fps: float | Fraction) -> Fraction | None:
    """The NTSC rate that a number stands for: within 0.002, or its two digits, rounded or cut: 23.98 and 23.97."""
    for nominal in NTSC_NOMINAL_FPS:
        exact = Fraction(nominal * 1000, 1001)
        written = (round(float(exact), 2), int(exact * 100) / 100)
        if abs(float(fps) - exact) < 2e-3 or float(fps) in written:
            return exact
    return None


def exact_fps(fps: float) -> float:
    """The frame rate that an option means: 23.98 -> 24000/1001 = 23.976..., likewise 29.97, 59.94; others unchanged."""
    return float(_ntsc_rate(fps) or fps)


def frame_rate(fps: float | Fraction) -> Fraction:
    """Frame rate as a fraction for containers; NTSC rates such as 29.97 and 23.98 become 30000/1001 and 24000/1001."""
    if (rate := _ntsc_rate(fps)) is not None:
        return rate
    rate = Fraction(fps).limit_denominator(1001)
    if rate <= 0:
        raise VideoError(f"fps must be positive, got {fps}")
    return rate


def write_video(
    path: str | Path,
    frames: np.ndarray | Iterable[np.ndarray],
    fps: float | Fraction,
    crf: int = 18,
    *,
    pixels: PixelFormat = "yuv420p",
    threads: int = 0,
) -> None:
    """Write an H.264 mp4 atomically: BT.709, limited range, index at the front.

    `frames`: uint8 [T, H, W, 3] RGB, or an iterable of [H, W, 3]. `fps`: frames per second. `crf`: x264's constant rate
    factor, 0..51; 18 is visually lossless.
    `pixels`: "yuv420p" plays in every browser, halves the chroma resolution and requires even H and W (crop or resize
    first); "yuv444p" keeps full chroma resolution, for colour-coded maps; "rgb" is exact with `crf` 0.
    `threads`: number of encoder threads; 0: one per core. The file depends on it; with 1, equal frames give equal files
    on all machines.
    Raises `VideoError` for other arrays, and for odd sizes with "yuv420p".
    """
    import av

    images = iter(frames)
    first = next(images, None)
    if first is None or first.dtype != np.uint8 or first.ndim != 3 or first.shape[-1] != 3 or not first.size:
        array = frames if isinstance(frames, np.ndarray) else first
        got = "none" if array is None else f"{array.dtype} {array.shape}"
        raise VideoError(f"frames must be uint8 [T, H, W, 3] with T > 0, got {got}")
    height_px, width_px, _ = first.shape
    if pixels == "yuv420p" and (height_px % 2 or width_px % 2):
        raise VideoError(
            f"width and height must be even for yuv420p, got {width_px}x{height_px}. Crop or resize by one pixel."
        )
    path = Path(path)
    temp_path = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    rate = frame_rate(fps)
    codec = "libx264rgb" if pixels == "rgb" else "libx264"
    try:
        with av.open(str(temp_path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            options = {"crf": str(crf), "preset": "medium", "x264-params": X264_PARAMS}
            stream: Any = container.add_stream(codec, rate=rate, options=options)
            stream.width, stream.height = width_px, height_px
            stream.pix_fmt = "rgb24" if pixels == "rgb" else pixels
            stream.thread_count = threads
            if pixels != "rgb":
                for tag in ("color_primaries", "color_trc", "colorspace"):
                    setattr(stream, tag, 1)  # BT.709
                stream.color_range = 1  # limited range, which browsers assume
            for number, image in enumerate(itertools.chain([first], images)):
                frame = _convert_pixels(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"), pixels)
                frame.pts, frame.time_base = number, 1 / rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        temp_path.replace(path)
    finally:
        temp_path.unlink(missing_ok=True)


def _convert_pixels(frame: Any, pixels: PixelFormat) -> Any:
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    if pixels == "rgb":
        return frame
    return frame.reformat(
        format=pixels,
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.AREA | Interpolation.ACCURATE_RND,
        threads=1,
    )


def encode_lossless(
    planes: np.ndarray, fps: float | Fraction, *, across_frames: bool = False, fast: bool = False
) -> bytes:
    """Encode planes without loss as FFV1 level 3 in Matroska, with a CRC per slice; equal planes give equal bytes.

    `planes`: uint8 or uint16 [T, H, W, C] with C 1 or 3, any size from 1x1. `fps` only matters for playback.
    `across_frames`: lossless H.264 with inter-frame prediction instead, for uint8. A third to two thirds of the size
    for moving flat areas, but any damage affects all frames. `fast`: with x264's fastest preset and a keyframe every 24
    frames, for pictures. Two to seven times faster to write than FFV1 and faster to read; about the same size for noisy
    pictures, smaller for clean ones and for global motion.
    Raises `VideoError` for other arrays.
    """
    target = io.BytesIO()
    encode_lossless_to(target, [planes], fps, across_frames=across_frames, fast=fast)
    return target.getvalue()


def encode_lossless_to(
    target: BinaryIO,
    blocks: Iterable[np.ndarray],
    fps: float | Fraction,
    *,
    across_frames: bool = False,
    fast: bool = False,
) -> tuple[int, int, int]:
    """Encode planes that come in blocks of frames into an open file; the same bytes as `encode_lossless` of them all.

    Returns the number of frames, and their height and width.

    `blocks`: uint8 or uint16 [n, H, W, C] each, of one dtype and size. They are iterated twice, since the header of the
    file holds their checksum; so no more than one block is in memory. The other arguments are those of
    `encode_lossless`.
    """
    import av

    checksum, (frames, height_px, width_px, channels), dtype = _checked_blocks(blocks)
    input_format, stored_format = PLANE_FORMATS[dtype, channels]
    codec = "ffv1"
    if across_frames and dtype == "uint8":
        codec, stored_format = ACROSS_FRAMES[channels]
    rate = frame_rate(fps)
    with av.open(target, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, stored_format
        # FFmpeg requires four slices above this size; smaller maps compress best in one.
        slices = "1" if width_px <= 352 and height_px <= 288 else "4"
        ffv1 = {"level": "3", "slicecrc": "1", "slices": slices}
        h264 = {"qp": "0", "preset": "medium", "x264-params": X264_PARAMS}
        if fast:
            h264 |= {"preset": "ultrafast", "g": str(KEYFRAME_INTERVAL)}
        stream.options = ffv1 if codec == "ffv1" else h264
        stream.codec_context.thread_count = 1
        container.metadata[CHECKSUM_TAG] = checksum
        for number, plane in enumerate(itertools.chain.from_iterable(blocks)):
            image = np.ascontiguousarray(plane if channels == 3 else plane[..., 0])
            frame = av.VideoFrame.from_ndarray(image, format=input_format)
            if stored_format != input_format:
                frame = frame.reformat(format=stored_format, threads=1)
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return frames, height_px, width_px


def _checked_blocks(blocks: Iterable[np.ndarray]) -> tuple[str, tuple[int, ...], str]:
    """Checksum, shape [T, H, W, C] and dtype of planes in blocks. Raises `VideoError` for what cannot be encoded."""
    checksum: PlanesChecksum | None = None
    for planes in blocks:
        is_encodable = (str(planes.dtype), planes.shape[-1] if planes.ndim == 4 else 0) in PLANE_FORMATS
        if not is_encodable or not planes.size:
            got = f"{planes.dtype} {planes.shape}"
            raise VideoError(f"planes must be uint8 or uint16 [T, H, W, 1 or 3], T > 0, got {got}")
        checksum = checksum or PlanesChecksum(planes.dtype, planes.shape[1:])
        checksum.add(planes)
    if checksum is None:
        raise VideoError("planes must be uint8 or uint16 [T, H, W, 1 or 3], T > 0, got no blocks")
    return str(checksum), (checksum.frames, *checksum.frame_shape), str(checksum.dtype)


@isolated
def decode_lossless(data: bytes) -> np.ndarray:
    """Decode the output of `encode_lossless` to the same dtype, shape and values. Raises `CorruptVideo` for any damage.

    On a wrong slice CRC, FFmpeg's decoder only logs the error and copies the slice from the previous frame. The planes
    are therefore protected by a checksum in the file's tags (dtype, shape and a hash of the values).
    """
    planes = list(_iter_lossless(io.BytesIO(data)))
    return np.stack(planes)


def iter_lossless(file: BinaryIO, limits: Limits = Limits()) -> Iterator[np.ndarray]:
    """Decode the frames of an open file that `encode_lossless` wrote, one by one: [H, W, C]. For files of any length.

    Raises `CorruptVideo` for any damage, after the last frame if only the checksum shows it: results of the frames are
    valid once the generator has ended.
    """
    nbytes = file.seek(0, io.SEEK_END)

    def read_at(position: int, count: int) -> bytes:
        file.seek(position)
        return file.read(count)

    return iter_lossless_from(read_at, nbytes, limits)


@isolated
def iter_lossless_from(
    read_at: Callable[[int, int], bytes], nbytes: int, limits: Limits = Limits()
) -> Generator[np.ndarray]:
    """`iter_lossless` of a file that `read_at` reads: (position, number of bytes) -> bytes. `nbytes`: its length."""
    with io.BufferedReader(CalledFile(read_at, nbytes), READ_BYTES) as file:
        yield from _iter_lossless(file)


def _iter_lossless(file: BinaryIO) -> Iterator[np.ndarray]:
    import av

    checksum: PlanesChecksum | None = None
    try:
        with av.open(file, "r", format="matroska", metadata_errors="replace") as container:
            expected = container.metadata.get(CHECKSUM_TAG, "")
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                raise CorruptVideo(DAMAGED.format("no video stream"))
            stream.codec_context.thread_count = 1
            for frame in (frame for packet in demux(container, stream) for frame in packet.decode()):
                plane = _frame_to_plane(frame)
                checksum = checksum or PlanesChecksum(plane.dtype, plane.shape)
                checksum.add(plane[None])
                yield plane
    except (av.FFmpegError, ValueError) as error:
        raise CorruptVideo(DAMAGED.format(error)) from error
    if checksum is None or str(checksum) != expected:
        raise CorruptVideo(DAMAGED.format(f"expected {expected or 'unknown'}, got {checksum or 'no frames'}"))


def _frame_to_plane(frame: Any) -> np.ndarray:
    if frame.format.name in ("yuv420p", "yuvj420p"):  # FFmpeg's decoder returns monochrome H.264 in these formats
        luma = frame.planes[0]
        rows = np.frombuffer(luma, np.uint8).reshape(-1, luma.line_size)
        return rows[: frame.height, : frame.width, None].copy()
    format_name = {"bgr0": "rgb24", "gbrp": "rgb24", "gbrp16le": "rgb48le"}.get(frame.format.name, frame.format.name)
    image = frame.to_ndarray(format=format_name, threads=1)
    return image if image.ndim == 3 else image[..., None]


class PlanesChecksum:
    """Checksum of planes that come in blocks: dtype, shape and xxh3-64 of the little-endian values."""

    def __init__(self, dtype: np.dtype[Any], frame_shape: tuple[int, ...]) -> None:
        import xxhash

        self.dtype, self.frame_shape, self.frames = dtype, frame_shape, 0
        self._hash = xxhash.xxh3_64()

    def add(self, planes: np.ndarray) -> None:
        """Add a block, [n, H, W, C]. Raises `ValueError` if its dtype or size differs from that of the others."""
        if planes.dtype != self.dtype or planes.shape[1:] != self.frame_shape:
            got, expected = f"{planes.dtype} {planes.shape[1:]}", f"{self.dtype} {self.frame_shape}"
            raise ValueError(f"all input arrays must have the same shape and dtype, got {got} after {expected}")
        self.frames += len(planes)
        self._hash.update(np.ascontiguousarray(planes, dtype=self.dtype.newbyteorder("<")).data)

    def __str__(self) -> str:
        sides = "x".join(str(side) for side in (self.frames, *self.frame_shape))
        return f"{self.dtype} {sides} {self._hash.hexdigest()}"

"""Writing video: browser-playable H.264 for people, FFV1 with slice CRC for signals. Part of `video`."""

import io
import itertools
import uuid
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.video_errors import CorruptVideo, VideoError

# numpy dtype and channel count -> pixel format handed over, pixel format stored. FFV1 has no 24-bit RGB: a padding
# byte is added, which its lossless colour transform makes free.
PLANE_FORMATS = {
    ("uint8", 1): ("gray", "gray"),
    ("uint16", 1): ("gray16le", "gray16le"),
    ("uint8", 3): ("rgb24", "bgr0"),
    ("uint16", 3): ("rgb48le", "rgb48le"),
}
PixelFormat = Literal["yuv420p", "yuv444p", "rgb"]  # how an H.264 video holds colour
ACROSS_FRAMES = {1: ("libx264", "gray"), 3: ("libx264rgb", "rgb24")}  # by channels: encoder, pixel format
MAX_FPS = 1000  # players' own limit, and far from what time stamps can hold
KEYFRAME_INTERVAL = 24  # of pictures, so that a frame is had without decoding the whole clip
CHECKSUM_TAG = "PLANES"
DAMAGED = "stored planes are damaged ({}): recompute this column group"
# The AVX-512 code of x264 gives other bytes than its C code, and not the same ones each time
X264_PARAMS = "cpu-independent=1"


def check_fps(fps: float, what: str) -> None:
    """Raise `OpenUniError` unless a video may be asked for at this rate. `what`: how it was asked for."""
    if not 1 <= fps <= MAX_FPS:  # NaN neither
        raise OpenUniError(f"{what} {fps:g}: give 1 to {MAX_FPS} frames per second")


def frame_rate(fps: float | Fraction) -> Fraction:
    """The rate as a fraction containers can hold; 29.97 and 23.976 become the broadcast rates they stand for."""
    for nominal in (24, 30, 48, 60, 120):
        if abs(float(fps) - nominal * 1000 / 1001) < 2e-3:
            return Fraction(nominal * 1000, 1001)
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
    """H.264 in mp4: BT.709, limited range, index in front. The file appears under its name only when whole.

    `frames`: uint8 [T, H, W, 3] RGB, or as many [H, W, 3] one by one. `fps`: frames per second. `crf`: x264's constant
    rate factor, 0 to 51; 18 is visually lossless.
    `pixels`: "yuv420p", which every browser plays, halves colour in both directions and needs even H and W (crop or
    resize first); "yuv444p" keeps colour at full size, for colour-coded maps; "rgb" is exact at `crf` 0.
    `threads`: of the encoder; 0 = by the cores. The bytes depend on it: with 1, equal frames give equal bytes anywhere.
    """
    import av

    images = iter(frames)
    first = next(images, None)
    if first is None or first.dtype != np.uint8 or first.ndim != 3 or first.shape[-1] != 3 or not first.size:
        given = frames if isinstance(frames, np.ndarray) else first
        found = "none" if given is None else f"{given.dtype} {given.shape}"
        raise VideoError(f"frames must be uint8 [T, H, W, 3] with T > 0, got {found}")
    height_px, width_px, _ = first.shape
    if pixels == "yuv420p" and (height_px % 2 or width_px % 2):
        raise VideoError(f"H.264 needs even sizes, got {width_px}x{height_px}: crop or resize the frames by one pixel")
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    rate = frame_rate(fps)
    codec = "libx264rgb" if pixels == "rgb" else "libx264"
    try:
        with av.open(str(unfinished), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            options = {"crf": str(crf), "preset": "medium", "x264-params": X264_PARAMS}
            stream: Any = container.add_stream(codec, rate=rate, options=options)
            stream.width, stream.height = width_px, height_px
            stream.pix_fmt = "rgb24" if pixels == "rgb" else pixels
            stream.thread_count = threads
            if pixels != "rgb":
                for tag in ("color_primaries", "color_trc", "colorspace"):
                    setattr(stream, tag, 1)  # BT.709
                stream.color_range = 1  # limited, what browsers assume
            for number, image in enumerate(itertools.chain([first], images)):
                frame = _to_pixels(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"), pixels)
                frame.pts, frame.time_base = number, 1 / rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _to_pixels(frame: Any, pixels: PixelFormat) -> Any:
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
    """FFV1 level 3 in Matroska, a CRC on every slice; equal planes give equal bytes.

    `planes`: uint8 or uint16 [T, H, W, C] with C 1 or 3, any size from 1x1. Exact. `fps` only makes it playable.
    `across_frames`: lossless H.264 instead, for uint8: exact too, of flat areas that move a third to two thirds of the
    bytes; but no frame stands alone, so that any damage costs all of them. `fast`: the same with x264's quickest
    settings and a key frame every 24 frames, for pictures: two to seven times as fast to write as FFV1, faster to
    read, of about its size for noise and smaller for what is clean or moves as a whole.
    """
    import av

    formats = PLANE_FORMATS.get((str(planes.dtype), planes.shape[-1] if planes.ndim == 4 else 0))
    if formats is None or not planes.size:
        raise VideoError(f"planes must be uint8 or uint16 [T, H, W, 1 or 3], T > 0, got {planes.dtype} {planes.shape}")
    given, stored = formats
    codec = "ffv1"
    if across_frames and planes.dtype == np.uint8:
        codec, stored = ACROSS_FRAMES[planes.shape[-1]]
    _, height_px, width_px, _ = planes.shape
    rate = frame_rate(fps)
    target = io.BytesIO()
    with av.open(target, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, stored
        # FFmpeg insists on four slices from here on; smaller maps compress best in one.
        slices = "1" if width_px <= 352 and height_px <= 288 else "4"
        ffv1 = {"level": "3", "slicecrc": "1", "slices": slices}
        h264 = {"qp": "0", "preset": "medium", "x264-params": X264_PARAMS}
        if fast:
            h264 |= {"preset": "ultrafast", "g": str(KEYFRAME_INTERVAL)}
        stream.options = ffv1 if codec == "ffv1" else h264
        stream.codec_context.thread_count = 1
        container.metadata[CHECKSUM_TAG] = _planes_checksum(planes)
        for number, plane in enumerate(planes):
            image = np.ascontiguousarray(plane if plane.shape[-1] == 3 else plane[..., 0])
            frame = av.VideoFrame.from_ndarray(image, format=given)
            if stored != given:
                frame = frame.reformat(format=stored, threads=1)
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return target.getvalue()


def decode_lossless(data: bytes) -> np.ndarray:
    """The planes given to `encode_lossless`: same dtype, shape and values, or `CorruptVideo` for any damage to them.

    FFmpeg's decoder reports a wrong slice CRC in its log alone and paints the slice from the frame before, so the seal
    in the file's tags (dtype, shape and a hash of the values) is what guards the planes.
    """
    import av

    try:
        with av.open(io.BytesIO(data), "r", format="matroska", metadata_errors="replace") as container:
            seal = container.metadata.get(CHECKSUM_TAG, "")
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                raise CorruptVideo(DAMAGED.format("no stream of ours left"))
            stream.codec_context.thread_count = 1
            planes = np.stack([_image_of(frame) for frame in container.decode(stream)])
    except (av.FFmpegError, ValueError) as error:
        raise CorruptVideo(DAMAGED.format(error)) from error
    if _planes_checksum(planes) != seal:
        raise CorruptVideo(DAMAGED.format(f"found {_planes_checksum(planes)}, written as {seal or 'unknown'}"))
    return planes


def _image_of(frame: Any) -> np.ndarray:
    if frame.format.name in ("yuv420p", "yuvj420p"):  # how FFmpeg's decoder hands over H.264 that has grey alone
        luma = frame.planes[0]
        rows = np.frombuffer(luma, np.uint8).reshape(-1, luma.line_size)
        return rows[: frame.height, : frame.width, None].copy()
    form = {"bgr0": "rgb24", "gbrp": "rgb24", "gbrp16le": "rgb48le"}.get(frame.format.name, frame.format.name)
    image = frame.to_ndarray(format=form, threads=1)
    return image if image.ndim == 3 else image[..., None]


def _planes_checksum(planes: np.ndarray) -> str:
    """dtype, shape and xxh3-64 of the values in little-endian order."""
    values = np.ascontiguousarray(planes, dtype=planes.dtype.newbyteorder("<"))
    sides = "x".join(str(side) for side in planes.shape)
    return f"{planes.dtype} {sides} {xxhash.xxh3_64_hexdigest(values.data)}"

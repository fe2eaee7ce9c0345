"""Decoding of frames at exact timestamps, and their conversion to RGB arrays."""

import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from openuni.manifests.video.container import Limits, Packets, lacks_timestamps, packets_from_key, pixel_aspect
from openuni.manifests.video.decoder.progress import tick
from openuni.manifests.video.side_data import side_data
from openuni.manifests.video.video_errors import CorruptVideo

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

MIN_SEEK_FRAMES = 8  # up to this many unwanted frames, decoding them is cheaper than a seek
HD_LINES = 720  # default colour matrix of streams without one: BT.709 from this height on, BT.601 below
BT709, BT601 = 1, 6  # matrix codes of H.273
UNSPECIFIED_MATRICES = (2, 3)  # FFmpeg: unspecified, reserved
IDENTITY_ORIENTATION = (1, 0, 0, 1)
FIELD_PICTURES = frozenset({"hevc"})  # codecs whose "interlaced" pictures are single fields with separate timestamps


class FrameReader:
    """Decodes selected frames of one stream, each from the keyframe before it. Frames are never substituted."""

    def __init__(
        self,
        source: str,
        container: "InputContainer",
        stream: "VideoStream",
        packets: Packets,
        limits: Limits,
        threads: int = 1,
    ) -> None:
        self.source = source
        self.container = container
        self.stream = stream
        self.pixel_aspect = pixel_aspect(source, stream)
        self.packets = packets
        self.pts = packets.pts
        self.by_count = lacks_timestamps(container)
        self.key_pts = packets.keys[:1] if self.by_count else packets.keys
        stream.thread_type = "AUTO"
        stream.thread_count = threads
        # With several threads the decoder may output a damaged frame before marking it as damaged (observed in 1 of
        # 108), so any fault must be an error. With one thread it is always marked, and harmless faults are tolerated.
        strictness = {} if threads == 1 else {"err_detect": "explode"}
        stream.codec_context.options = {"max_pixels": str(limits.max_pixels), **strictness}

    def keep_vectors(self) -> None:
        """Make the decoder export motion vectors with its frames; call it before decoding the first frame."""
        self.stream.codec_context.options = self.stream.codec_context.options | {"flags2": "+export_mvs"}

    def frames(self, wanted: np.ndarray) -> Iterator["VideoFrame"]:
        """Yield the frames with the timestamps `wanted` (int64 [n], increasing, a subset of the packets').

        Raises `CorruptVideo` for the first frame that cannot be decoded.
        """
        keys = self.key_pts[np.searchsorted(self.key_pts, wanted, side="right") - 1]
        decoded: Iterator[VideoFrame] = iter(())
        position = -MIN_SEEK_FRAMES - 1  # index of the last decoded frame
        start_key: int | None = None  # keyframe at which decoding started
        for number, (pts, key) in enumerate(zip(wanted.tolist(), keys.tolist(), strict=True)):
            frame = None
            if int(np.searchsorted(self.pts, key)) - position <= MIN_SEEK_FRAMES:
                frame = self._next_at(decoded, pts)
            if frame is None and key != start_key:  # too far ahead, or damage in between
                decoded, start_key = self._from_key(key), key
                frame = self._next_at(decoded, pts)
            if frame is None:
                text = f"frame {number} of {len(wanted)} (timestamp {pts}) cannot be decoded, the file is damaged"
                raise CorruptVideo(f"{self.source}: {text}. Download or re-encode it.")
            position = int(np.searchsorted(self.pts, pts))
            yield frame

    def _next_at(self, decoded: Iterator["VideoFrame"], pts: int) -> "VideoFrame | None":
        """The frame at `pts`, or None if the decoder fails, ends or has passed it."""
        import av

        try:
            for frame in decoded:
                if frame.pts is not None and frame.pts >= pts:
                    return frame if frame.pts == pts and not frame.is_corrupt else None
        except av.error.InvalidDataError:
            return None
        return None

    def _from_key(self, key_pts: int) -> Iterator["VideoFrame"]:
        """Frames in presentation order, up to the first damaged one from `key_pts` on (later ones depend on it)."""
        count = 0
        for packet in packets_from_key(self.container, self.stream, key_pts, self.source):
            tick()
            for frame in packet.decode():
                tick()
                if self.by_count:
                    frame.pts = int(self.pts[count]) if count < len(self.pts) else None
                    count += 1
                yield frame
                if frame.is_corrupt and frame.pts is not None and frame.pts >= key_pts:
                    return


class FieldSelector:
    """Deinterlacer: replaces an interlaced frame by its top field, so that two instants are never mixed.

    The field is a frame of half the height (luma and chroma) and is scaled from there. The field order does not matter,
    because the time between frames stays the same.
    """

    def __init__(self, codec: str) -> None:
        self.codec = codec
        self.graph: Any = None
        self.shape: tuple[Any, ...] = ()

    def __call__(self, frame: "VideoFrame") -> "VideoFrame":
        """The frame itself if it is progressive, else its top field."""
        if not is_interlaced(frame, self.codec):
            return frame
        shape = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if shape != self.shape:
            self.graph, self.shape = _field_graph(frame), shape
        self.graph.push(frame)
        field: VideoFrame = self.graph.pull()
        is_specified = frame.colorspace not in UNSPECIFIED_MATRICES
        # decided by the height of the whole frame, since the field has only half the lines
        field.colorspace = frame.colorspace if is_specified else BT709 if frame.height >= HD_LINES else BT601
        field.color_range = frame.color_range
        return field


def is_interlaced(frame: "VideoFrame", codec: str) -> bool:
    """Whether the stream marks the frame as interlaced: alternate lines from two instants."""
    return bool(frame.interlaced_frame) and codec not in FIELD_PICTURES and frame.height > 1


def _field_graph(frame: "VideoFrame") -> Any:
    from av.filter import Graph

    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    field, sink = graph.add("field", "type=top"), graph.add("buffersink")
    source.link_to(field)
    field.link_to(sink)
    graph.configure()
    return graph


def to_rgb24(frame: "VideoFrame", width_px: int, height_px: int, reformatter: "VideoReformatter") -> np.ndarray:
    """Convert a frame to full-range RGB, uint8 [height_px, width_px, 3]; scaled by area averaging."""
    from av.video.reformatter import Interpolation

    is_scaled = (frame.width, frame.height) != (width_px, height_px)
    method = Interpolation.AREA if is_scaled else Interpolation.BILINEAR
    image = reformatter.reformat(
        frame,
        width=width_px,
        height=height_px,
        format="rgb24",
        src_colorspace=_default_matrix(frame),
        interpolation=method | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
        threads=1,
    )
    return np.asarray(image.to_ndarray())


def to_rgb48(frame: "VideoFrame", reformatter: "VideoReformatter") -> np.ndarray:
    """Convert a frame of more than 8 bits to full-range RGB, uint16 [H, W, 3] over 0..65535, at its stored size."""
    from av.video.reformatter import Interpolation

    name = frame.format.name
    if name == "gray16le":  # no conversion, which would go through limited range
        return np.repeat(frame.to_ndarray()[..., None], 3, axis=-1)
    if name.startswith(("rgb48", "gbrp16")):
        return np.asarray(frame.to_ndarray(format="rgb48le", threads=1))
    # libswscale's bilinear conversion to packed rgb48 gives wrong colours for 4:2:0 and other vertical sub-sampling
    has_subsampled_lines = frame.format.chroma_height(2) < 2
    image = reformatter.reformat(
        frame,
        format="gbrp16le" if has_subsampled_lines else "rgb48le",
        src_colorspace=_default_matrix(frame),
        interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
        threads=1,
    )
    return np.asarray(image.to_ndarray(format="rgb48le", threads=1))


def is_deep(frame: "VideoFrame") -> bool:
    """Whether the frame has more than 8 bits per channel."""
    return max(component.bits for component in frame.format.components) > 8


def _default_matrix(frame: "VideoFrame") -> Any:
    """Default colour matrix for a stream that does not specify one, else None."""
    from av.video.reformatter import Colorspace

    if frame.colorspace not in UNSPECIFIED_MATRICES:
        return None
    return Colorspace.ITU709 if frame.height >= HD_LINES else Colorspace.ITU601


def orientation(frame: "VideoFrame") -> tuple[int, int, int, int]:
    """Rotation by multiples of 90 degrees and mirroring from the display matrix.

    Returns (a, b, c, d), each -1, 0 or 1, with x' = a x + c y, y' = b x + d y.
    """
    data: Any = side_data(frame, "DISPLAYMATRIX")
    if data is None:
        return IDENTITY_ORIENTATION
    a, b, _, c, d, _, _, _, _ = struct.unpack("=9i", bytes(data)[:36])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)


def display_size(
    frame: "VideoFrame", display_matrix: tuple[int, int, int, int], pixel_aspect: Fraction
) -> tuple[int, int]:
    """Displayed width and height: square pixels by stretching the stored width, then rotation."""
    width_px = max(1, round(frame.width * pixel_aspect))
    return (frame.height, width_px) if is_transposed(display_matrix) else (width_px, frame.height)


def is_transposed(display_matrix: tuple[int, int, int, int]) -> bool:
    """Whether the orientation swaps width and height."""
    return display_matrix[0] == 0


def apply_orientation(image: np.ndarray, display_matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Rotate and mirror an image from stored to displayed orientation: [H, W, C] -> [H', W', C]."""
    a, b, c, d = display_matrix
    across, down = (c, b) if is_transposed(display_matrix) else (a, d)
    image = image.swapaxes(0, 1) if is_transposed(display_matrix) else image
    return image[:: down or 1, :: across or 1]

"""Decoded frames at exact timestamps, and their way to RGB arrays. Part of `video`."""

import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from openuni.manifests.video.container import Limits, Packets, lacks_timestamps, packets_from_key, pixel_aspect
from openuni.manifests.video.video_errors import CorruptVideo

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

MIN_SEEK_FRAMES = 8  # decoding on over fewer unwanted frames is cheaper than a jump
HD_LINES = 720  # a stream that does not state its colour matrix is BT.709 from here on, BT.601 below
BT709, BT601 = 1, 6  # numbers of the matrices in H.273
UNSPECIFIED_MATRICES = (2, 3)  # FFmpeg: unspecified, reserved
IDENTITY_ORIENTATION = (1, 0, 0, 1)
FIELD_PICTURES = frozenset({"hevc"})  # codecs whose "interlaced" pictures are single fields, each with its own time


class FrameReader:
    """Decodes chosen frames of one stream, each from the key frame before it, never another one in its place."""

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
        self.pts = packets.pts
        self.by_count = lacks_timestamps(container)
        self.key_pts = packets.keys[:1] if self.by_count else packets.keys
        stream.thread_type = "AUTO"
        stream.thread_count = threads
        # With several threads a damaged frame may leave the decoder before it is marked as such (seen in 1 of 108):
        # there any fault must be an error. With one it is always marked, and harmless faults can be forgiven.
        faults = {} if threads == 1 else {"err_detect": "explode"}
        stream.codec_context.options = {"max_pixels": str(limits.max_pixels), **faults}

    def keep_vectors(self) -> None:
        """Have the decoder hand out motion vectors with its frames; to be called before the first frame."""
        self.stream.codec_context.options = self.stream.codec_context.options | {"flags2": "+export_mvs"}

    def frames(self, wanted: np.ndarray) -> Iterator["VideoFrame"]:
        """The frames with the timestamps `wanted` (int64 [n], increasing, all among the packets'), one by one."""
        keys = self.key_pts[np.searchsorted(self.key_pts, wanted, side="right") - 1]
        decoded: Iterator[VideoFrame] = iter(())
        position = -MIN_SEEK_FRAMES - 1  # rank of the last frame decoded
        began: int | None = None  # key frame that decoding began at
        for number, (pts, key) in enumerate(zip(wanted.tolist(), keys.tolist(), strict=True)):
            frame = None
            if int(np.searchsorted(self.pts, key)) - position <= MIN_SEEK_FRAMES:
                frame = self._next_at(decoded, pts)
            if frame is None and key != began:  # too far to decode on, or damage on the way there
                decoded, began = self._from_key(key), key
                frame = self._next_at(decoded, pts)
            if frame is None:
                what = f"frame {number} of {len(wanted)} (timestamp {pts}) cannot be decoded"
                raise CorruptVideo(f"{self.source}: {what}: the file is damaged there, fetch or re-encode it")
            position = int(np.searchsorted(self.pts, pts))
            yield frame

    def _next_at(self, decoded: Iterator["VideoFrame"], pts: int) -> "VideoFrame | None":
        """The frame at `pts`, or None when the decoder fails, is done, or has passed it."""
        import av

        try:
            for frame in decoded:
                if frame.pts is not None and frame.pts >= pts:
                    return frame if frame.pts == pts and not frame.is_corrupt else None
        except av.error.InvalidDataError:
            return None
        return None

    def _from_key(self, key_pts: int) -> Iterator["VideoFrame"]:
        """Frames in presentation order; stops at the first damaged one from `key_pts` on, as later ones build on it."""
        count = 0
        for packet in packets_from_key(self.container, self.stream, key_pts, self.source):
            for frame in packet.decode():
                if self.by_count:
                    frame.pts = int(self.pts[count]) if count < len(self.pts) else None
                    count += 1
                yield frame
                if frame.is_corrupt and frame.pts is not None and frame.pts >= key_pts:
                    return


class FieldSelector:
    """The top field of frames that hold two, taken with half a frame's time between them: no mixture of both.

    The field goes on as a frame of half the height, brightness and colours alike, and is scaled from there. Which of
    the two was taken first does not matter: frames keep their distances in time.
    """

    def __init__(self, codec: str) -> None:
        self.codec = codec
        self.graph: Any = None
        self.shape: tuple[Any, ...] = ()

    def __call__(self, frame: "VideoFrame") -> "VideoFrame":
        """The frame itself where it holds one instant, else its top field."""
        if not is_interlaced(frame, self.codec):
            return frame
        shape = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if shape != self.shape:
            self.graph, self.shape = _field_graph(frame), shape
        self.graph.push(frame)
        field: VideoFrame = self.graph.pull()
        stated = frame.colorspace not in UNSPECIFIED_MATRICES
        # of the whole frame's height: a field of 1080 lines has 540
        field.colorspace = frame.colorspace if stated else BT709 if frame.height >= HD_LINES else BT601
        field.color_range = frame.color_range
        return field


def is_interlaced(frame: "VideoFrame", codec: str) -> bool:
    """Whether the frame's lines were taken at two instants in turn, as the stream states it."""
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
    """uint8 [height_px, width_px, 3], full-range RGB. Pixel areas are averaged when the size differs."""
    from av.video.reformatter import Interpolation

    scaled = (frame.width, frame.height) != (width_px, height_px)
    way = Interpolation.AREA if scaled else Interpolation.BILINEAR
    image = reformatter.reformat(
        frame,
        width=width_px,
        height=height_px,
        format="rgb24",
        src_colorspace=_default_matrix(frame),
        interpolation=way | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
        threads=1,
    )
    return np.asarray(image.to_ndarray())


def to_rgb48(frame: "VideoFrame", reformatter: "VideoReformatter") -> np.ndarray:
    """uint16 [H, W, 3], full-range RGB over 0..65535, at the frame's own size: for streams of more than 8 bits."""
    from av.video.reformatter import Interpolation

    name = frame.format.name
    if name == "gray16le":  # already what is wanted; the converter would take it through limited range
        return np.repeat(frame.to_ndarray()[..., None], 3, axis=-1)
    if name.startswith(("rgb48", "gbrp16")):
        return np.asarray(frame.to_ndarray(format="rgb48le", threads=1))
    image = reformatter.reformat(
        frame,
        format="rgb48le",
        src_colorspace=_default_matrix(frame),
        interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
        threads=1,
    )
    return np.asarray(image.to_ndarray())


def is_deep(frame: "VideoFrame") -> bool:
    """Whether the frame has more than 8 bits a channel."""
    return max(component.bits for component in frame.format.components) > 8


def _default_matrix(frame: "VideoFrame") -> Any:
    """The colour matrix to take for a stream that states none."""
    from av.video.reformatter import Colorspace

    if frame.colorspace not in UNSPECIFIED_MATRICES:
        return None
    return Colorspace.ITU709 if frame.height >= HD_LINES else Colorspace.ITU601


def orientation(frame: "VideoFrame") -> tuple[int, int, int, int]:
    """(a, b, c, d) of the display matrix, all -1, 0 or 1: quarter turns and mirrors, x' = a x + c y, y' = b x + d y."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return IDENTITY_ORIENTATION
    a, b, _, c, d, _, _, _, _ = struct.unpack("=9i", bytes(data)[:36])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)


def display_size(frame: "VideoFrame", turn: tuple[int, int, int, int], pixel_aspect: Fraction) -> tuple[int, int]:
    """Width and height as displayed: pixels made square by stretching the stored width, then turned."""
    width_px = max(1, round(frame.width * pixel_aspect))
    return (frame.height, width_px) if is_transposed(turn) else (width_px, frame.height)


def is_transposed(turn: tuple[int, int, int, int]) -> bool:
    """Whether width and height change places."""
    return turn[0] == 0


def apply_orientation(image: np.ndarray, turn: tuple[int, int, int, int]) -> np.ndarray:
    """[H, W, C] as stored -> as displayed."""
    a, b, c, d = turn
    across, down = (c, b) if is_transposed(turn) else (a, d)
    image = image.swapaxes(0, 1) if is_transposed(turn) else image
    return image[:: down or 1, :: across or 1]

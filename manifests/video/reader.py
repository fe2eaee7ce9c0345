"""Decoding videos: exact frames by timestamp, in bounded memory, from hostile input."""

import itertools
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from openuni.manifests.video.clip import Clip, pts_hash
from openuni.manifests.video.container import (
    Limits,
    Packets,
    lacks_timestamps,
    list_packets,
    open_video,
    packets_from_key,
    translate_errors,
)
from openuni.manifests.video.frames import (
    FieldSelector,
    FrameReader,
    apply_orientation,
    display_size,
    is_deep,
    is_transposed,
    orientation,
    to_rgb24,
    to_rgb48,
)
from openuni.manifests.video.motion_vectors import MotionVectors, frame_motion_vectors
from openuni.manifests.video.video_errors import CorruptVideo, LimitExceeded, SourceChanged, VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream


class Frames(NamedTuple):
    """Decoded frames of a clip: what `decode_frames` returns, and what a `DecodedClip` is made of."""

    frames: np.ndarray  # uint8 [T, H, W, 3], RGB (sRGB, full range)
    times_s: np.ndarray  # float64 [T], seconds since the clip's first frame
    vectors: tuple[MotionVectors | None, ...] | None  # per frame the codec's motion vectors, where they were asked for


def decode_frames(
    clip: Clip,
    indices: np.ndarray | Callable[[np.ndarray], np.ndarray] | None = None,
    short_side_px: int = 0,
    limits: Limits = Limits(),
    threads: int = 0,
    vectors: bool = False,
) -> Frames:
    """The clip's frames, exactly those of its PTS span, in presentation order; or those at `indices`.

    `indices`: int [n], increasing positions within the clip, or a function that chooses them by the frames' times
    (float64 [T] seconds since the first); only the key-frame runs that hold them are decoded.
    `short_side_px`: scale down, averaging pixel areas, so that the shorter side has this many pixels; 0, or a smaller
    frame, stays as it is. Frames are scaled one by one: memory is bounded by the working size.
    `threads`: of the decoder; 0 = one per core. RGB is full range by the matrix the stream states; a stream that states
    none is BT.709 from 720 lines, else BT.601. HDR transfer curves are not tone-mapped. Pixels that are not square are
    made so by stretching the width. Of an interlaced frame, which holds two instants, the top field is shown, its lines
    interpolated to the full height: fields are never mixed.
    `vectors`: also keep the codec's motion vectors of these frames.

    Raises `SourceChanged` when the span's timestamps no longer hash to the clip's; `CorruptVideo` naming the first
    frame that cannot be had: no frame is ever replaced by its neighbour; `LimitExceeded`. Damage that still parses as
    pictures cannot be seen: video codecs carry no checksums.
    """
    try:
        return _decode(clip, indices, short_side_px, limits, threads, vectors)
    except CorruptVideo:
        if threads == 1:
            raise
    return _decode(clip, indices, short_side_px, limits, 1, vectors)  # slower, and only what harms a frame is an error


def iter_frames(
    clip: Clip,
    short_side_px: int = 0,
    limits: Limits = Limits(),
    size_px: tuple[int, int] | None = None,
    threads: int = 1,
) -> Generator[np.ndarray]:
    """The frames that `decode` gives, uint8 [H, W, 3], one by one: never all in memory. Raises as it does.

    `size_px`: (height, width) to scale every frame to, whatever its shape; takes the place of `short_side_px`.
    `threads`: of the decoder, 0 = one per core; with more than one even a fault that harms no frame is `CorruptVideo`.
    """
    with _open_clip(clip, limits, threads) as (walk, wanted):
        yield from _images(clip, walk.frames(wanted), size_px or working_size(clip, short_side_px), walk.pixel_aspect)


def decode_full_depth(clip: Clip, limits: Limits = Limits(), data: bytes | None = None, threads: int = 0) -> np.ndarray:
    """All frames of the clip at the stream's own depth: uint8 or uint16 [T, H, W, 3] over its full range, as stored.

    uint16 where the stream has more than 8 bits a channel (exact for 16-bit RGB and grey), else what `decode` gives.
    For maps; of uint16, neither a rotation nor the shape of pixels is applied, and fields stay woven. Raises as
    `decode` does. `data`: the bytes of the clip's source, which is then not opened. `threads`: as for `decode`.
    """
    nbytes = clip.frame_count * clip.height_px * clip.width_px * 6
    if nbytes > limits.max_decoded_bytes:
        text = f"{clip.frame_count} frames of {clip.width_px}x{clip.height_px} may need {nbytes} bytes"
        raise LimitExceeded(f"{clip.source}: {text}, over Limits.max_decoded_bytes = {limits.max_decoded_bytes}")
    try:
        return _decode_full_depth(clip, limits, data, threads)
    except CorruptVideo:
        if threads == 1:
            raise
    return _decode_full_depth(clip, limits, data, 1)  # as `decode` does


def _decode(
    clip: Clip,
    indices: np.ndarray | Callable[[np.ndarray], np.ndarray] | None,
    short_side_px: int,
    limits: Limits,
    threads: int,
    vectors: bool,
) -> Frames:
    found: list[MotionVectors | None] = []

    def noted(frames: "Iterator[VideoFrame]") -> "Iterator[VideoFrame]":
        for frame in frames:
            found.append(frame_motion_vectors(frame))
            yield frame

    unit_s = clip.time_base_num / clip.time_base_den
    with _open_clip(clip, limits, threads) as (walk, wanted):
        if indices is not None:
            chosen = indices((wanted - clip.start_pts) * unit_s) if callable(indices) else indices
            wanted = wanted[_checked_indices(chosen, len(wanted))]
        if vectors:
            walk.keep_vectors()
        walked = noted(walk.frames(wanted)) if vectors else walk.frames(wanted)
        images = _images(clip, walked, working_size(clip, short_side_px), walk.pixel_aspect)
        frames = _stack(clip, images, len(wanted), short_side_px, limits)
    return Frames(frames, (wanted - clip.start_pts) * unit_s, tuple(found) if vectors else None)


def _decode_full_depth(clip: Clip, limits: Limits, data: bytes | None, threads: int) -> np.ndarray:
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    with _open_clip(clip, limits, threads, data) as (walk, wanted):
        frames = walk.frames(wanted)
        first = next(frames)
        frames = itertools.chain([first], frames)
        if not is_deep(first):
            images = _images(clip, frames, working_size(clip, 0), walk.pixel_aspect)
            return _stack(clip, images, len(wanted), 0, limits)
        out = np.empty((len(wanted), first.height, first.width, 3), np.uint16)
        for target, frame in zip(out, frames, strict=True):
            if (frame.height, frame.width) != (first.height, first.width):
                raise CorruptVideo(f"{clip.source}: the size of its frames changes: cut it there")
            target[:] = to_rgb48(frame, reformatter)
    return out


@contextmanager
def _open_clip(
    clip: Clip, limits: Limits, threads: int = 1, data: bytes | None = None
) -> Iterator[tuple[FrameReader, np.ndarray]]:
    """A walk over the clip's source, and the timestamps of its frames, after proving that they are the clip's."""
    _decodes.add()
    with open_video(clip.source, limits, data) as (container, stream), translate_errors(clip.source):
        if stream.index != clip.stream_index:
            text = f"its main video is stream {stream.index}, was {clip.stream_index}"
            raise SourceChanged(f"{clip.source} is not the file it was ({text}): ingest it anew")
        packets = _packets_of(clip, container, stream, limits)
        wanted = packets.pts[(packets.pts >= clip.start_pts) & (packets.pts < clip.end_pts)]
        if len(wanted) != clip.frame_count or pts_hash(wanted) != clip.pts_hash:
            found = f"{len(wanted)} frames in the span of {clip.frame_count}"
            raise SourceChanged(f"{clip.source} is not the file it was ({found}, or other timestamps): ingest it anew")
        yield FrameReader(clip.source, container, stream, packets, limits, threads), wanted


class _ThreadSafeCounter:
    """A count that threads share."""

    def __init__(self) -> None:
        self.lock, self.count = threading.Lock(), 0

    def add(self) -> None:
        with self.lock:
            self.count += 1


_decodes = _ThreadSafeCounter()


def decode_count() -> int:
    """How often this process has opened a video to decode frames of a clip: proves that a decode was shared."""
    return _decodes.count


def _packets_of(clip: Clip, container: "InputContainer", stream: "VideoStream", limits: Limits) -> Packets:
    """The packets from the last key frame before the clip to its end; of the whole file where only counting works."""
    if lacks_timestamps(container):
        return list_packets(container, container.demux(stream), clip.source, limits)
    packets = packets_from_key(container, stream, clip.start_pts, clip.source)
    return list_packets(container, packets, clip.source, limits, clip.end_pts)


def _checked_indices(indices: np.ndarray, count: int) -> np.ndarray:
    chosen = np.asarray(indices, np.int64)
    if chosen.ndim != 1 or not len(chosen) or chosen[0] < 0 or chosen[-1] >= count or (np.diff(chosen) <= 0).any():
        raise VideoError(f"indices must increase within 0..{count - 1} and not be empty, got {indices!r}")
    return chosen


def _stack(clip: Clip, images: Iterator[np.ndarray], count: int, short_side_px: int, limits: Limits) -> np.ndarray:
    """uint8 [count, H, W, 3]: images taken one by one into one array."""
    height_px, width_px = working_size(clip, short_side_px)
    nbytes = count * height_px * width_px * 3
    if nbytes > limits.max_decoded_bytes:
        text = f"{count} frames of {width_px}x{height_px} need {nbytes} bytes, over Limits.max_decoded_bytes"
        raise LimitExceeded(
            f"{clip.source}: {text} = {limits.max_decoded_bytes}: take a smaller working size or shorter clips"
        )
    out = np.empty((count, height_px, width_px, 3), np.uint8)
    for target, image in zip(out, images, strict=True):
        target[:] = image
    return out


def working_size(clip: Clip, short_side_px: int) -> tuple[int, int]:
    """Height and width of decoded frames: the shorter side scaled down to `short_side_px`, where that is not 0."""
    shorter = min(clip.width_px, clip.height_px)
    scale = short_side_px / shorter if 0 < short_side_px < shorter else 1.0
    return max(1, round(clip.height_px * scale)), max(1, round(clip.width_px * scale))


def _images(
    clip: Clip, frames: "Iterator[VideoFrame]", size_px: tuple[int, int], pixel_aspect: Fraction
) -> Iterator[np.ndarray]:
    """uint8 [H, W, 3] of each frame: one field of two, converted, scaled and turned."""
    from av.video.reformatter import VideoReformatter

    height_px, width_px = size_px
    reformatter, one_field = VideoReformatter(), FieldSelector(clip.codec)
    turn: tuple[int, int, int, int] | None = None
    for number, frame in enumerate(frames):
        turn = orientation(frame) if turn is None else turn
        sides = (height_px, width_px) if is_transposed(turn) else (width_px, height_px)
        shown = display_size(frame, turn, pixel_aspect)
        if shown != (clip.width_px, clip.height_px):
            text = f"frame {number} is {shown[0]}x{shown[1]}, the clip is {clip.width_px}x{clip.height_px}"
            raise CorruptVideo(f"{clip.source}: {text}: cut the video where its size changes")
        yield apply_orientation(to_rgb24(one_field(frame), *sides, reformatter), turn)

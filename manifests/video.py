"""Video in and out: the only door to pixels on disk. Exact frames by timestamp, bounded memory, hostile input."""

import itertools
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from manifests.clip import Clip, DecodedClip, clip_id, pts_hash
from manifests.container import (
    Limits,
    NotAVideo,
    OverLimit,
    Packets,
    Refused,
    SourceChanged,
    Undecodable,
    VideoError,
    all_bytes,
    counts_only,
    list_packets,
    open_video,
    packets_from_key,
    translated,
)
from manifests.encode import Pixels, decode_lossless, encode_lossless, write_video
from manifests.frames import (
    UPRIGHT,
    FieldPicker,
    FrameWalk,
    has_two_fields,
    is_deep,
    is_transposed,
    orientation,
    shown_size,
    to_rgb24,
    to_rgb48,
    turned,
)
from manifests.motion_vectors import MotionVectors, vectors_of

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = [
    "Limits",
    "NotAVideo",
    "OverLimit",
    "Pixels",
    "Refused",
    "SourceChanged",
    "Undecodable",
    "VideoError",
    "VideoInfo",
    "clip_of",
    "decode",
    "decode_count",
    "decode_deep",
    "decode_lossless",
    "encode_lossless",
    "frames_of",
    "probe",
    "whole_clip",
    "whole_mp4",
    "working_size",
    "write_video",
]


class VideoInfo(NamedTuple):
    """What `probe` found out about a file's main video stream."""

    stream_index: int
    codec: str  # FFmpeg's name, such as "h264"
    width_px: int  # as displayed: rotation applied, and pixels made square by stretching the stored width
    height_px: int
    fps: float  # mean
    duration_s: float  # from the first frame to the end of the last
    time_base_num: int  # one PTS unit is num / den seconds
    time_base_den: int
    end_pts: int  # just after the last frame
    pts: np.ndarray  # int64 [T], presentation timestamps, strictly increasing
    interlaced: bool = False  # the first frame holds two fields: `decode` shows the top one only
    upright: bool = True  # it is shown as it is stored, neither turned nor mirrored


def probe(
    source: str,
    limits: Limits = Limits(),  # frozen, so a shared default is safe
    data: bytes | None = None,
) -> VideoInfo:
    """Facts about the main video stream of `source`, a local path or a URL (http, https, s3, gs, az, memory).

    Timestamps come from demuxing alone; one frame is decoded, for its size as displayed. Frames that no player could
    show are not counted: those before the first key frame, and those an edit list hides. Raises a `VideoError`.
    `data`: the bytes of a video that is to lie at `source` and does not yet.
    """
    with open_video(source, limits, data) as (container, stream), translated(source):
        if stream.time_base is None:
            raise Undecodable(f"{source} has no time base: remux it into mp4 or mkv")
        packets = list_packets(container, container.demux(stream), source, limits)
        pts = packets.pts
        if not len(pts):
            raise Undecodable(f"{source} has a {stream.codec.canonical_name} stream but no key frame to start from")
        if (np.diff(pts) == 0).any():
            raise Undecodable(f"{source} has several frames with one timestamp: re-encode it")
        end_pts = int(pts[-1]) + _last_duration(packets, pts, stream)
        duration_s = float((end_pts - int(pts[0])) * stream.time_base)
        if duration_s > limits.max_duration_s:
            text = f"{source} lasts {duration_s:.0f} s, over Limits.max_duration_s = {limits.max_duration_s:g}: cut it"
            raise OverLimit(text)
        walk = FrameWalk(source, container, stream, packets, limits)
        first = next(walk.frames(pts[:1]))
        turn = orientation(first)
        width_px, height_px = shown_size(first, turn, walk.pixel_aspect)
        return VideoInfo(
            stream_index=stream.index,
            codec=stream.codec.canonical_name,
            width_px=width_px,
            height_px=height_px,
            fps=len(pts) / duration_s,
            duration_s=duration_s,
            time_base_num=stream.time_base.numerator,
            time_base_den=stream.time_base.denominator,
            end_pts=end_pts,
            pts=pts,
            interlaced=has_two_fields(first, stream.codec.canonical_name),
            upright=turn == UPRIGHT,
        )


def clip_of(source: str, info: VideoInfo, start: int = 0, stop: int | None = None, caption: str | None = None) -> Clip:
    """The clip of frames `start` to `stop` (half-open, in presentation order) of a probed video."""
    count = len(info.pts)
    stop = count if stop is None else stop
    if not 0 <= start < stop <= count:
        raise VideoError(f"frames {start} to {stop} are not within the {count} frames of {source}")
    pts = info.pts[start:stop]
    start_pts, end_pts = int(pts[0]), int(info.pts[stop]) if stop < count else info.end_pts
    digest = pts_hash(pts)
    seconds = (end_pts - start_pts) * info.time_base_num / info.time_base_den
    return Clip(
        clip_id=clip_id(source, start_pts, end_pts, digest),
        source=source,
        stream_index=info.stream_index,
        start_pts=start_pts,
        end_pts=end_pts,
        time_base_num=info.time_base_num,
        time_base_den=info.time_base_den,
        frame_count=len(pts),
        fps=len(pts) / seconds,
        width_px=info.width_px,
        height_px=info.height_px,
        codec=info.codec,
        pts_hash=digest,
        caption=caption,
        interlaced=info.interlaced,
    )


def whole_clip(source: str, limits: Limits = Limits(), data: bytes | None = None) -> Clip:
    """All frames of a video; raises a `VideoError` as `probe` does. `data`: its bytes, only named `source`."""
    return clip_of(source, probe(source, limits, data))


def decode(
    clip: Clip,
    indices: np.ndarray | Callable[[np.ndarray], np.ndarray] | None = None,
    short_side_px: int = 0,
    limits: Limits = Limits(),
    threads: int = 0,
    vectors: bool = False,
) -> DecodedClip:
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

    Raises `SourceChanged` when the span's timestamps no longer hash to the clip's; `Undecodable` naming the first frame
    that cannot be had: no frame is ever replaced by its neighbour; `OverLimit`. Damage that still parses as pictures
    cannot be seen: video codecs carry no checksums.
    """
    try:
        return _decode(clip, indices, short_side_px, limits, threads, vectors)
    except Undecodable:
        if threads == 1:
            raise
    return _decode(clip, indices, short_side_px, limits, 1, vectors)  # slower, and only what harms a frame is an error


def frames_of(
    clip: Clip,
    short_side_px: int = 0,
    limits: Limits = Limits(),
    size_px: tuple[int, int] | None = None,
    threads: int = 1,
) -> Generator[np.ndarray]:
    """The frames that `decode` gives, uint8 [H, W, 3], one by one: never all in memory. Raises as it does.

    `size_px`: (height, width) to scale every frame to, whatever its shape; takes the place of `short_side_px`.
    `threads`: of the decoder, 0 = one per core; with more than one even a fault that harms no frame is `Undecodable`.
    """
    with _opened(clip, limits, threads) as (walk, wanted):
        yield from _images(clip, walk.frames(wanted), size_px or working_size(clip, short_side_px), walk.pixel_aspect)


def decode_deep(clip: Clip, limits: Limits = Limits(), data: bytes | None = None, threads: int = 0) -> np.ndarray:
    """All frames of the clip at the stream's own depth: uint8 or uint16 [T, H, W, 3] over its full range, as stored.

    uint16 where the stream has more than 8 bits a channel (exact for 16-bit RGB and grey), else what `decode` gives.
    For maps; of uint16, neither a rotation nor the shape of pixels is applied, and fields stay woven. Raises as
    `decode` does. `data`: the bytes of the clip's source, which is then not opened. `threads`: as for `decode`.
    """
    nbytes = clip.frame_count * clip.height_px * clip.width_px * 6
    if nbytes > limits.max_decoded_bytes:
        text = f"{clip.frame_count} frames of {clip.width_px}x{clip.height_px} may need {nbytes} bytes"
        raise OverLimit(f"{clip.source}: {text}, over Limits.max_decoded_bytes = {limits.max_decoded_bytes}")
    try:
        return _decode_deep(clip, limits, data, threads)
    except Undecodable:
        if threads == 1:
            raise
    return _decode_deep(clip, limits, data, 1)  # as `decode` does


def whole_mp4(clip: Clip) -> bytes | None:
    """The bytes of the clip's source where that is an mp4 with exactly the clip's frames as they are shown, else None.

    Readers elsewhere may know nothing of turned, mirrored, stretched or interlaced pictures: such sources give None.

    Raises a `VideoError` when the source cannot be read. A source that has changed since gives None; `decode` says so.
    """
    with open_video(clip.source, Limits()) as (container, stream):
        stored_px = (stream.width, stream.height)
        brand = container.metadata.get("major_brand", "qt").strip()  # QuickTime's mov is of the same family
        if "mp4" not in container.format.name or brand == "qt":
            return None
    info = probe(clip.source)
    if info.stream_index != clip.stream_index or pts_hash(info.pts) != clip.pts_hash:
        return None
    if info.interlaced or not info.upright or stored_px != (info.width_px, info.height_px):
        return None
    return all_bytes(clip.source)


def _decode(
    clip: Clip,
    indices: np.ndarray | Callable[[np.ndarray], np.ndarray] | None,
    short_side_px: int,
    limits: Limits,
    threads: int,
    vectors: bool,
) -> DecodedClip:
    found: list[MotionVectors | None] = []

    def noted(frames: "Iterator[VideoFrame]") -> "Iterator[VideoFrame]":
        for frame in frames:
            found.append(vectors_of(frame))
            yield frame

    unit_s = clip.time_base_num / clip.time_base_den
    with _opened(clip, limits, threads) as (walk, wanted):
        if indices is not None:
            chosen = indices((wanted - clip.start_pts) * unit_s) if callable(indices) else indices
            wanted = wanted[_checked_indices(chosen, len(wanted))]
        if vectors:
            walk.keep_vectors()
        walked = noted(walk.frames(wanted)) if vectors else walk.frames(wanted)
        images = _images(clip, walked, working_size(clip, short_side_px), walk.pixel_aspect)
        frames = _stack(clip, images, len(wanted), short_side_px, limits)
    return DecodedClip(clip, frames, (wanted - clip.start_pts) * unit_s, tuple(found) if vectors else None)


def _decode_deep(clip: Clip, limits: Limits, data: bytes | None, threads: int) -> np.ndarray:
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    with _opened(clip, limits, threads, data) as (walk, wanted):
        frames = walk.frames(wanted)
        first = next(frames)
        frames = itertools.chain([first], frames)
        if not is_deep(first):
            images = _images(clip, frames, working_size(clip, 0), walk.pixel_aspect)
            return _stack(clip, images, len(wanted), 0, limits)
        out = np.empty((len(wanted), first.height, first.width, 3), np.uint16)
        for target, frame in zip(out, frames, strict=True):
            if (frame.height, frame.width) != (first.height, first.width):
                raise Undecodable(f"{clip.source}: the size of its frames changes: cut it there")
            target[:] = to_rgb48(frame, reformatter)
    return out


@contextmanager
def _opened(
    clip: Clip, limits: Limits, threads: int = 1, data: bytes | None = None
) -> Iterator[tuple[FrameWalk, np.ndarray]]:
    """A walk over the clip's source, and the timestamps of its frames, after proving that they are the clip's."""
    _decodes.add()
    with open_video(clip.source, limits, data) as (container, stream), translated(clip.source):
        if stream.index != clip.stream_index:
            text = f"its main video is stream {stream.index}, was {clip.stream_index}"
            raise SourceChanged(f"{clip.source} is not the file it was ({text}): ingest it anew")
        packets = _packets_of(clip, container, stream, limits)
        wanted = packets.pts[(packets.pts >= clip.start_pts) & (packets.pts < clip.end_pts)]
        if len(wanted) != clip.frame_count or pts_hash(wanted) != clip.pts_hash:
            found = f"{len(wanted)} frames in the span of {clip.frame_count}"
            raise SourceChanged(f"{clip.source} is not the file it was ({found}, or other timestamps): ingest it anew")
        yield FrameWalk(clip.source, container, stream, packets, limits, threads), wanted


class _Tally:
    """A count that threads share."""

    def __init__(self) -> None:
        self.lock, self.count = threading.Lock(), 0

    def add(self) -> None:
        with self.lock:
            self.count += 1


_decodes = _Tally()


def decode_count() -> int:
    """How often this process has opened a video to decode frames of a clip: proves that a decode was shared."""
    return _decodes.count


def _packets_of(clip: Clip, container: "InputContainer", stream: "VideoStream", limits: Limits) -> Packets:
    """The packets from the last key frame before the clip to its end; of the whole file where only counting works."""
    if counts_only(container):
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
        raise OverLimit(
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
    reformatter, one_field = VideoReformatter(), FieldPicker(clip.codec)
    turn: tuple[int, int, int, int] | None = None
    for number, frame in enumerate(frames):
        turn = orientation(frame) if turn is None else turn
        sides = (height_px, width_px) if is_transposed(turn) else (width_px, height_px)
        shown = shown_size(frame, turn, pixel_aspect)
        if shown != (clip.width_px, clip.height_px):
            text = f"frame {number} is {shown[0]}x{shown[1]}, the clip is {clip.width_px}x{clip.height_px}"
            raise Undecodable(f"{clip.source}: {text}: cut the video where its size changes")
        yield turned(to_rgb24(one_field(frame), *sides, reformatter), turn)


def _last_duration(packets: Packets, pts: np.ndarray, stream: "VideoStream") -> int:
    """How long the last frame is shown, in PTS units: as stated, else the median distance, else one frame's rate."""
    if packets.last_duration > 0:
        return packets.last_duration
    if len(pts) > 1:
        return max(1, int(np.median(np.diff(pts))))
    rate = stream.average_rate or Fraction(25)
    return max(1, round(1 / (rate * stream.time_base))) if stream.time_base else 1

"""Video decoding: exact frames by timestamp, in bounded memory, from untrusted input."""

import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from openuni.manifests.video.clip import Clip, content_hash, pts_hash
from openuni.manifests.video.container import (
    Limits,
    Packets,
    Span,
    demux,
    lacks_timestamps,
    list_packets,
    open_video,
    packets_from_key,
    translate_errors,
)
from openuni.manifests.video.decoder import memory, progress
from openuni.manifests.video.decoder.process import isolated
from openuni.manifests.video.decoder.values import transferable
from openuni.manifests.video.frames import FrameReader, is_deep, to_rgb48
from openuni.manifests.video.motion_vectors import MotionVectors
from openuni.manifests.video.readers.clip_images import Attempt, attempts_of, displayed_images, images_by
from openuni.manifests.video.readers.nvdec_reader import hardware
from openuni.manifests.video.video_errors import CorruptVideo, LimitExceeded, SourceChanged, VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream


@transferable
class Frames(NamedTuple):
    """Decoded frames of a clip."""

    frames: np.ndarray  # uint8 [T, H, W, 3], RGB (sRGB, full range)
    times_s: np.ndarray  # float64 [T], seconds since the clip's first frame
    vectors: tuple[MotionVectors | None, ...] | None  # motion vectors per frame, if requested


@isolated
def decode_frames(
    clip: Clip,
    indices: np.ndarray | Callable[[np.ndarray], np.ndarray] | None = None,
    short_side_px: int = 0,
    limits: Limits = Limits(),
    threads: int = 0,
    vectors: bool = False,
    reader: str = "pyav",
) -> Frames:
    """Decode the frames of the clip's PTS span in presentation order, or those at `indices`.

    `indices`: int [n], increasing indices within the clip, or a function of the frame times (float64 [T], seconds since
    the first frame) that returns them; only the groups of pictures that contain them are decoded.
    `short_side_px`: downscale by area averaging to this length of the shorter side; 0, or a smaller frame: unchanged.
    Frames are scaled one by one, so memory is bounded by the working size.
    `threads`: number of decoder threads; 0: one per core.
    `vectors`: also return the codec's motion vectors; decoding then uses one thread.
    `reader`: what decodes the frames, one of `READERS`: PyAV on the CPU; decord, which raises `VideoError` for what it
    would show otherwise, see `decord_reader`; or PyAV with NVDEC, with the same frames. What NVDEC does not decode the
    CPU does, and `fallback_count` counts. Frames of both are checked against PyAV's on the CPU, see `reader_check`.

    RGB is full range, by the colour matrix of the stream; default: BT.709 from 720 lines on, else BT.601. HDR is not
    tone-mapped. Non-square pixels become square by stretching the width. Interlaced frames are replaced by their top
    field, interpolated to the full height; fields are never mixed.

    Raises `SourceChanged` if the timestamps of the span do not match the clip's; `CorruptVideo` with the first frame
    that cannot be decoded (no frame is ever substituted); `LimitExceeded`. Damage that still decodes to pictures cannot
    be detected, because video codecs have no checksums.
    """
    if indices is None:
        _check_decoded_size(clip, clip.frame_count, short_side_px, limits)  # before the source is opened
    threads = 1 if vectors else threads  # with several, FFmpeg may export vectors before a frame is fully decoded
    attempts = attempts_of(reader, threads, vectors)
    for attempt in attempts:
        try:
            return _decode(clip, indices, short_side_px, limits, attempt, vectors)
        except CorruptVideo:
            if attempt == attempts[-1]:
                raise
    raise AssertionError("unreachable")


@isolated
def frame_times(clip: Clip, limits: Limits = Limits()) -> np.ndarray:
    """Timestamps of the clip's frames in its time base since the first one, int64 [T]; nothing is decoded.

    Raises `SourceChanged` as `decode_frames`, or another `VideoError`.
    """
    with _open_clip(clip, limits) as (_, pts):
        return pts - clip.start_pts


@isolated
def iter_windows(  # noqa: PLR0913  # those of decode_frames, and two
    clip: Clip,
    short_side_px: int = 0,
    limits: Limits = Limits(),
    frames_per_window: int = 64,
    overlap_frames: int = 0,
    indices: np.ndarray | Callable[[np.ndarray], np.ndarray] | None = None,
    threads: int = 0,
    vectors: bool = False,
    reader: str = "pyav",
) -> Generator[Frames]:
    """Decode the frames of `decode_frames` in windows, in one pass and in the memory of one window.

    Windows are consecutive, in presentation order, with `frames_per_window` new frames each (the last one with what
    remains). Every window but the first begins with the last `overlap_frames` frames of the one before. The other
    arguments are those of `decode_frames`; frames, times and vectors are the same. `limits.max_decoded_bytes` applies
    to one window. Raises as `decode_frames`.
    """
    if frames_per_window < 1 or overlap_frames < 0:
        raise VideoError(f"frames_per_window must be at least 1, got {frames_per_window}; overlap_frames at least 0")
    _check_decoded_size(clip, min(clip.frame_count, frames_per_window + overlap_frames), short_side_px, limits)
    threads = 1 if vectors else threads
    attempts = attempts_of(reader, threads, vectors)
    before: Frames | None = None
    done = 0
    for attempt in attempts:  # the next one goes on behind the last window
        try:
            for window in _new_frames(clip, short_side_px, limits, frames_per_window, indices, done, attempt, vectors):
                done += len(window.frames)
                before = _joined(before, overlap_frames, window)
                yield before
            return
        except CorruptVideo:
            if attempt == attempts[-1]:
                raise


@isolated
def iter_frames(
    clip: Clip,
    short_side_px: int = 0,
    limits: Limits = Limits(),
    size_px: tuple[int, int] | None = None,
    threads: int = 1,
) -> Generator[np.ndarray]:
    """Decode the clip's frames one by one, uint8 [H, W, 3], in constant memory. Raises as `decode_frames`.

    `size_px`: (height, width) to scale every frame to regardless of its aspect ratio; overrides `short_side_px`.
    `threads`: number of decoder threads, 0: one per core; with more than one, harmless faults also raise
    `CorruptVideo`.
    """
    with _open_clip(clip, limits, threads) as (reader, pts):
        size_px = size_px or working_size(clip, short_side_px)
        yield from displayed_images(clip, reader.frames(pts), size_px, reader.pixel_aspect)


@isolated
def decode_full_depth(clip: Clip, limits: Limits = Limits(), data: bytes | None = None, threads: int = 0) -> np.ndarray:
    """Decode all frames at the stream's bit depth: uint8 or uint16 [T, H, W, 3] over the full range. For maps.

    uint16 for streams with more than 8 bits per channel (exact for 16-bit RGB and grey), without rotation, square
    pixels or deinterlacing; else as `decode_frames`. `data`: contents of the clip's source, which is then not opened.
    `threads`: as for `decode_frames`. Raises as `decode_frames`.
    """
    nbytes = clip.frame_count * clip.height_px * clip.width_px * 6
    if nbytes > limits.max_decoded_bytes:
        text = f"{clip.frame_count} frames of {clip.width_px}x{clip.height_px} may need {nbytes} bytes"
        limit = f"Limits.max_decoded_bytes = {limits.max_decoded_bytes}"
        raise LimitExceeded(f"{clip.source}: {text}, over {limit}. Use shorter clips.")
    try:
        return _decode_full_depth(clip, limits, data, threads)
    except CorruptVideo:
        if threads == 1:
            raise
    return _decode_full_depth(clip, limits, data, 1)  # as in `decode_frames`


def _decode(
    clip: Clip,
    indices: np.ndarray | Callable[[np.ndarray], np.ndarray] | None,
    short_side_px: int,
    limits: Limits,
    attempt: Attempt,
    vectors: bool,
) -> Frames:
    collected: list[MotionVectors | None] = []
    unit_s = clip.time_base_num / clip.time_base_den
    with _open_for(attempt, clip, limits) as (reader, pts):
        if indices is not None:
            selected = indices((pts - clip.start_pts) * unit_s) if callable(indices) else indices
            pts = pts[_validate_indices(selected, len(pts))]
        size_px = working_size(clip, short_side_px)
        images = images_by(attempt, clip, reader, pts, size_px, limits, collected if vectors else None)
        frames = _stack(clip, images, len(pts), short_side_px, limits)
    return Frames(frames, (pts - clip.start_pts) * unit_s, tuple(collected) if vectors else None)


@contextmanager
def _open_for(attempt: Attempt, clip: Clip, limits: Limits) -> Iterator[tuple[FrameReader, np.ndarray]]:
    """Context of `_open_clip` with the decoder of an attempt."""
    if attempt.is_fallback:
        progress.count_fallback()
    hwaccel = hardware() if attempt.reader == "nvdec" else None
    threads = 1 if attempt.reader == "decord" else attempt.threads  # PyAV then decodes two frames
    with _open_clip(clip, limits, threads, hwaccel=hwaccel) as opened:
        yield opened


def _decode_full_depth(clip: Clip, limits: Limits, data: bytes | None, threads: int) -> np.ndarray:
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    with _open_clip(clip, limits, threads, data) as (reader, pts):
        frames = reader.frames(pts)
        first = next(frames)
        frames = itertools.chain([first], frames)
        if not is_deep(first):
            images = displayed_images(clip, frames, working_size(clip, 0), reader.pixel_aspect)
            return _stack(clip, images, len(pts), 0, limits)
        out = memory.empty((len(pts), first.height, first.width, 3), np.uint16)
        for target, frame in zip(out, frames, strict=True):
            if (frame.height, frame.width) != (first.height, first.width):
                raise CorruptVideo(f"{clip.source}: frame size changes within the clip. Cut the video there.")
            target[:] = to_rgb48(frame, reformatter)
    return out


def _new_frames(  # noqa: PLR0913  # those of iter_windows
    clip: Clip,
    short_side_px: int,
    limits: Limits,
    frames_per_window: int,
    indices: np.ndarray | Callable[[np.ndarray], np.ndarray] | None,
    start: int,
    attempt: Attempt,
    vectors: bool,
) -> Iterator[Frames]:
    """Windows without overlap of the wanted frames from the one numbered `start` on."""
    with _open_for(attempt, clip, limits) as (reader, all_pts):
        times_s = (all_pts - clip.start_pts) * (clip.time_base_num / clip.time_base_den)
        selected = np.arange(len(all_pts)) if indices is None else indices(times_s) if callable(indices) else indices
        wanted = _validate_indices(selected, len(all_pts))[start:]
        found: list[MotionVectors | None] = []
        size_px = working_size(clip, short_side_px)
        images = images_by(attempt, clip, reader, all_pts[wanted], size_px, limits, found if vectors else None)
        for first in range(0, len(wanted), frames_per_window):
            places = wanted[first : first + frames_per_window]
            frames = np.empty((len(places), *size_px, 3), np.uint8)
            for target in frames:
                target[:] = next(images)
            yield Frames(frames, times_s[places], tuple(found) if vectors else None)
            found.clear()


def _joined(before: Frames | None, overlap_frames: int, window: Frames) -> Frames:
    """The window, with the last frames of the window before at its beginning."""
    if before is None or not overlap_frames:
        return window
    old = Frames(before.frames[-overlap_frames:], before.times_s[-overlap_frames:], None)
    vectors = None
    if before.vectors is not None and window.vectors is not None:
        vectors = before.vectors[-overlap_frames:] + window.vectors
    times_s = np.concatenate([old.times_s, window.times_s])
    return Frames(np.concatenate([old.frames, window.frames]), times_s, vectors)


@contextmanager
def _open_clip(
    clip: Clip, limits: Limits, threads: int = 1, data: bytes | None = None, hwaccel: Any = None
) -> Iterator[tuple[FrameReader, np.ndarray]]:
    """Context with a reader of the clip's source and the clip's timestamps, int64 [T].

    Raises `SourceChanged` if the timestamps or the compressed frames in the source differ from the clip's.
    """
    progress.count_decode()
    with open_video(clip.source, limits, data, hwaccel=hwaccel) as (container, stream), translate_errors(clip.source):
        if stream.index != clip.stream_index:
            text = f"main video stream is {stream.index}, was {clip.stream_index}"
            raise SourceChanged(f"{clip.source} changed after ingest ({text}). Ingest it again.")
        packets = _clip_packets(clip, container, stream, limits)
        within = (packets.pts >= clip.start_pts) & (packets.pts < clip.end_pts)
        pts = packets.pts[within]
        if len(pts) != clip.frame_count:
            text = f"{len(pts)} frames in the clip's span, expected {clip.frame_count}"
            raise SourceChanged(f"{clip.source} changed after ingest ({text}). Ingest it again.")
        if pts_hash(pts) != clip.pts_hash:
            raise SourceChanged(f"{clip.source} changed after ingest (other timestamps). Ingest it again.")
        if clip.content_hash is not None and content_hash(packets.hashes[within]) != clip.content_hash:
            raise SourceChanged(f"{clip.source} changed after ingest (other frames). Ingest it again.")
        yield FrameReader(clip.source, container, stream, packets, limits, threads), pts


def decode_count() -> int:
    """Number of times that this process opened a clip's source for decoding. Shows that decodes are shared."""
    return progress.decode_count()


def fallback_count() -> int:
    """Number of decodes that the CPU did for this process because NVDEC could not."""
    return progress.fallback_count()


def _clip_packets(clip: Clip, container: "InputContainer", stream: "VideoStream", limits: Limits) -> Packets:
    """Packets from the last keyframe before the clip to its end; of the whole file if it has no timestamps."""
    if lacks_timestamps(container):
        return list_packets(container, demux(container, stream), clip.source, limits)
    packets = packets_from_key(container, stream, clip.start_pts, clip.source)
    span = Span(clip.start_pts, clip.end_pts, clip.frame_count)
    return list_packets(container, packets, clip.source, limits, span)


def _validate_indices(indices: np.ndarray, count: int) -> np.ndarray:
    array = np.asarray(indices, np.int64)
    if array.ndim != 1 or not len(array) or array[0] < 0 or array[-1] >= count or (np.diff(array) <= 0).any():
        raise VideoError(f"indices must be increasing within 0..{count - 1} and not empty, got {indices!r}")
    return array


def _stack(clip: Clip, images: Iterator[np.ndarray], count: int, short_side_px: int, limits: Limits) -> np.ndarray:
    """Collect images into one array, uint8 [count, H, W, 3]. Raises `LimitExceeded`."""
    _check_decoded_size(clip, count, short_side_px, limits)
    out = memory.empty((count, *working_size(clip, short_side_px), 3), np.uint8)
    for target, image in zip(out, images, strict=True):
        target[:] = image
    return out


def _check_decoded_size(clip: Clip, count: int, short_side_px: int, limits: Limits) -> None:
    """Raise `LimitExceeded` if `count` decoded frames would be larger than allowed."""
    height_px, width_px = working_size(clip, short_side_px)
    nbytes = count * height_px * width_px * 3
    if nbytes > limits.max_decoded_bytes:
        raise LimitExceeded(
            f"{clip.source}: {count} frames of {width_px}x{height_px} need {nbytes / 1e9:.3g} GB, over the limit of "
            f"{limits.max_decoded_bytes / 1e9:.3g} GB. Set a smaller [work] short_side_px or shorter clips ([ingest] "
            "max_s), or raise [work] max_decoded_gb (Limits.max_decoded_bytes in Python)."
        )


def working_size(clip: Clip, short_side_px: int) -> tuple[int, int]:
    """(height, width) of decoded frames: the shorter side downscaled to `short_side_px`, unless that is 0."""
    clip_short_side_px = min(clip.width_px, clip.height_px)
    scale = short_side_px / clip_short_side_px if 0 < short_side_px < clip_short_side_px else 1.0
    return max(1, round(clip.height_px * scale)), max(1, round(clip.width_px * scale))

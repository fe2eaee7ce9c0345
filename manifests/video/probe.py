"""Probing: metadata of a file's main video stream, and clips of its frames."""

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from openuni.manifests.video.clip import Clip, clip_id, content_hash, pts_hash
from openuni.manifests.video.container import (
    Limits,
    Packets,
    demux,
    list_packets,
    open_video,
    read_all,
    translate_errors,
)
from openuni.manifests.video.decoder.process import isolated
from openuni.manifests.video.decoder.values import transferable
from openuni.manifests.video.frames import IDENTITY_ORIENTATION, FrameReader, display_size, is_interlaced, orientation
from openuni.manifests.video.video_errors import CorruptVideo, LimitExceeded, VideoError

if TYPE_CHECKING:
    from av.video.stream import VideoStream


@transferable
class VideoInfo(NamedTuple):
    """Metadata of a file's main video stream."""

    stream_index: int
    codec: str  # FFmpeg's name, such as "h264"
    width_px: int  # displayed size: after rotation, with square pixels by stretching the stored width
    height_px: int
    fps: float  # mean frame rate, frames per second
    duration_s: float  # from the first frame to the end of the last
    time_base_num: int  # one PTS unit is num / den seconds
    time_base_den: int
    end_pts: int  # PTS just after the last frame
    pts: np.ndarray  # int64 [T], presentation timestamps, strictly increasing
    interlaced: bool = False  # the first frame is interlaced; only top fields are decoded
    upright: bool = True  # neither rotated nor mirrored for display
    frame_hashes: np.ndarray | None = None  # uint64 [T], of the compressed frames


@isolated
def probe(
    source: str,
    limits: Limits = Limits(),  # frozen, so a shared default is safe
    data: bytes | None = None,
) -> VideoInfo:
    """Probe the main video stream of `source`, a local path or a URL (http, https, s3, gs, az, memory).

    Timestamps are read without decoding; one frame is decoded for its displayed size. Frames before the first keyframe
    and frames hidden by an edit list are not counted. Raises a `VideoError`.
    `data`: contents of a video that is not stored at `source` yet.
    """
    with open_video(source, limits, data, only_probe=True) as (container, stream), translate_errors(source):
        if stream.time_base is None:
            raise CorruptVideo(f"{source} has no time base. Remux it to mp4 or mkv.")
        packets = list_packets(container, demux(container, stream), source, limits)
        pts = packets.pts
        if not len(pts):
            raise CorruptVideo(f"{source} has a {stream.codec.canonical_name} stream without keyframes. Re-encode it.")
        if (np.diff(pts) == 0).any():
            raise CorruptVideo(f"{source} has several frames with the same timestamp. Re-encode it.")
        end_pts = int(pts[-1]) + _last_duration(packets, pts, stream)
        duration_s = float((end_pts - int(pts[0])) * stream.time_base)
        if duration_s > limits.max_duration_s:
            text = f"{source} lasts {duration_s:.0f} s, over Limits.max_duration_s = {limits.max_duration_s:g}. Cut it."
            raise LimitExceeded(text)
        reader = FrameReader(source, container, stream, packets, limits)
        first = next(reader.frames(pts[:1]))
        display_matrix = orientation(first)
        width_px, height_px = display_size(first, display_matrix, reader.pixel_aspect)
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
            interlaced=is_interlaced(first, stream.codec.canonical_name),
            upright=display_matrix == IDENTITY_ORIENTATION,
            frame_hashes=packets.hashes,
        )


def make_clip(
    source: str, info: VideoInfo, start: int = 0, stop: int | None = None, caption: str | None = None
) -> Clip:
    """Clip of the frames `start` to `stop` (half-open, in presentation order) of a probed video.

    Raises `VideoError` unless 0 <= start < stop <= number of frames.
    """
    count = len(info.pts)
    stop = count if stop is None else stop
    if not 0 <= start < stop <= count:
        raise VideoError(f"frames {start} to {stop} are out of range: {source} has {count} frames")
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
        content_hash=None if info.frame_hashes is None else content_hash(info.frame_hashes[start:stop]),
    )


def probe_clip(source: str, limits: Limits = Limits(), data: bytes | None = None) -> Clip:
    """Clip of all frames of a video. `data`: its contents, as for `probe`. Raises a `VideoError`."""
    return make_clip(source, probe(source, limits, data))


@isolated
def matching_mp4_bytes(clip: Clip) -> bytes | None:
    """Contents of the clip's source if it is an mp4 with exactly the clip's frames in displayed form, else None.

    Rotated, mirrored, stretched and interlaced sources give None, since other readers may not handle them. A source
    that has changed also gives None; `decode` reports that.

    Raises a `VideoError` if the source cannot be read.
    """
    with open_video(clip.source, Limits()) as (container, stream):
        stored_px = (stream.width, stream.height)
        # FFmpeg uses one demuxer for mp4 and QuickTime's mov
        brand = container.metadata.get("major_brand", "qt").strip()
        if "mp4" not in container.format.name or brand == "qt":
            return None
    info = probe(clip.source)
    if info.stream_index != clip.stream_index or pts_hash(info.pts) != clip.pts_hash:
        return None
    if clip.content_hash is not None and make_clip(clip.source, info).content_hash != clip.content_hash:
        return None
    if info.interlaced or not info.upright or stored_px != (info.width_px, info.height_px):
        return None
    return read_all(clip.source)


def _last_duration(packets: Packets, pts: np.ndarray, stream: "VideoStream") -> int:
    """Duration of the last frame in PTS units: as stated, else the median frame distance, else from the frame rate."""
    if packets.last_duration > 0:
        return packets.last_duration
    if len(pts) > 1:
        return max(1, int(np.median(np.diff(pts))))
    rate = stream.average_rate or Fraction(25)
    return max(1, round(1 / (rate * stream.time_base))) if stream.time_base else 1

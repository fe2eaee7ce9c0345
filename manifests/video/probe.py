"""Probing videos: facts about the main video stream of a file, and the clips of its frames."""

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from openuni.manifests.video.clip import Clip, clip_id, pts_hash
from openuni.manifests.video.container import Limits, Packets, list_packets, open_video, read_all, translate_errors
from openuni.manifests.video.frames import IDENTITY_ORIENTATION, FrameReader, display_size, is_interlaced, orientation
from openuni.manifests.video.video_errors import CorruptVideo, LimitExceeded, VideoError

if TYPE_CHECKING:
    from av.video.stream import VideoStream


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
    with open_video(source, limits, data) as (container, stream), translate_errors(source):
        if stream.time_base is None:
            raise CorruptVideo(f"{source} has no time base: remux it into mp4 or mkv")
        packets = list_packets(container, container.demux(stream), source, limits)
        pts = packets.pts
        if not len(pts):
            raise CorruptVideo(f"{source} has a {stream.codec.canonical_name} stream but no key frame to start from")
        if (np.diff(pts) == 0).any():
            raise CorruptVideo(f"{source} has several frames with one timestamp: re-encode it")
        end_pts = int(pts[-1]) + _last_duration(packets, pts, stream)
        duration_s = float((end_pts - int(pts[0])) * stream.time_base)
        if duration_s > limits.max_duration_s:
            text = f"{source} lasts {duration_s:.0f} s, over Limits.max_duration_s = {limits.max_duration_s:g}: cut it"
            raise LimitExceeded(text)
        walk = FrameReader(source, container, stream, packets, limits)
        first = next(walk.frames(pts[:1]))
        turn = orientation(first)
        width_px, height_px = display_size(first, turn, walk.pixel_aspect)
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
            upright=turn == IDENTITY_ORIENTATION,
        )


def make_clip(
    source: str, info: VideoInfo, start: int = 0, stop: int | None = None, caption: str | None = None
) -> Clip:
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


def probe_clip(source: str, limits: Limits = Limits(), data: bytes | None = None) -> Clip:
    """All frames of a video; raises a `VideoError` as `probe` does. `data`: its bytes, only named `source`."""
    return make_clip(source, probe(source, limits, data))


def matching_mp4_bytes(clip: Clip) -> bytes | None:
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
    return read_all(clip.source)


def _last_duration(packets: Packets, pts: np.ndarray, stream: "VideoStream") -> int:
    """How long the last frame is shown, in PTS units: as stated, else the median distance, else one frame's rate."""
    if packets.last_duration > 0:
        return packets.last_duration
    if len(pts) > 1:
        return max(1, int(np.median(np.diff(pts))))
    rate = stream.average_rate or Fraction(25)
    return max(1, round(1 / (rate * stream.time_base))) if stream.time_base else 1

"""Clips: virtual spans of a source video; nothing is re-encoded."""

from dataclasses import dataclass

import numpy as np

from openuni.manifests.video.decoder.values import transferable


def pts_hash(pts: np.ndarray) -> str:
    """Hash of a stream's timestamps; equal hashes mean equal timestamps.

    `pts`: int64 [T], presentation timestamps in the stream's time base. Returns 16 hex digits (xxh3-64 of the
    little-endian timestamps).
    """
    import xxhash

    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(pts, dtype="<i8").tobytes())


def content_hash(hashes: np.ndarray) -> str:
    """Hash of a clip's compressed frames: 16 hex digits. `hashes`: uint64 [T], of each frame, in presentation order."""
    import xxhash

    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(hashes, dtype="<u8").tobytes())


def clip_id(source: str, start_pts: int, end_pts: int, digest: str) -> str:
    """Id of a clip: 32 hex digits, a hash of source, span and the timestamps' `digest`."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(f"{source}\0{start_pts}\0{end_pts}\0{digest}".encode("utf-8", "surrogatepass"))


@transferable
@dataclass(frozen=True)
class Clip:
    """One row of `clips/`. The span is half-open, in PTS of the stream's time base."""

    clip_id: str
    source: str  # absolute path or fsspec URL; `#bytes=FIRST-LAST`, optionally `&xxh3=HEX`: this byte range of the file
    stream_index: int  # index of the video stream in the container
    start_pts: int  # PTS of the first frame
    end_pts: int  # PTS just after the last frame
    time_base_num: int  # one PTS unit is num / den seconds
    time_base_den: int
    frame_count: int
    fps: float  # mean frame rate of the clip, frames per second
    width_px: int  # displayed size: after rotation, with square pixels
    height_px: int
    codec: str  # FFmpeg's name, such as "h264"
    pts_hash: str
    caption: str | None = None
    split: str | None = None
    collection: str | None = None  # name of the dataset that the clip belongs to, such as "koala36m"
    origin: str | None = None  # scene, person or recording of the clip; clips with the same origin get the same split
    # transition before the clip: file (start of file), hard, dissolve, fade, gradual, window; None: unknown
    start_cut: str | None = None
    start_cut_confidence: float | None = None  # 0..1, detection threshold at 0.5; None if nothing was detected
    end_cut: str | None = None  # transition after the clip, likewise
    end_cut_confidence: float | None = None
    interlaced: bool | None = None  # the source is interlaced; only its top field is decoded
    content_hash: str | None = None  # of the compressed frames, see `content_hash`; None: ingested by version 0.1

    @property
    def duration_s(self) -> float:
        """Duration in seconds, from the first frame to the end of the last."""
        return (self.end_pts - self.start_pts) * self.time_base_num / self.time_base_den

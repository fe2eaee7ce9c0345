"""A clip: a span of one source video. Virtual: nothing is re-encoded to make one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash

if TYPE_CHECKING:
    pass


def pts_hash(pts: np.ndarray) -> str:
    """The hash that proves two streams show the same instants.

    `pts`: int64 [T], presentation timestamps in the stream's time base. Returns 16 hex digits (xxh3-64 of the
    little-endian timestamps).
    """
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(pts, dtype="<i8").tobytes())


def clip_id(source: str, start_pts: int, end_pts: int, digest: str) -> str:
    """32 hex digits that stay the same as long as source, span and timestamps do."""
    return xxhash.xxh3_128_hexdigest(f"{source}\0{start_pts}\0{end_pts}\0{digest}".encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class Clip:
    """One row of `clips/`: where the frames are, exactly. Spans are half-open, in PTS of the stream's time base."""

    clip_id: str
    source: str  # absolute path or fsspec URL; `#bytes=FIRST-LAST` behind it: the video is these bytes of that file
    stream_index: int  # index of the video stream in the container
    start_pts: int  # PTS of the first frame
    end_pts: int  # PTS just after the last frame
    time_base_num: int  # one PTS unit is num / den seconds
    time_base_den: int
    frame_count: int
    fps: float  # mean frames per second over the clip
    width_px: int  # as displayed: after rotation, of square pixels
    height_px: int
    codec: str  # FFmpeg's name, such as "h264"
    pts_hash: str
    caption: str | None = None
    split: str | None = None
    collection: str | None = None  # name of the set that the clip came with, such as "koala36m"
    origin: str | None = None  # the scene, person or recording that clips share; none of it is in two splits
    start_cut: str | None = None  # what it begins after: file (its start), hard, dissolve, fade, gradual, window
    start_cut_confidence: float | None = None  # 0..1, at 0.5 just found; None where nothing had to be found
    end_cut: str | None = None  # what it ends before, likewise; None: not known
    end_cut_confidence: float | None = None
    interlaced: bool | None = None  # its source's first frame holds two fields: only the top one is shown

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to just after the last."""
        return (self.end_pts - self.start_pts) * self.time_base_num / self.time_base_den

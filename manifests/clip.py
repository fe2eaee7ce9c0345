"""A clip: a span of one source video. Virtual: nothing is re-encoded to make one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from manifests.errors import ClipError
from manifests.motion_vectors import MotionVectors

if TYPE_CHECKING:
    from manifests.modality import Modality


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


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """What an operator sees: frames of a clip in memory, read-only.

    `frames`: uint8 [T, H, W, 3], RGB (sRGB, full range), at most the recipe's working size.
    `times_s`: float64 [T], seconds since the clip's first frame; strictly increasing, not always evenly spaced.
    `clip`: the row the frames come from; operators that need only pixels never look at it.
    `vectors`: per frame the codec's motion vectors, or None for a frame without; None as a whole unless asked for.
    `maps`: by name the modalities that the operator `wants`, one map per frame, as the corpus stores them.
    `memo`: what was computed from the frames and serves several operators of the clip, by who computes it.
    """

    clip: Clip
    frames: np.ndarray
    times_s: np.ndarray
    vectors: tuple[MotionVectors | None, ...] | None = None
    maps: Mapping[str, "Modality"] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8:
            raise ClipError(f"frames must be uint8 [T, H, W, 3], got {self.frames.dtype} {self.frames.shape}")
        if self.times_s.shape != self.frames.shape[:1]:
            raise ClipError(f"{len(self.frames)} frames but times_s has shape {self.times_s.shape}")
        self.frames.flags.writeable = False
        self.times_s.flags.writeable = False

    @classmethod
    def from_frames(cls, frames: np.ndarray, fps: float = 25.0, caption: str | None = None) -> "DecodedClip":
        """A clip that has no file behind it: uint8 [T, H, W, 3] RGB at an even rate. For tests and notebooks."""
        count, height_px, width_px = frames.shape[:3]
        pts = np.arange(count, dtype=np.int64)
        digest = pts_hash(pts)
        clip = Clip(
            clip_id=clip_id("memory:", 0, count, digest),
            source="memory:",
            stream_index=0,
            start_pts=0,
            end_pts=count,
            time_base_num=1,
            time_base_den=max(1, round(fps)),
            frame_count=count,
            fps=float(fps),
            width_px=width_px,
            height_px=height_px,
            codec="rawvideo",
            pts_hash=digest,
            caption=caption,
        )
        return cls(clip, np.array(frames), pts / float(fps))

    @property
    def fps(self) -> float:
        """Mean frames per second of the clip (not of the frames sampled from it)."""
        return self.clip.fps

    @property
    def diagonal_px(self) -> float:
        """Diagonal of the frames as given, in pixels: the unit that makes motion comparable between sizes."""
        return float(np.hypot(*self.frames.shape[1:3]))

    def take(self, indices: np.ndarray) -> "DecodedClip":
        """The same clip with only the frames at `indices` (int [n], increasing); no maps, an empty memo."""
        vectors = tuple(self.vectors[index] for index in indices) if self.vectors is not None else None
        return DecodedClip(self.clip, self.frames[indices], self.times_s[indices], vectors)

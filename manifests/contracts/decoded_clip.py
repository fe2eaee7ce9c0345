"""The input of operators: a clip's decoded frames, with the modality maps that the operator requires."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from openuni.manifests.contracts.modality import Modality
from openuni.manifests.errors import ClipError
from openuni.manifests.video.clip import Clip, clip_id, pts_hash
from openuni.manifests.video.container import Limits
from openuni.manifests.video.motion_vectors import MotionVectors
from openuni.manifests.video.reader import decode_frames


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """Input of operators: decoded frames of a clip, read-only.

    `frames`: uint8 [T, H, W, 3], RGB (sRGB, full range), at most the recipe's working size.
    `times_s`: float64 [T], seconds since the clip's first frame; strictly increasing, not necessarily evenly spaced.
    `clip`: the row that the frames come from.
    `vectors`: motion vectors per frame, None for frames without; None as a whole unless requested.
    `maps`: by name, the modalities that the annotator `requires`, one map per frame, as stored in the corpus.
    `cache`: intermediate results that several operators of the clip share, keyed by the code that computes them.

    A clip that is too long to be decoded whole comes in windows (`openuni.manifests.contracts.windows`). Then `frames`,
    `times_s`, `vectors`, `maps` and `cache` are those of one window.
    `first_frame`: number of the first frame of `frames` in the clip.
    `overlap_frames`: how many of the first frames the window before also had: 0 for a clip that is whole and in the
    first window, else 1.
    """

    clip: Clip
    frames: np.ndarray
    times_s: np.ndarray
    vectors: tuple[MotionVectors | None, ...] | None = None
    maps: Mapping[str, Modality] = field(default_factory=dict)
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)
    first_frame: int = 0
    overlap_frames: int = 0

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8:
            raise ClipError(f"frames must be uint8 [T, H, W, 3], got {self.frames.dtype} {self.frames.shape}")
        if self.times_s.shape != self.frames.shape[:1]:
            raise ClipError(f"times_s must have shape ({len(self.frames)},), one per frame, got {self.times_s.shape}")
        self.frames.flags.writeable = False
        self.times_s.flags.writeable = False

    @classmethod
    def from_frames(cls, frames: np.ndarray, fps: float = 25.0, caption: str | None = None) -> "DecodedClip":
        """Create a clip without a source file from uint8 [T, H, W, 3] RGB frames at a constant rate.

        For tests and notebooks.
        """
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
        """Mean frame rate of the clip, frames per second (not of the sampled frames)."""
        return self.clip.fps

    @property
    def diagonal_px(self) -> float:
        """Diagonal of the decoded frames, pixels: the unit that makes motion comparable across sizes."""
        return float(np.hypot(*self.frames.shape[1:3]))

    @property
    def is_window(self) -> bool:
        """Whether these are not all frames of the clip, but a window of them."""
        return self.overlap_frames > 0 or len(self.frames) < self.clip.frame_count

    @property
    def new_frames(self) -> np.ndarray:
        """The frames that no window before had: all frames of a clip that is whole."""
        return self.frames[self.overlap_frames :]

    def take(self, indices: np.ndarray) -> "DecodedClip":
        """The same clip with only the frames at `indices` (int [n], increasing), no maps and an empty cache."""
        vectors = tuple(self.vectors[index] for index in indices) if self.vectors is not None else None
        return DecodedClip(self.clip, self.frames[indices], self.times_s[indices], vectors)


def decode(
    clip: Clip,
    indices: np.ndarray | Callable[[np.ndarray], np.ndarray] | None = None,
    short_side_px: int = 0,
    limits: Limits = Limits(),
    threads: int = 0,
    vectors: bool = False,
    reader: str = "pyav",
) -> DecodedClip:
    """Decode the clip, or its frames at `indices`; see `openuni.manifests.video.reader.decode_frames`."""
    return DecodedClip(clip, *decode_frames(clip, indices, short_side_px, limits, threads, vectors, reader))

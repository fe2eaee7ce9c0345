"""Size and aspect ratio of a clip, with and without black bars."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from openuni.filters._samples import at_most
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import Filter, sample_evenly
from openuni.manifests.contracts.options import UNIT_INTERVAL
from openuni.manifests.contracts.windows import WindowedRun, run_at_once
from openuni.manifests.video.clip import Clip


class Scores(NamedTuple):
    """Sizes of the source as displayed, independent of the working size."""

    short_side_px: Annotated[int, "shorter side of the frame, pixels"]
    pixels: Annotated[int, "frame width x height, pixels"]
    aspect_ratio: Annotated[float, "frame width / height"]
    bars_share: Annotated[float, "fraction of the frame covered by black bars at its edges, 0 to 1; 1: all black"]
    picture_short_side_px: Annotated[int, "shorter side of the area between the bars, pixels"]
    picture_aspect_ratio: Annotated[float | None, "width / height of the area between the bars; null if it is empty"]


@dataclass(frozen=True)
class Resolution(Filter):
    """Size and aspect ratio of the frame, and of the active area of letterboxed or pillarboxed video.

    A bar is a run of rows or columns from an edge that are black in all sampled frames; scenes that stay black at an
    edge cannot be told from bars. Upscaled video is not detected, because it can hardly be distinguished from soft
    video; `sharpness` measures blur.
    """

    frames_per_s: Annotated[float, "sampled frames per second of the clip", Gt(0)] = 1.0
    max_frames: Annotated[int, "maximum number of sampled frames per clip, evenly spaced", Ge(1)] = 8
    black_below: Annotated[float, "grey value below which a pixel is black", UNIT_INTERVAL] = 0.08

    origin: ClassVar[str] = "video metadata; detection of bars as in FFmpeg's cropdetect"

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Evenly spaced frames, at most `max_frames`."""
        return at_most(sample_evenly(times_s, self.frames_per_s), self.max_frames)

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Sizes from the clip's row; bars from the frames, which may be smaller, at their pixel accuracy."""
        return run_at_once(self.start_windows(model), clip)

    def start_windows(self, model: Any) -> "ResolutionWindows":
        """See `Operator.start_windows`."""
        return ResolutionWindows(self)

    def summarize(self, clip: Clip, brightest: np.ndarray) -> Scores:
        """Scores from the maximum of each pixel over all frames and channels, uint8 [H, W]."""
        width_px, height_px = clip.width_px, clip.height_px
        lit = brightest >= self.black_below * 255
        high, wide = (_extent(lit.mean(axis=axis) > 0.01) for axis in (1, 0))  # ignore stray pixels
        picture_width_px, picture_height_px = round(wide * width_px), round(high * height_px)
        return Scores(
            short_side_px=min(width_px, height_px),
            pixels=width_px * height_px,
            aspect_ratio=width_px / height_px,
            bars_share=1.0 - high * wide,
            picture_short_side_px=min(picture_width_px, picture_height_px),
            picture_aspect_ratio=picture_width_px / picture_height_px if high * wide > 0 else None,
        )


class ResolutionWindows(WindowedRun[Scores]):
    """Holds the maximum of each pixel."""

    def __init__(self, resolution: Resolution) -> None:
        self.resolution = resolution
        self.clip: Clip | None = None
        self.brightest: np.ndarray | None = None

    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """See `WindowedRun.add`."""
        brightest = window.frames.max(axis=(0, 3))
        self.clip = window.clip
        self.brightest = brightest if self.brightest is None else np.maximum(self.brightest, brightest)
        return {}

    def result(self) -> Scores:
        """See `WindowedRun.result`."""
        assert self.clip is not None and self.brightest is not None, "a clip has at least one frame"
        return self.resolution.summarize(self.clip, self.brightest)


def _extent(lit: np.ndarray) -> float:
    """Extent from the first to the last true value of bool [n], as a fraction of n."""
    places = np.flatnonzero(lit)
    return float(places[-1] - places[0] + 1) / len(lit) if len(places) else 0.0

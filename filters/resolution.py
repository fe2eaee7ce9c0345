"""How large a clip's picture is, with and without black bars."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from openuni.filters._samples import at_most
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Filter, sample_evenly
from openuni.manifests.contracts.options import UNIT_INTERVAL


class Scores(NamedTuple):
    """Sizes of the source as displayed, whatever the working size of the run."""

    short_side_px: Annotated[int, "the shorter side of the frame, pixels"]
    pixels: Annotated[int, "width times height of the frame"]
    aspect_ratio: Annotated[float, "width over height of the frame"]
    bars_share: Annotated[float, "share of the frame that is black bars at its edges, 0 to 1; 1: all of it is black"]
    picture_short_side_px: Annotated[int, "the shorter side of what lies between the bars, pixels"]
    picture_aspect_ratio: Annotated[float | None, "width over height of what lies between the bars; null: nothing"]


@dataclass(frozen=True)
class Resolution(Filter):
    """Size and aspect ratio of the frame, and of the picture in it where that is letterboxed or pillarboxed.

    A bar is a run of rows or columns from an edge that are black in every sampled frame. A scene that is as black at
    its edge all the time looks the same. How much detail the pixels hold is not told: a picture that was scaled up and
    one that is soft by itself differ too little; `sharpness` says how blurred it is.
    """

    frames_per_s: Annotated[float, "frames looked at per second of the clip", Gt(0)] = 1.0
    max_frames: Annotated[int, "most frames looked at per clip, spread over its whole length", Ge(1)] = 8
    black_below: Annotated[float, "grey value under which a pixel is black", UNIT_INTERVAL] = 0.08

    origin: ClassVar[str] = "facts of the file; bars as FFmpeg's cropdetect finds them"

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Evenly spread over the whole clip, at most `max_frames`."""
        return at_most(sample_evenly(times_s, self.frames_per_s), self.max_frames)

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Sizes by the clip's row; bars by the frames given, which may be smaller, to one of their pixels."""
        width_px, height_px = clip.clip.width_px, clip.clip.height_px
        brightest = clip.frames.max(axis=(0, 3))
        lit = brightest >= self.black_below * 255
        high, wide = (_extent(lit.mean(axis=axis) > 0.01) for axis in (1, 0))  # a stray pixel is no picture
        picture_width_px, picture_height_px = round(wide * width_px), round(high * height_px)
        return Scores(
            short_side_px=min(width_px, height_px),
            pixels=width_px * height_px,
            aspect_ratio=width_px / height_px,
            bars_share=1.0 - high * wide,
            picture_short_side_px=min(picture_width_px, picture_height_px),
            picture_aspect_ratio=picture_width_px / picture_height_px if high * wide > 0 else None,
        )


def _extent(lit: np.ndarray) -> float:
    """From the first to the last true of bool [n], as a share of n."""
    places = np.flatnonzero(lit)
    return float(places[-1] - places[0] + 1) / len(lit) if len(places) else 0.0

"""Brightness, contrast, and fractions of dark and bright pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.options import UNIT_INTERVAL
from openuni.manifests.contracts.window_filter import WindowFilter
from openuni.manifests.errors import OpenUniError

BT709_WEIGHTS = np.array([0.2126, 0.7152, 0.0722])  # of R, G, B; sum 1


class Scores(NamedTuple):
    """Luma statistics, averaged over the sampled frames."""

    mean: Annotated[float, "mean luma, 0 (black) to 1 (white)"]
    contrast: Annotated[float, "standard deviation of luma within a frame, 0 (flat) to 0.5 (half black, half white)"]
    dark_share: Annotated[float, "fraction of pixels with luma below `dark_below`, 0 to 1"]
    bright_share: Annotated[float, "fraction of pixels with luma above `bright_above`, 0 to 1"]


@dataclass(frozen=True)
class Luminance(WindowFilter):
    """Brightness, contrast, and fractions of nearly black and nearly white pixels.

    Luma is 0.2126 R + 0.7152 G + 0.0722 B: BT.709 weights on stored sRGB values (divided by 255, not linearized).
    Published luminance thresholds use the same definition, with 0..255 instead of 0..1. Contrast is measured within
    each frame, so a fade from black to white does not contribute.
    """

    dark_below: Annotated[float, "luma below which a pixel is dark", UNIT_INTERVAL] = 0.05
    bright_above: Annotated[float, "luma above which a pixel is bright", UNIT_INTERVAL] = 0.95

    origin: ClassVar[str] = "ITU-R BT.709 luma coefficients"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dark_below <= self.bright_above <= 1:
            given = f"dark_below = {self.dark_below}, bright_above = {self.bright_above}"
            raise OpenUniError(f"luminance: {given}. Allowed: 0 <= dark_below <= bright_above <= 1.")

    def measure(self, model: Any, clip: DecodedClip) -> Sequence[tuple[float, ...]]:
        """The four statistics of every frame."""
        return [self._of(frame) for frame in clip.new_frames]

    def summarize(self, measured: Sequence[tuple[float, ...]]) -> Scores:
        """Scores of the frames, with equal weight."""
        return Scores(*np.array(measured).mean(axis=0).tolist())

    def _of(self, frame: np.ndarray) -> tuple[float, float, float, float]:
        luma = frame @ BT709_WEIGHTS / 255.0  # float64 [H, W], 0..1
        return (
            float(luma.mean()),
            float(luma.std()),
            float((luma < self.dark_below).mean()),
            float((luma > self.bright_above).mean()),
        )

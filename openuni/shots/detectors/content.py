"""Hard cuts by a fixed threshold on the change between frames: PySceneDetect's content detector."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge

from openuni.shots.detectors import _pyscenedetect
from openuni.shots.shot_detector import ShotDetector, Timeline, Transition


@dataclass(frozen=True)
class Content(ShotDetector):
    """Hard cuts: consecutive frames differ by more than `threshold` on average over hue, saturation and value.

    Misses dissolves and fades whose steps stay below the threshold; has more false cuts under fast motion than
    `adaptive`.
    """

    threshold: Annotated[
        float, "mean change of hue, saturation and value above which a frame is a cut, 0..255", Ge(0)
    ] = 27.0
    min_shot_frames: Annotated[int, "minimum shot length, frames; closer cuts are merged", Ge(0)] = 15
    luma_only: Annotated[bool, "compare brightness only"] = False

    licence: ClassVar[str] = "BSD-3-Clause"
    origin: ClassVar[str] = "PySceneDetect, ContentDetector"

    def size_px(self, height_px: int, width_px: int) -> tuple[int, int]:
        """See `ShotDetector.size_px`."""
        return _pyscenedetect.scaled(height_px, width_px)

    def transitions(self, model: Any, frames: Iterable[np.ndarray], timeline: Timeline) -> list[Transition]:
        """See `ShotDetector.transitions`."""
        from scenedetect.detectors import ContentDetector

        detector = ContentDetector(self.threshold, self.min_shot_frames, luma_only=self.luma_only)
        return _pyscenedetect.hard_cuts(detector, detector.FRAME_SCORE_KEY, self.threshold, frames, timeline)

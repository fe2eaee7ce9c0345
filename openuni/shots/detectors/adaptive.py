"""Hard cuts by changes relative to those of neighbouring frames: PySceneDetect's adaptive detector."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge

from openuni.shots.detectors import _pyscenedetect
from openuni.shots.shot_detector import ShotDetector, Timeline, Transition


@dataclass(frozen=True)
class Adaptive(ShotDetector):
    """Hard cuts: a change of at least `threshold` times the mean change of the surrounding frames.

    More robust to fast camera motion than `content`, but misses more dissolves and fades.
    """

    threshold: Annotated[float, "minimum ratio of a cut's change to the mean change around it", Ge(0)] = 3.0
    window_frames: Annotated[int, "frames before and after over which the mean is computed", Ge(1)] = 2
    min_content: Annotated[float, "minimum change of a cut, as measured by content, 0..255", Ge(0)] = 15.0
    min_shot_frames: Annotated[int, "minimum shot length, frames; earlier cuts are discarded", Ge(0)] = 15
    luma_only: Annotated[bool, "compare brightness only"] = False

    licence: ClassVar[str] = "BSD-3-Clause"
    origin: ClassVar[str] = "PySceneDetect, AdaptiveDetector"

    def size_px(self, height_px: int, width_px: int) -> tuple[int, int]:
        """See `ShotDetector.size_px`."""
        return _pyscenedetect.scaled(height_px, width_px)

    def transitions(self, model: Any, frames: Iterable[np.ndarray], timeline: Timeline) -> list[Transition]:
        """See `ShotDetector.transitions`."""
        from scenedetect.detectors import AdaptiveDetector

        detector = AdaptiveDetector(
            self.threshold, self.min_shot_frames, self.window_frames, self.min_content, luma_only=self.luma_only
        )
        ratio = detector.get_metrics()[-1]
        return _pyscenedetect.hard_cuts(detector, ratio, self.threshold, frames, timeline)

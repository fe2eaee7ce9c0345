"""Hard cuts where the picture changes by more than its neighbours do: PySceneDetect's adaptive detector."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge

from openuni.shots.detectors import _pyscenedetect
from openuni.shots.shot_detector import ShotDetector, Timeline, Transition


@dataclass(frozen=True)
class Adaptive(ShotDetector):
    """Hard cuts: a change `threshold` times as large as the mean change in the frames around it.

    Takes fast camera motion better than `content`, and misses dissolves and fades all the more.
    """

    threshold: Annotated[float, "how many times the mean change around it a cut's change must be", Ge(0)] = 3.0
    window_frames: Annotated[int, "frames before and behind that make the mean", Ge(1)] = 2
    min_content: Annotated[float, "change that a cut must have in any case, measured as by content, 0..255", Ge(0)] = (
        15.0
    )
    min_shot_frames: Annotated[int, "cuts that follow another faster than this many frames are left out", Ge(0)] = 15
    luma_only: Annotated[bool, "compare the value (brightness) alone"] = False

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

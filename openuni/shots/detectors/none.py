"""No shot detection: one clip per source."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from openuni.shots.shot_detector import ShotDetector, Timeline, Transition


@dataclass(frozen=True)
class NoCut(ShotDetector):
    """One clip per source; nothing is decoded."""

    def transitions(self, model: Any, frames: Iterable[np.ndarray], timeline: Timeline) -> list[Transition]:
        """See `ShotDetector.transitions`."""
        return []

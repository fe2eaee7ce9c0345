"""No cutting: one clip per file."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from openuni.shots.shot_detector import ShotDetector, Timeline, Transition


@dataclass(frozen=True)
class NoCut(ShotDetector):
    """The file as it is; nothing is decoded."""

    def transitions(self, model: Any, frames: Iterable[np.ndarray], timeline: Timeline) -> list[Transition]:
        """See `ShotDetector.transitions`."""
        return []

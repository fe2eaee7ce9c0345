"""Windows of fixed duration, independent of the content."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Gt

from openuni.shots.shot_detector import ShotDetector, Timeline, Transition


@dataclass(frozen=True)
class Fixed(ShotDetector):
    """Windows of fixed duration; nothing is decoded.

    Window k starts at the first frame shown at or after k times the duration, so that errors do not accumulate at
    variable frame rates.
    """

    window_s: Annotated[float, "duration of a window, seconds", Gt(0)] = 10.0
    remainder: Annotated[
        Literal["keep", "join", "drop"],
        "rest after the last window; keep: separate clip (if at least min_s); join: part of the last window; drop",
    ] = "keep"

    def transitions(self, model: Any, frames: Iterable[np.ndarray], timeline: Timeline) -> list[Transition]:
        """See `ShotDetector.transitions`."""
        window, end = timeline.ticks(self.window_s), timeline.frame_count
        first, total = int(timeline.bounds[0]), timeline.ticks_of(0, end)
        targets = [first + math.ceil(number * window) for number in range(1, math.ceil(total / window))]
        places = np.unique(np.searchsorted(timeline.bounds[:-1], np.array(targets, np.int64))).tolist()
        cuts = [Transition(place, place, "window", None) for place in places if 0 < place < end]
        if not cuts or total % window == 0 or self.remainder == "keep":
            return cuts
        if self.remainder == "join":
            return cuts[:-1]
        return [*cuts[:-1], cuts[-1]._replace(stop=end)]

"""Windows of one length, whatever the pictures show."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Gt

from openuni.shots.shot_detector import ShotDetector, Timeline, Transition


@dataclass(frozen=True)
class Fixed(ShotDetector):
    """Windows of one length by the clock; nothing is decoded.

    Window k begins with the first frame shown at or after k times the length, so that errors do not add up where
    frames do not come at an even rate.
    """

    window_s: Annotated[float, "length of a window, seconds", Gt(0)] = 10.0
    remainder: Annotated[
        Literal["keep", "join", "drop"],
        "what is left at the end: a clip of its own (if it lasts min_s), part of the last window, or left out",
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

"""The shot detector contract: where one shot of a film ends and the next begins.

A detector is one file in `openuni/shots/detectors/`: a frozen dataclass of options and `transitions`, which looks at
the frames. `openuni run` does the rest, the same for all of them: decoding, trimming, lengths
(`openuni/pipeline/shot_splitting.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from openuni.manifests.contracts.component import Component
from openuni.manifests.contracts.discovery import component_names, find_component

TransitionKind = Literal["file", "hard", "dissolve", "fade", "gradual", "window"]


class Transition(NamedTuple):
    """What parts two shots. Frames `start` to `stop` (half-open) belong to neither; a hard cut has none of them."""

    start: int  # the first frame that is no longer the old shot alone
    stop: int  # the first frame of the new shot alone
    # gradual: dissolve or fade, the detector does not say which; window: by the clock, not by the pictures
    kind: TransitionKind
    confidence: float | None  # 0..1, at 0.5 just found; None where nothing had to be found


@dataclass(frozen=True, eq=False)
class Timeline:
    """When the frames of a film are shown, exactly.

    `bounds`: int64 [T + 1], the timestamp of each frame and, last, of the end of the last frame. `unit_s`: seconds per
    unit of the timestamps.
    """

    bounds: np.ndarray
    unit_s: Fraction

    @property
    def frame_count(self) -> int:
        """T, the number of frames."""
        return len(self.bounds) - 1

    @cached_property
    def fps(self) -> float:
        """Mean frames per second."""
        return float(self.frame_count / (int(self.bounds[-1] - self.bounds[0]) * self.unit_s))

    def ticks(self, seconds: float) -> Fraction:
        """A length in units of the timestamps, without rounding; 0.1 is a tenth, not the nearest binary fraction."""
        return Fraction(str(seconds)) / self.unit_s

    def ticks_of(self, start: int, stop: int) -> int:
        """How long frames `start` to `stop` (half-open) are shown, in units of the timestamps."""
        return int(self.bounds[stop] - self.bounds[start])


@dataclass(frozen=True)
class ShotDetector(Component, ABC):
    """Base of the shot detectors."""

    def size_px(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Height and width that a film of this size is scaled to before `transitions` sees its frames."""
        return height_px, width_px

    @abstractmethod
    def transitions(self, model: Any, frames: Iterable[np.ndarray], timeline: Timeline) -> list[Transition]:
        """All transitions of a film, in order and without overlap.

        `model`: what `load` gave. `frames`: every frame, uint8 [H, W, 3] RGB of `size_px`, decoded as they are asked
        for: to be gone through once at most and not kept, a film may be hours long.
        """


def shot_detector_names() -> list[str]:
    """Names of all shot detectors."""
    return component_names("shots")


def find_shot_detector(name: str, *, imports: bool = False) -> type[ShotDetector]:
    """The detector of that name; `imports` as in `find_component`. Raises `OpenUniError` naming the nearest."""
    found: type[ShotDetector] = find_component("shots", ShotDetector, name, imports=imports)
    return found

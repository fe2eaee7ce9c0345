"""The shot detector contract: find the transitions between the shots of a source.

A detector is one file in `openuni/shots/detectors/`: a frozen dataclass of options with `transitions`, which receives
the frames. Decoding, trimming and splitting are the same for all detectors (`openuni/pipeline/shot_splitting.py`).
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
    """A transition between two shots. Frames `start` to `stop` (half-open) belong to neither; a hard cut has none."""

    start: int  # first frame that is not only the old shot
    stop: int  # first frame that is only the new shot
    # gradual: dissolve or fade, not distinguished by the detector; window: by time, not by content
    kind: TransitionKind
    confidence: float | None  # 0..1, 0.5 at the detection threshold; None if not detected from the content


@dataclass(frozen=True, eq=False)
class Timeline:
    """Exact presentation times of the frames of a source.

    `bounds`: int64 [T + 1], the timestamp of each frame and of the end of the last frame. `unit_s`: seconds per unit of
    the timestamps.
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
        """A duration in units of the timestamps, without rounding; 0.1 is exactly one tenth."""
        return Fraction(str(seconds)) / self.unit_s

    def ticks_of(self, start: int, stop: int) -> int:
        """Duration of frames `start` to `stop` (half-open), in units of the timestamps."""
        return int(self.bounds[stop] - self.bounds[start])


@dataclass(frozen=True)
class ShotDetector(Component, ABC):
    """Base class of shot detectors."""

    def size_px(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Height and width to which the frames of a source of this size are scaled for `transitions`."""
        return height_px, width_px

    @abstractmethod
    def transitions(self, model: Any, frames: Iterable[np.ndarray], timeline: Timeline) -> list[Transition]:
        """All transitions of a source, in order and without overlap.

        `model`: the result of `load`. `frames`: all frames, uint8 [H, W, 3] RGB of `size_px`, decoded lazily. Iterate
        over them at most once and do not store them: a source may be hours long.
        """


def shot_detector_names() -> list[str]:
    """Names of all shot detectors."""
    return component_names("shots")


def find_shot_detector(name: str, *, imports: bool = False) -> type[ShotDetector]:
    """The detector of that name; `imports`: see `find_component`. Raises `OpenUniError` with the closest name."""
    found: type[ShotDetector] = find_component("shots", ShotDetector, name, imports=imports)
    return found

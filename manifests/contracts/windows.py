"""Clips in windows: how an operator processes a clip that is too long to be decoded whole.

A clip whose decoded frames exceed the limit ([work] max_decoded_gb) is decoded once, in windows, and each window goes
through every operator that supports this. Windows are `DecodedClip`s of consecutive frames. Each but the first begins
with the last frame of the one before, so that every pair of adjacent frames is in exactly one window.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, cast

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality

Result = TypeVar("Result", bound=tuple[Any, ...])


class WindowedRun(ABC, Generic[Result]):
    """An operator's pass over one clip, window after window. It holds what the next windows need, nothing more."""

    @abstractmethod
    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """Process the next window; return, by result field, the maps that are finished, in the order of the frames.

        A window may finish fewer maps than it has frames, or none; `result` returns those that remain. Filters return
        an empty mapping. The first `window.overlap_frames` frames are known already. Raises as `Operator.run`.
        """

    @abstractmethod
    def result(self) -> Result:
        """The result after the last window: the scores of the whole clip, and the maps that `add` has not returned.

        A modality field is None if `add` has returned all its maps, or if the clip has none.
        """


def run_at_once(started: WindowedRun[Result], clip: DecodedClip) -> Result:
    """The result of a clip that is whole: one window. With this as `run`, an operator has one implementation."""
    maps = started.add(clip)
    result = started.result()
    fields = {}
    for name, finished in maps.items():
        rest = getattr(result, name)
        fields[name] = finished if rest is None else type(finished).joined([finished, rest])
    return cast(Result, result._replace(**fields)) if fields else result  # type: ignore[attr-defined]

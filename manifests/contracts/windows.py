"""Clips in windows: how an operator processes a clip that is too long to be decoded whole.

A clip whose decoded frames exceed the limit ([work] max_decoded_gb) is decoded once, in windows, and each window goes
through every operator that supports this. Windows are `DecodedClip`s of consecutive frames. Each but the first begins
with the last frame of the one before, so that every pair of adjacent frames is in exactly one window.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast, get_type_hints

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import Filter, Operator, declared_result

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


class Measurements(WindowedRun[Result]):
    """The windows of a `WindowFilter`: all measurements, in order."""

    def __init__(self, window_filter: "WindowFilter", model: Any) -> None:
        self.filter, self.model = window_filter, model
        self.found: list[Any] = []

    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """See `WindowedRun.add`."""
        self.found.extend(self.filter.measure(self.model, window))
        return {}

    def result(self) -> Result:
        """See `WindowedRun.result`."""
        return cast(Result, self.filter.summarize(self.found))


@dataclass(frozen=True)
class WindowFilter(Filter):
    """Base of filters that measure frames, or pairs of frames, one after the other: these support clips of any length.

    A subclass defines `measure` and `summarize`; the return annotation of `summarize` declares the columns.
    """

    @abstractmethod
    def measure(self, model: Any, clip: DecodedClip) -> Sequence[Any]:
        """Measurements of a window, or of the whole clip, in order: small values per frame or per pair of frames.

        Per frame: of `clip.new_frames`. Per pair of adjacent frames: of `clip.frames`, whose first frame is the last
        one of the window before. The measurements of all windows together must be those of the whole clip.
        """

    @abstractmethod
    def summarize(self, measured: Sequence[Any]) -> Any:
        """The scores of a clip from all its measurements: the declared NamedTuple."""

    def run(self, model: Any, clip: DecodedClip) -> Any:
        """Measure the clip and summarize the measurements. Raises as `measure`."""
        return self.summarize(self.measure(model, clip))

    def start_windows(self, model: Any) -> WindowedRun[Any]:
        """See `Operator.start_windows`."""
        return Measurements(self, model)

    @classmethod
    def result_type(cls) -> type[tuple[Any, ...]]:
        """The NamedTuple that `summarize` is annotated to return."""
        return declared_result(cls.name(), "summarize", get_type_hints(cls.summarize).get("return"))


def supports_windows(operator: type[Operator] | Operator) -> bool:
    """Whether the operator processes clips of any length, in windows."""
    kind = operator if isinstance(operator, type) else type(operator)
    return kind.start_windows is not Operator.start_windows

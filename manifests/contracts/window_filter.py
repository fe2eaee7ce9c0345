"""Filters of clips of any length: measurements of frames or pairs of frames, window after window, and their summary."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_type_hints

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import Filter, Operator, declared_result
from openuni.manifests.contracts.windows import Result, WindowedRun


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

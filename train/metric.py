"""The metric contract: how far the maps of a clip are from true ones.

A metric is one file in `train/metrics/`. It compares one modality, or several of the same nature, clip by clip. The
figures of a set of clips are the means over its clips.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_type_hints

from openuni.manifests.contracts.component import Component
from openuni.manifests.contracts.discovery import component_names, find_component
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.options import annotation_extras, annotation_text
from openuni.manifests.errors import ClipError, OpenUniError

Better = Literal["lower", "higher"]


class Direction(NamedTuple):
    """Beside the meaning of a figure: which values of it are better."""

    better: Better


LOWER, HIGHER = Direction("lower"), Direction("higher")


class Figure(NamedTuple):
    """One figure of a metric."""

    name: str
    doc: str  # its meaning and unit
    better: Better


@dataclass(frozen=True)
class Metric(Component, ABC):
    """Base of all metrics. `compare` declares its result, a NamedTuple of figures; the first one ranks clips.

    Every figure is annotated with its meaning and `LOWER` or `HIGHER`. None: not defined for the clip.
    """

    modalities: ClassVar[tuple[str, ...]]  # names of the modalities whose maps it compares

    @abstractmethod
    def compare(self, predicted: Any, true: Any) -> Any:
        """Figures of a clip. Both maps have the same frames and size. Raises `ClipError` if they cannot be compared."""

    def of_clip(self, predicted: Modality, true: Modality) -> dict[str, float | None]:
        """Figures of a clip by name; predicted maps of another size are resized to that of the true ones first.

        Raises `ClipError` for another modality or another number of frames.
        """
        if type(predicted) is not type(true) or true.name not in self.modalities:
            raise ClipError(
                f"metric {self.name()} compares {' or '.join(self.modalities)}, got {predicted.name} and {true.name}"
            )
        if len(predicted.array) != len(true.array):
            raise ClipError(
                f"{true.name}: {len(predicted.array)} predicted and {len(true.array)} true frames. Both must be of the "
                "same frames of the clip."
            )
        if predicted.size_px != true.size_px:
            predicted = predicted.resize(*true.size_px)
        found: Mapping[str, Any] = self.compare(predicted, true)._asdict()
        return {name: None if value is None else float(value) for name, value in found.items()}

    @classmethod
    def figures(cls) -> tuple[Figure, ...]:
        """The figures that `compare` returns, in their order."""
        result = get_type_hints(cls.compare)["return"]
        hints = get_type_hints(result, include_extras=True)
        return tuple(
            Figure(name, annotation_text(hint), _direction(cls, name, hint).better) for name, hint in hints.items()
        )


def _direction(metric: type[Metric], name: str, hint: Any) -> Direction:
    for extra in annotation_extras(hint):
        if isinstance(extra, Direction):
            return extra
    raise OpenUniError(f"metric {metric.name()}: figure {name} must be annotated with LOWER or HIGHER")


def metrics_of(modality: str) -> dict[str, type[Metric]]:
    """The metrics that compare a modality, by name. Raises `OpenUniError` if there are none."""
    all_metrics = {name: find_component("metrics", Metric, name) for name in component_names("metrics")}
    found = {name: metric for name, metric in all_metrics.items() if modality in metric.modalities}
    if not found:
        measured = sorted({one for metric in all_metrics.values() for one in metric.modalities})
        raise OpenUniError(f"there is no metric for {modality}. There are metrics for: {', '.join(measured)}.")
    return found

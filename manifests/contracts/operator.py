"""The operator contract: filters score, annotators produce modalities; what `run` returns is the schema."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_type_hints

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.discovery import component_names, find_component
from openuni.manifests.contracts.producer import Producer
from openuni.manifests.contracts.schema import modality_fields
from openuni.manifests.errors import OpenUniError


@dataclass(frozen=True)
class Operator(Producer):
    """Base of filters and annotators: a component that computes something of one decoded clip."""

    kind: ClassVar[str]  # "filter" or "annotator"; the operator's file lies in the package of that name, in plural

    @abstractmethod
    def run(self, model: Any, clip: DecodedClip) -> Any:
        """Compute. Pure: the input is read-only, equal inputs give equal outputs. Returns the declared NamedTuple.

        `model` is what `load` returned. Raise `ClipError` when this clip cannot be done, `Unavailable` when it lacks
        what there is to compute from.
        """

    @classmethod
    def result_type(cls) -> type[tuple[Any, ...]]:
        """The NamedTuple that `run` is annotated to return."""
        declared = get_type_hints(cls.run).get("return")
        if not (isinstance(declared, type) and issubclass(declared, tuple) and hasattr(declared, "_fields")):
            raise OpenUniError(f"{cls.name()}: run() must be annotated to return a NamedTuple, found {declared!r}")
        return declared


@dataclass(frozen=True)
class Filter(Operator):
    """Scores a clip: numbers only. It never decides; the recipe's `keep` does."""

    kind: ClassVar[str] = "filter"
    requires_motion_vectors: ClassVar[bool] = False  # whether `run` looks at `clip.vectors`, the codec's motion vectors

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Which frames this filter wants: float64 [T] seconds -> int64 [n] increasing indices.

        All filters of a clip share one sparse decode of the union of their samples. Default: two per second.
        """
        return sample_evenly(times_s, per_s=2.0)


@dataclass(frozen=True)
class Annotator(Operator):
    """Produces one or more modalities for every frame of a clip, and scores about them.

    `run` returns a NamedTuple whose fields are `Modality` subclasses (or such a class or None, where a clip may lack
    it) and plain values (scores).
    """

    kind: ClassVar[str] = "annotator"

    def produces(self) -> Sequence[str]:
        """Names of the modalities that it makes with these options: those of its result type, if it says no less."""
        return [modality.name for modality in modality_fields(type(self)).values()]

    def requires(self) -> Sequence[str]:
        """Maps that other annotators make and this one starts from, then found in `clip.maps` by their modality's name.

        Each is a modality such as "depth", or "ANNOTATOR.depth" where a corpus has several. A clip that lacks one never
        comes to `run`: its row is `unavailable`. When such a map is made anew, so is what started from it.
        """
        return ()


def sample_evenly(times_s: np.ndarray, per_s: float) -> np.ndarray:
    """Indices (int64, increasing, unique) of the frames nearest to an even grid of `per_s` instants per second.

    `times_s`: float64 [T], increasing. The first frame is always in; a clip shorter than the step gives one frame.
    """
    grid = np.arange(times_s[0], times_s[-1] + 1e-9, 1.0 / per_s)
    right = np.clip(np.searchsorted(times_s, grid), 0, len(times_s) - 1)
    left = np.maximum(right - 1, 0)
    nearer_left = (grid - times_s[left]) < (times_s[right] - grid)
    return np.unique(np.where(nearer_left, left, right)).astype(np.int64)


def operator_names(kind: str) -> list[str]:
    """Names of the operators of one kind ("filter" or "annotator")."""
    return component_names(f"{kind}s")


def find_operator(kind: str, name: str, *, imports: bool = False) -> type[Operator]:
    """The operator class of that kind and name; `imports` as in `find_component`."""
    found: type[Operator] = find_component(f"{kind}s", Filter if kind == "filter" else Annotator, name, imports=imports)
    return found

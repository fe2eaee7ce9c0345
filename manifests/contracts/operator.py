"""The operator contract: filters compute scores, annotators produce modalities; `run`'s return type is the schema."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_type_hints

import numpy as np

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.discovery import component_names, find_component
from openuni.manifests.contracts.producer import Producer
from openuni.manifests.contracts.windows import WindowedRun
from openuni.manifests.errors import OpenUniError


@dataclass(frozen=True)
class Operator(Producer):
    """Base of filters and annotators: a component that processes one decoded clip."""

    kind: ClassVar[str]  # "filter" or "annotator"; the plural names the package of the operator's file

    @abstractmethod
    def run(self, model: Any, clip: DecodedClip) -> Any:
        """Process a clip and return the declared NamedTuple.

        A pure function: the input is read-only, equal inputs give equal outputs. `model`: the return value of `load`.
        Raise `ClipError` if the clip cannot be processed, `Unavailable` if it has no input for this operator.
        """

    def start_windows(self, model: Any) -> WindowedRun[Any] | None:
        """Begin to process a clip in windows, for clips that are too long to be decoded whole.

        The results must be those of `run`, to the bit. Default: None, the operator needs all frames at once, and clips
        over the limit of [work] max_decoded_gb fail. See `openuni.manifests.contracts.windows`.
        """
        return None

    def window_step(self) -> int:
        """All windows but the last have a multiple of this number of new frames, such as the frames of a batch."""
        return 1

    def clips_per_batch(self) -> int:
        """How many clips `run_batch` takes at most. Default: 1, the operator gets one clip at a time, in `run`.

        An operator that gives no maps may take several, to use its device better. It defines `excerpt` and `run_batch`.
        Neither the order of the clips nor which of them are together may change results.
        """
        return 1

    def excerpt(self, model: Any, clip: DecodedClip) -> Any:
        """What `run_batch` needs of a clip, such as a few frames: kept in memory while the batch is collected.

        It must be a copy: a view would keep all frames. Raises as `run`.
        """
        raise NotImplementedError(f"{self.name()} takes several clips at a time, but does not define excerpt()")

    def run_batch(self, model: Any, excerpts: Sequence[Any]) -> Sequence[Any]:
        """The results of several clips, in order; each is what `run` gives for that clip alone.

        May raise whatever `run` raises, also for one clip: the worker tries parts of the batch until it knows which
        clip fails. If the error is called `OutOfMemoryError`, later batches are smaller too.
        """
        raise NotImplementedError(f"{self.name()} takes several clips at a time, but does not define run_batch()")

    @classmethod
    def result_type(cls) -> type[tuple[Any, ...]]:
        """The NamedTuple that `run` is annotated to return."""
        return declared_result(cls.name(), "run", get_type_hints(cls.run).get("return"))


@dataclass(frozen=True)
class Filter(Operator):
    """Operator that computes scores of a clip. It never drops a clip; the keep rule does."""

    kind: ClassVar[str] = "filter"
    requires_motion_vectors: ClassVar[bool] = False  # whether `run` reads `clip.vectors`
    reads_caption: ClassVar[bool] = False  # whether `run` reads the clip's caption: recomputed if that is updated

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Indices of the frames that this filter measures: float64 [T] seconds -> int64 [n], increasing.

        All filters of a clip share one sparse decode of the union of their samples. Default: two frames per second.
        """
        return sample_evenly(times_s, per_s=2.0)


@dataclass(frozen=True)
class Annotator(Operator):
    """Operator that produces one or more modalities for every frame of a clip, and scores of them.

    `run` returns a NamedTuple whose fields are `Modality` subclasses (`| None` if a clip may lack the modality) and
    plain values (scores).
    """

    kind: ClassVar[str] = "annotator"

    def produces(self) -> Sequence[str]:
        """Names of the modalities produced with these options. Default: all modalities of the result type."""
        from openuni.manifests.contracts.schema import modality_fields  # imports pyarrow

        return [modality.name for modality in modality_fields(type(self)).values()]

    def requires(self) -> Sequence[str]:
        """Maps of other annotators that this one requires as input; `run` finds them in `clip.maps` by modality name.

        Each entry is a modality such as "depth", or "ANNOTATOR.depth" if a corpus has several. A clip that lacks a
        required map is not passed to `run`; its row gets status `unavailable`. Recomputing a required map also
        recomputes the results that depend on it.
        """
        return ()


def declared_result(name: str, method: str, declared: Any) -> type[tuple[Any, ...]]:
    """The return annotation of an operator's method. Raises `OpenUniError` unless it is a NamedTuple."""
    if not (isinstance(declared, type) and issubclass(declared, tuple) and hasattr(declared, "_fields")):
        raise OpenUniError(f"{name}: return annotation of {method}() must be a NamedTuple, got {declared!r}")
    return declared


def sample_evenly(times_s: np.ndarray, per_s: float) -> np.ndarray:
    """Indices (int64, increasing, unique) of the frames nearest to a uniform grid of `per_s` times per second.

    `times_s`: float64 [T], increasing. The first frame is always included; a clip shorter than one grid step gives one
    frame.
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
    """The operator class of a kind and name; `imports` as in `find_component`."""
    found: type[Operator] = find_component(f"{kind}s", Filter if kind == "filter" else Annotator, name, imports=imports)
    return found

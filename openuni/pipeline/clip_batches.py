"""Operators that process several clips together: the clips of a worker that wait for one another."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from openuni.manifests.contracts import schema
from openuni.manifests.contracts.operator import Operator
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.hosting.process import HostedModel
from openuni.pipeline.batching.halving import results_in_halves
from openuni.pipeline.phases import ClipItem
from openuni.pipeline.planning.gpu_memory import VramMeter


class Waiting(NamedTuple):
    """A clip that waits, and what is kept of it."""

    item: ClipItem
    excerpts: Mapping[str, Any]  # by operator
    ms: Mapping[str, float]  # by operator, the time that the excerpt took


class BatchResult(NamedTuple):
    """What an operator gave for one of several clips: a value, or the error instead."""

    value: Any
    error: Exception | None
    ms: float


class ClipBatches:
    """The clips that wait, and how operators process them together.

    The operators are those of the worker that owns this; it may replace them.
    """

    def __init__(self, operators: Mapping[str, Operator], models: Mapping[str, Any], vram: VramMeter) -> None:
        self.operators, self.models, self.vram = operators, models, vram
        self.sizes = {name: one.clips_per_batch() for name, one in operators.items() if one.clips_per_batch() > 1}
        for name in self.sizes:
            if maps := schema.modality_fields(type(operators[name])):
                raise OpenUniError(
                    f"{name}: clips_per_batch() is {self.sizes[name]}, but it gives maps ({', '.join(maps)}), of which "
                    "several clips would not fit in memory. Only operators without maps may take several clips."
                )
        self.waiting: list[Waiting] = []

    def takes(self, name: str) -> bool:
        """Whether an operator processes several clips together."""
        return name in self.sizes

    @property
    def is_full(self) -> bool:
        """Whether as many clips wait as any operator takes."""
        return len(self.waiting) >= max(self.sizes.values(), default=1)

    def run(self) -> list[tuple[ClipItem, dict[str, BatchResult]]]:
        """The results of the clips that wait. Then none waits."""
        clips, self.waiting = self.waiting, []
        found: list[dict[str, BatchResult]] = [{} for _ in clips]
        for name in self.sizes:
            of_operator = [number for number, clip in enumerate(clips) if name in clip.excerpts]
            results = self._results(name, [clips[number].excerpts[name] for number in of_operator])
            for number, result in zip(of_operator, results, strict=True):
                found[number][name] = result._replace(ms=result.ms + clips[number].ms[name])
        return [(clip.item, results) for clip, results in zip(clips, found, strict=True)]

    def _results(self, name: str, excerpts: Sequence[Any]) -> list[BatchResult]:
        results: list[BatchResult] = []
        while len(results) < len(excerpts):
            batch = excerpts[len(results) : len(results) + self.sizes[name]]
            started = time.perf_counter()
            with self.vram.running(name):
                values = self._together(name, batch)
            ms = (time.perf_counter() - started) * 1000 / len(batch)
            for value in values:
                is_error = isinstance(value, Exception)
                results.append(BatchResult(None if is_error else value, value if is_error else None, ms))
        return results

    def _together(self, name: str, excerpts: Sequence[Any]) -> list[Any]:
        """Per clip its result, or its error. A batch that fails is tried in halves, down to single clips."""
        operator, model = self.operators[name], self.models[name]
        is_hosted = isinstance(model, HostedModel)
        run_batch = partial(model.run_batch, operator) if is_hosted else partial(operator.run_batch, model)

        def together(part: Sequence[Any]) -> list[Any]:
            values = list(run_batch(part))
            if len(values) != len(part):
                raise ClipError(f"run_batch returned {len(values)} results for {len(part)} clips")
            return [self._checked(operator, value) for value in values]

        def shrink(size: int) -> None:
            self.sizes[name] = min(self.sizes[name], size)

        return results_in_halves(together, excerpts, shrink)

    def _checked(self, operator: Operator, value: Any) -> Any:
        if not isinstance(value, Exception | operator.result_type()):
            return ClipError(f"returned {type(value).__name__}, declared {operator.result_type().__name__}")
        return value

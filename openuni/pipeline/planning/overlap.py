"""Phases that overlap: clips are annotated or encoded while the phase before still works on others.

A pool of the later phase gets its clips from plans that are made again and again while the earlier phase runs, by the
same code as in sequence, over the clips of which the earlier phase has finished everything. So a clip has the same
results either way, and what is left is planned in sequence afterwards. Only sealed parts count: rows and maps of open
ones may still be lost with their worker.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from openuni.config.recipe import CorpusRecipe
from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus import keep_rule
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import annotation_group, filter_group
from openuni.pipeline.phases import ClipItem
from openuni.pipeline.planning.passes import plan_passes
from openuni.pipeline.planning.planner import Planner, Work
from openuni.pipeline.planning.plans import missing
from openuni.pipeline.runners.pool_sizes import usable_gpus
from openuni.pipeline.runners.resources import LATER, Later, Runner

FIRST_SEAL_S = 300.0  # until a worker of the earlier phase seals its first part; then twice as long, and so on
REST = 20  # times the duration of a plan pass until the next one: plans take at most 5 % of the driver's time
MIN_REST_S = 2.0
COMPUTED_OVER_CORPUS = {"split"}  # columns of `clips`


def is_row_wise(recipe: CorpusRecipe) -> bool:
    """Whether `keep` decides about a clip by what ingest and the recipe's filters say about that clip alone.

    Not if it reads what is computed over the whole corpus (duplicates, splits) or comes later (`has`), and not with
    aggregates or window functions.
    """
    rules = keep_rule.parse(recipe.keep)
    known = {*recipe.filters, *clip_schema().names} - COMPUTED_OVER_CORPUS
    return keep_rule.names_read(rules) <= known and keep_rule.is_row_wise(rules)


def following_work(
    kind: str,
    planner: Planner,
    runner: Runner,
    shares: Callable[[], Mapping[str, float]],
    clips: pa.Table,
) -> Work | None:
    """What may be done on GPUs while CPU workers do the phase of `kind`; None if nothing.

    `shares`: see `plan_passes`, of the annotators. `clips`: those that may be planned.
    """
    recipe, capacity = planner.recipe, runner.capacity()
    if not recipe.work.overlap or capacity is None or not usable_gpus(runner.resources, capacity):
        return None
    if kind == "filter":
        if not is_row_wise(recipe) or any(not planner.scope.covers(name) for name in recipe.filters):
            return None
        operators = planner.operators("annotator")
        if any(operator.gpus for operator in operators.values()):
            passes = plan_passes(operators, planner.required_maps, runner.resources, capacity, shares())
            return planner.operators_work("annotator", passes[0][0].operators)
    codec, text_codec = recipe.latent_codec, recipe.text_codec
    if recipe.encode is None or codec is None or text_codec is None or not planner.scope.covers("encode"):
        return None
    return planner.encode_work(clips.column("clip_id")) if codec.gpus or text_codec.gpus else None


@dataclass
class Following:
    """The clips of a pool that follows an earlier phase, planned as the earlier phase goes on.

    An iterator for `Pool.items`. Plans are made in a thread with a corpus of its own, so that no worker waits for them.
    """

    planner: Planner
    work: Work
    clips: pa.Table  # `clip_id` and `row` of all that may be planned
    is_filtered: bool  # whether they are the kept ones; else each is planned once all filters have its row
    grow: Callable[[int], None] = lambda count: None  # is told of the clips that a plan adds

    def __post_init__(self) -> None:
        own = Planner(self.planner.recipe, Corpus.open(self.planner.corpus.store.url), self.planner.scope)
        for name in ("required_maps", "captions", *(["streams"] if self.work.name == "encode" else [])):
            own.__dict__[name] = getattr(self.planner, name)  # as they were at the start
        self.own = own
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="plan")
        self.planning: Future[tuple[Iterator[ClipItem], int]] | None = None
        self.current: Iterator[Any] = iter(())
        self.due = 0.0
        self.seen: list[list[str]] | None = None  # parts at the last plan
        self.planned = {name: np.zeros(len(self.clips), bool) for name in self.work.groups}

    def planned_ids(self) -> pa.ChunkedArray:
        """The clips that were planned for anything."""
        planned = np.logical_or.reduce(list(self.planned.values()))
        return self.clips.column("clip_id").filter(pa.array(planned))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *given: object) -> None:
        self.thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[ClipItem | Later]:
        return self

    def __next__(self) -> ClipItem | Later:
        while True:
            item = next(self.current, None)
            if item is not None:
                return item
            if self.planning is None and time.monotonic() >= self.due:
                self.planning = self.thread.submit(self._plan)
            if self.planning is None or not self.planning.done():
                return LATER
            planning, self.planning = self.planning, None
            self.current, count = planning.result()
            self.grow(count)

    def _plan(self) -> tuple[Iterator[ClipItem], int]:
        """The clips that have become ready since the last plan."""
        started = time.monotonic()
        parts = [self.own.corpus.parts(group) for group in self._read_groups()]
        nothing: tuple[Iterator[ClipItem], int] = (iter(()), 0)
        try:
            if parts == self.seen:
                return nothing
            self.seen = parts
            places = self._ready()
            clips = self.clips.take(pa.array(places))
            ids = clips.column("clip_id")
            found = self._todo(ids) if len(clips) else {}
            todo = {}
            for name, mask in found.items():
                new = mask.to_numpy(zero_copy_only=False) & ~self.planned[name][places]
                self.planned[name][places[new]] = True
                todo[name] = pa.array(new)
            items, count = self.own.items(self.work, clips, todo)
            return iter(items), count
        finally:
            now = time.monotonic()
            self.due = now + max(MIN_REST_S, REST * (now - started))

    def _read_groups(self) -> list[str]:
        """The column groups of the earlier phase."""
        recipe = self.planner.recipe
        if not self.is_filtered:
            groups = [filter_group(name) for name in recipe.filters]
            return groups if self.work.name != "encode" else [*groups, *self._sources()]
        return self._sources()

    def _sources(self) -> list[str]:
        names = {source.annotator for source in self.work.sources}
        names |= {self.work.captions.annotator} if self.work.captions else set()
        return [annotation_group(name) for name in sorted(names)]

    def _ready(self) -> np.ndarray:
        """Indices in `clips` of those that may be planned."""
        ids = self.clips.column("clip_id").combine_chunks()
        if self.is_filtered:
            return np.arange(len(ids))
        ready = np.ones(len(ids), bool)
        for name in self.planner.recipe.filters:
            ready &= ~missing(self.own.corpus, filter_group(name), ids).to_numpy(zero_copy_only=False)
        if not ready.any():  # of a filter without any row `keep` knows no columns yet
            return np.array([], np.int64)
        kept = pc.is_in(ids, self.own.corpus.kept_clip_id_array(self.planner.recipe.keep))
        return np.flatnonzero(ready & kept.to_numpy(zero_copy_only=False))

    def _todo(self, ids: pa.ChunkedArray) -> dict[str, pa.Array]:
        if self.work.name == "encode":
            return self.own.streams_todo(ids.combine_chunks())
        return self.own.operators_todo("annotator", self.work.groups, ids)

"""A run: phases over a corpus, each planned from what is already there.

ingest (sources -> clips), filter (scores for every clip), annotate (modalities of kept clips), encode (latents and
text embeddings). A plan is "what should have a row in the group, less what has one": so a run resumes by itself.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from openuni.config.recipe import CorpusRecipe
from openuni.console.progress import Counter, Reporter
from openuni.dedup.deduplicator import not_compared_reason
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import CLIPS, operator_group
from openuni.manifests.corpus.parts.compaction import compact_if_worthwhile
from openuni.manifests.corpus.splits import write_pending_splits
from openuni.manifests.errors import OpenUniError
from openuni.pipeline import shot_splitting
from openuni.pipeline.ingest_phase import IngestSpec, SourceItem
from openuni.pipeline.ledger import run_ledger
from openuni.pipeline.planning import overlap
from openuni.pipeline.planning.gpu_memory import gpu_shares, record_gpu_memory
from openuni.pipeline.planning.overlap import Following, following_work
from openuni.pipeline.planning.passes import PoolPlan, plan_passes
from openuni.pipeline.planning.planner import PlannedPool, Planner
from openuni.pipeline.planning.plans import INTERNAL_ERROR_HINT, missing
from openuni.pipeline.run_log import RunLog
from openuni.pipeline.runners.gpu_usage import measured_gpu_busy, record_gpu_busy
from openuni.pipeline.runners.pool_sizes import cpu_pool, gpu_pool, overlapping_pools, workers_sharing_gpu
from openuni.pipeline.runners.resources import Pool, PoolSize, Runner
from openuni.pipeline.scope import RunScope
from openuni.pipeline.worker import ItemOutcome

logger = logging.getLogger(__name__)
INGEST_VERSION = "1"


@dataclass
class Pipeline:
    """One run of one recipe on one corpus."""

    recipe: CorpusRecipe
    corpus: Corpus
    runner: Runner
    reporter: Reporter
    scope: RunScope = RunScope()
    log: RunLog = field(init=False)  # of the run in progress
    followed: pa.ChunkedArray | None = None  # clips that were planned as kept before all filters had ended

    @functools.cached_property
    def planner(self) -> Planner:
        """What is left to do."""
        return Planner(self.recipe, self.corpus, self.scope)

    def run(self, sources: Sequence[str]) -> None:
        """Run all phases; the caller holds the lock of the corpus. Without `sources`: process the existing clips."""
        tables = json.loads(json.dumps(self.recipe.as_tables(), default=list))
        asked = {"recipe": tables, "scope": dataclasses.asdict(self.scope)}
        self._check_sources(sources)
        if self.scope.covers("encode"):
            _ = self.planner.captions  # a column that is nowhere is reported before the work, not after it
        write_pending_splits(self.corpus)
        saved = self.corpus.recover()
        if saved:
            self.reporter.print_line(f"recovered {saved:,} finished rows of a run that was killed")
        names = {"filters": list(self.recipe.filters), "annotators": list(self.recipe.annotators)}
        self.corpus.save_record(keep=self.recipe.keep, **names)
        with run_ledger(self.corpus, self.reporter, asked) as self.log:
            self._ingest(sources)
            clips = self._clips(sources)
            kept = functools.cache(lambda: self._kept_clips(clips))  # asked once the filters have run, if at all
            self._operators("filter", lambda: clips)
            self._operators("annotator", kept)
            if self.recipe.encode is not None and self.scope.covers("encode"):
                self._encode(kept())

    # ------------------------------------------------------------------ phases

    def _ingest(self, sources: Sequence[str]) -> None:
        if not self.scope.covers("ingest") or not sources:
            return
        if self.scope.retry_failed:
            self.corpus.delete_by_status("clips", ["failed"], {"source": pa.array(list(sources), pa.string())})
        wanted = sources[: self.scope.limit]
        new = self._new_sources(wanted)
        detector = self.recipe.shot_detector
        cut = shot_splitting.version(detector, self.recipe.ingest)
        if len(new) < len(wanted) and self.corpus.record.get("cut", shot_splitting.NO_CUTTING) != cut:
            self.reporter.print_line(
                "existing clips were cut with other [ingest] options and are not changed; use a new --out to cut the "
                "sources again"
            )
        if new:
            self.corpus.save_record(cut=cut)
        spec = IngestSpec(
            self.corpus.store.url, self.recipe.ingest, detector, INGEST_VERSION, self.recipe.work.limits()
        )
        if new:
            size = cpu_pool(self.runner.resources, self.runner.capacity())
            self._phase([PlannedPool("ingest", spec, new, len(new), self._unfinished_sources, size, [CLIPS])])
        self.corpus.refresh()
        self._verify_sources(new)

    def _operators(self, kind: str, clips_of_phase: Callable[[], pa.Table]) -> None:
        planner, resources = self.planner, self.runner.resources
        chosen = planner.operators(kind)
        if not chosen:
            return
        clips = clips_of_phase()
        planner.activate(kind)
        todo = planner.operators_todo(kind, chosen, clips.column("clip_id"))
        todo = {name: mask for name, mask in todo.items() if pc.any(mask).as_py()}
        if not todo:
            return
        left = {name: chosen[name] for name in todo}
        maps = {name: planner.maps_of(kind, name) for name in todo}
        passes = plan_passes(left, maps, resources, self.runner.capacity(), self._gpu_shares(kind), self._sharing(kind))
        for pools in passes:
            if len(passes) == len(pools) == 1 and not pools[0].size.shape.gpus:
                self._overlapping(kind, pools[0], clips, todo)
                continue
            self._phase([self._operator_pool(kind, pool.operators, clips, todo, pool.size) for pool in pools])
        for name in todo:
            self._verify(operator_group(kind, name), clips.column("clip_id"))

    def _operator_pool(
        self,
        kind: str,
        names: Sequence[str],
        clips: pa.Table,
        todo: Mapping[str, pa.Array],
        size: PoolSize,
        seal_after_s: float | None = None,
    ) -> PlannedPool:
        work = self.planner.operators_work(kind, names, seal_after_s)
        return self.planner.planned(work, *self.planner.items(work, clips, {name: todo[name] for name in names}), size)

    def _overlapping(self, kind: str, pool: PoolPlan, clips: pa.Table, todo: Mapping[str, pa.Array]) -> None:
        """A phase of CPU workers, and where GPUs are free beside it, what can follow already."""
        resources, capacity = self.runner.resources, self.runner.capacity()
        work = following_work(kind, self.planner, self.runner, lambda: self._gpu_shares("annotator"), clips)
        if work is not None and work.name != "encode" and resources.workers_per_gpu is None:
            per_gpu = self._sharing("annotator")([*work.groups])
            resources = dataclasses.replace(resources, workers_per_gpu=per_gpu)
        sizes = None
        if work is not None and capacity is not None:
            annotators = self.planner.operators("annotator") if work.name != "encode" else {}
            gpus = max([1.0, *(annotators[name].gpus_per_worker() for name in work.groups if annotators)])
            sizes = overlapping_pools(resources, capacity, gpus)
        if work is None or sizes is None:
            self._phase([self._operator_pool(kind, pool.operators, clips, todo, pool.size)])
            return
        self.planner.activate("annotator")
        if work.name == "encode":
            self.planner.activate_streams()
        gpu_size, cpu_size = sizes
        earlier = self._operator_pool(kind, pool.operators, clips, todo, cpu_size, overlap.FIRST_SEAL_S)
        with Following(self.planner, work, clips, is_filtered=kind == "annotator") as items:
            later = self.planner.planned(work, items, 0, gpu_size)._replace(follows=True)
            self._phase([earlier, later])
            if kind == "filter":
                self.followed = items.planned_ids()

    def _gpu_shares(self, kind: str) -> dict[str, float]:
        versions = {name: self.planner.version(name, one) for name, one in self.planner.operators(kind).items()}
        return gpu_shares(self.corpus, versions, self.runner.gpu_memory_gb())

    def _sharing(self, kind: str) -> Callable[[Sequence[str]], int]:
        """How many workers of some operators share a GPU, as measured in this corpus; says so where it is not one."""
        operators, shares = self.planner.operators(kind), self._gpu_shares(kind)

        def sharing(names: Sequence[str]) -> int:
            busy = measured_gpu_busy(self.corpus, [self.planner.version(name, operators[name]) for name in names])
            memory_share = sum(shares[name] for name in names) if shares.keys() >= set(names) else None
            workers = workers_sharing_gpu(busy, memory_share)
            if busy is not None and memory_share and workers > 1:
                self.reporter.print_line(
                    f"{' + '.join(names)}: {workers} workers per GPU ({busy.workers_per_gpu} kept it busy for "
                    f"{busy.busy:.0%} of the time; each takes up to {memory_share:.0%} of its memory)"
                )
            return workers

        return sharing

    def _encode(self, clips: pa.Table) -> None:
        planner, codec, text_codec = self.planner, self.recipe.latent_codec, self.recipe.text_codec
        assert codec is not None and text_codec is not None
        planner.activate_streams()
        ids = clips.column("clip_id").combine_chunks()
        work = planner.encode_work(ids)
        items, count = planner.items(work, clips, planner.streams_todo(ids))
        if not count:
            return
        size = gpu_pool if codec.gpus or text_codec.gpus else cpu_pool
        self._phase([planner.planned(work, items, count, size(self.runner.resources, self.runner.capacity()))])
        for stream in planner.streams:
            there = planner.encodable(stream)
            self._verify(stream.group, ids if there is None else ids.filter(pc.is_in(ids, there)))

    def _phase(self, planned: Sequence[PlannedPool]) -> None:
        """Run pools at the same time; each counts by itself."""
        pools, counters = [], []
        with ExitStack() as stack:
            for pool in planned:
                counter = stack.enter_context(self.reporter.phase(pool.name, pool.total))
                counters.append(counter)
                report = self._reporting(pool.name, counter)
                if isinstance(pool.items, Following):
                    pool.items.grow = counter.grow
                pools.append(
                    Pool(pool.name, pool.spec, pool.items, report, pool.on_death, pool.size, counter, pool.follows)
                )
                logger.info("phase %s started: %d items, %d workers", pool.name, pool.total, pool.size.workers)
            self.runner.run_pools(pools)
        for pool, counter in zip(planned, counters, strict=True):
            if pool.follows:
                self._end_following(counter)
            else:  # its workers were also idle because clips were not filtered yet: that says nothing of their number
                record_gpu_busy(self.corpus, pool.spec.operator_versions(), counter.phase, pool.size.per_gpu)
            record_gpu_memory(self.corpus, pool.spec.operator_versions(), [counter.phase])
            logger.info("phase %s finished: %s", counter.phase.name, json.dumps(counter.phase.as_record()))
        self.corpus.recover()  # parts of workers that died in this phase
        compact_if_worthwhile(self.corpus, [group for pool in planned for group in pool.groups])

    def _end_following(self, counter: Counter) -> None:
        """What was planned and not done is planned again; a phase that did nothing is not told of."""
        counter.phase.total = counter.phase.done
        if not counter.phase.done:
            self.reporter.phases.remove(counter.phase)

    def _reporting(self, phase: str, counter: Counter) -> Callable[[ItemOutcome], None]:
        def report(outcome: ItemOutcome) -> None:
            counter.add(outcome.status, outcome.decodes, outcome.vram_mb, outcome.key, outcome.usage)
            counter.phase.decode_fallbacks += outcome.decode_fallbacks
            self.log.outcome(outcome, phase, raise_errors=self.scope.raise_errors)
            if outcome.psnr_db is not None:
                self.log.psnr_db.setdefault(self.planner.latent_family, {})[outcome.key] = outcome.psnr_db

        return report

    # ------------------------------------------------------------------ plans

    def _has_clips(self) -> bool:
        return bool(self.corpus.parts("clips"))

    def _check_sources(self, sources: Sequence[str]) -> None:
        if not sources and not self._has_clips():
            raise OpenUniError(
                f"{self.corpus.store.url} has no clips, and no sources were given. Pass videos or folders after the "
                "recipe, or import clips first with: openuni import"
            )
        if not sources or not self._has_clips() or self.scope.add:
            return
        known = self._known_sources()
        some = pa.array(list(sources[:1000]), pa.string())  # as good as always, these tell
        if pc.any(pc.is_in(known, value_set=some)).as_py():
            return
        if not pc.any(pc.is_in(known, value_set=pa.array(list(sources), pa.string()))).as_py():
            raise OpenUniError(
                f"{self.corpus.store.url} already holds another corpus: {len(known):,} clips, such as {known[0]}, and "
                "none of the sources given now. Choose another --out, or add these sources to it with --add."
            )

    def _known_sources(self) -> pa.ChunkedArray:
        if not self._has_clips():
            return pa.chunked_array([], pa.string())
        return self.corpus.table("clips", ["source"]).column("source")

    def _new_sources(self, sources: Sequence[str]) -> list[SourceItem]:
        given = pa.array(list(sources), pa.string())
        new = given.filter(pc.invert(pc.is_in(given, self._known_sources().combine_chunks())))
        return [SourceItem(source) for source in new.to_pylist()]

    def _clips(self, sources: Sequence[str]) -> pa.Table:
        """`clip_id` and `row` (its number in `clips/`) of the clips in scope, in order."""
        found = self.corpus.clip_list
        clips = pa.table({"clip_id": found.ids, "row": found.rows})
        if self.scope.limit is None:
            return clips
        if not sources:
            return clips.slice(0, self.scope.limit)
        within = pa.array(list(sources[: self.scope.limit]), pa.string())
        return clips.filter(pc.is_in(self._known_sources().take(clips.column("row")), within))

    def _kept_clips(self, clips: pa.Table) -> pa.Table:
        if not len(clips):
            return clips  # no filter has seen any clip: there is no column yet that `keep` could read
        note = not_compared_reason(self.corpus, self.recipe.keep)
        if note:
            self.reporter.print_line(note)
        kept = self.planner.kept_clips(clips)
        passed = pc.is_in(self.followed, kept.column("clip_id")) if self.followed is not None else None
        if passed is not None and not pc.all(passed, min_count=0).as_py():
            raise OpenUniError(f"clips were annotated that keep drops. {INTERNAL_ERROR_HINT}")
        return kept

    def _unfinished_sources(self, held: list[SourceItem]) -> list[SourceItem]:
        self.corpus.recover()
        return self._new_sources([item.source for item in held])

    # ------------------------------------------------------------------ conservation

    def _verify_sources(self, items: Sequence[SourceItem]) -> None:
        """Every planned source has rows, and no clip two, or the run ends with an error."""
        if not items:
            return
        lost = self._new_sources([item.source for item in items])
        if lost:
            raise OpenUniError(f"clips: {len(lost)} of {len(items)} sources have no row. {INTERNAL_ERROR_HINT}")
        ids = self.corpus.table("clips", ["clip_id"]).column("clip_id")
        if pc.count_distinct(ids).as_py() != len(ids):
            raise OpenUniError(
                f"clips: {len(ids) - pc.count_distinct(ids).as_py()} duplicate rows. {INTERNAL_ERROR_HINT}"
            )

    def _verify(self, group: str, wanted: pa.ChunkedArray | pa.Array) -> None:
        """Every planned clip has exactly one row, or the run ends with an error."""
        lost = pc.sum(missing(self.corpus, group, wanted)).as_py()
        if lost:
            raise OpenUniError(f"{group}: {lost} of {len(wanted)} clips have no row. {INTERNAL_ERROR_HINT}")

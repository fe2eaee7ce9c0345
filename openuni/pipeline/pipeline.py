"""A run: phases over a corpus, each planned from what is already there.

ingest (sources -> clips), filter (scores for every clip), annotate (modalities of kept clips), encode (latents and
text embeddings). A plan is "what should have a row in the group, less what has one": so a run resumes by itself.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from openuni.config.captions import CaptionColumn, caption_column, clip_ids_with_caption
from openuni.config.recipe import CorpusRecipe
from openuni.console.progress import Counter, Reporter
from openuni.dedup.deduplicator import not_compared_reason
from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.operator import Operator
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.coverage import clip_ids_with_modality
from openuni.manifests.corpus.layout import (
    CLIPS,
    LATENTS,
    TEXT,
    annotation_group,
    family_record,
    latent_group,
    operator_group,
    text_group,
)
from openuni.manifests.corpus.parts.compaction import compact_if_worthwhile
from openuni.manifests.corpus.splits import write_pending_splits
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.decoder.limits import Limits
from openuni.pipeline import encode_phase, shot_splitting
from openuni.pipeline.ingest_phase import IngestSpec, SourceItem
from openuni.pipeline.ledger import run_ledger
from openuni.pipeline.operator_phase import OperatorSpec
from openuni.pipeline.planning.environments import environment_facts, ready_environments
from openuni.pipeline.planning.gpu_memory import gpu_shares, record_gpu_memory
from openuni.pipeline.planning.map_sources import MapSource, annotator_of, extents, required_maps
from openuni.pipeline.planning.passes import PoolPlan, plan_passes
from openuni.pipeline.planning.plans import INTERNAL_ERROR_HINT, clip_items, missing
from openuni.pipeline.run_log import RunLog
from openuni.pipeline.runners.pool_sizes import cpu_pool, gpu_pool
from openuni.pipeline.runners.resources import Pool, PoolSize, Runner
from openuni.pipeline.scope import RunScope
from openuni.pipeline.worker import ItemOutcome, Spec

logger = logging.getLogger(__name__)
INGEST_VERSION = "1"


class PlannedPool(NamedTuple):
    """A pool of a phase before it runs."""

    name: str
    spec: Spec
    items: Iterable[Any]
    total: int
    on_death: Callable[[list[Any]], list[Any]]
    size: PoolSize
    groups: Sequence[str]  # column groups that it fills


@dataclass
class Pipeline:
    """One run of one recipe on one corpus."""

    recipe: CorpusRecipe
    corpus: Corpus
    runner: Runner
    reporter: Reporter
    scope: RunScope = RunScope()
    log: RunLog = field(init=False)  # of the run in progress

    def run(self, sources: Sequence[str]) -> None:
        """Run all phases; the caller holds the lock of the corpus. Without `sources`: process the existing clips."""
        tables = json.loads(json.dumps(self.recipe.as_tables(), default=list))
        asked = {"recipe": tables, "scope": dataclasses.asdict(self.scope)}
        self._check_sources(sources)
        if self.scope.covers("encode"):
            _ = self.captions  # a column that is nowhere is reported before the work, not after it
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
            self._operators("filter", self.recipe.filters, lambda: clips)
            self._operators("annotator", self.recipe.annotators, kept)
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

    def _operators(self, kind: str, operators: Any, clips_of_phase: Callable[[], pa.Table]) -> None:
        wanted = self.required_maps if kind == "annotator" else {name: {} for name in operators}
        chosen = {name: operators[name] for name in wanted if self.scope.covers(name)}
        if not chosen:
            return
        clips = clips_of_phase()
        versions = {name: self._version(name, operator) for name, operator in chosen.items()}
        groups = {name: operator_group(kind, name) for name in chosen}
        todo = {}
        for name, group in groups.items():
            self.corpus.activate_version(group, versions[name])
            if self.scope.retry_failed:
                self.corpus.delete_by_status(group, ["failed", "unavailable"])
            todo[name] = missing(self.corpus, group, clips.column("clip_id"))
        todo = {name: mask for name, mask in todo.items() if pc.any(mask).as_py()}
        if not todo:
            return
        required = {name: wanted[name] for name in todo}
        left = {name: chosen[name] for name in todo}
        shares = gpu_shares(self.corpus, versions, self.runner.gpu_memory_gb())
        for pools in plan_passes(left, required, self.runner.resources, self.runner.capacity(), shares):
            planned = [self._operator_pool(kind, pool, left, versions, required, clips, todo) for pool in pools]
            self._phase(planned)
            record_gpu_memory(self.corpus, versions, self.reporter.phases[-len(planned) :])
        for name in todo:
            self._verify(groups[name], clips.column("clip_id"))

    def _operator_pool(
        self,
        kind: str,
        plan: PoolPlan,
        operators: Mapping[str, Operator],
        versions: Mapping[str, str],
        required: Mapping[str, Mapping[str, MapSource]],
        clips: pa.Table,
        todo: Mapping[str, pa.Array],
    ) -> PlannedPool:
        names = plan.operators
        maps = {name: required[name] for name in names}
        sources = {source for of_one in maps.values() for source in of_one.values()}
        groups = {name: operator_group(kind, name) for name in names}
        work = self.recipe.work
        spec = OperatorSpec(
            corpus_url=self.corpus.store.url,
            operators={name: operators[name] for name in names},
            versions={name: versions[name] for name in names},
            environments=ready_environments(self.recipe, kind, names),
            short_side_px=work.short_side_px,
            required_maps=maps,
            compact=work.storage == "compact",
            limits=work.limits(),
        )
        items, count = clip_items(self.corpus, clips, {name: todo[name] for name in names}, sources)
        title = " + ".join(names) if len(names) <= 2 else f"{len(names)} {kind}s"
        on_death = functools.partial(self._unfinished, groups=groups, sources=sources)
        return PlannedPool(title, spec, items, count, on_death, plan.size, [*groups.values()])

    def _encode(self, clips: pa.Table) -> None:
        options, codec, text_codec = self.recipe.encode, self.recipe.latent_codec, self.recipe.text_codec
        assert options is not None and codec is not None and text_codec is not None
        family, text_family = encode_phase.family_name(options, codec), encode_phase.text_family_name(text_codec)
        streams = self._streams(family, text_family)
        self._write_families(family, text_family, streams)
        self.corpus.save_record(encoded={stream.modality: stream.group for stream in streams})
        present: dict[str, pa.Array] = {}
        todo: dict[str, pa.Array] = {}
        for stream in streams:
            self.corpus.activate_version(stream.group, stream.version)
            if self.scope.retry_failed:
                self.corpus.delete_by_status(stream.group, ["failed"])
            left = missing(self.corpus, stream.group, clips.column("clip_id"))
            if stream.annotator:
                present[stream.modality] = clip_ids_with_modality(self.corpus, stream.annotator, stream.modality)
                left = pc.and_(left, pc.is_in(clips.column("clip_id"), present[stream.modality]))
            if self.captions and stream.modality == encode_phase.TEXT:
                present[encode_phase.TEXT] = clip_ids_with_caption(self.corpus, self.captions)
                left = pc.and_(left, pc.is_in(clips.column("clip_id"), present[encode_phase.TEXT]))
            todo[stream.modality] = left
        limits = dataclasses.replace(self.recipe.work.limits(), max_decoded_bytes=Limits.max_decoded_bytes)
        spec = encode_phase.EncodeSpec(self.corpus.store.url, options, codec, text_codec, tuple(streams), limits)
        sources = {MapSource(stream.annotator, stream.modality) for stream in streams if stream.annotator}
        items, count = clip_items(self.corpus, clips, todo, sources, self.captions)
        groups = {stream.modality: stream.group for stream in streams}
        if count:
            size = gpu_pool if codec.gpus or text_codec.gpus else cpu_pool
            workers = size(self.runner.resources, self.runner.capacity())
            on_death = functools.partial(self._unfinished, groups=groups, sources=sources)
            self._phase([PlannedPool("encode", spec, items, count, on_death, workers, [*groups.values()])])
        for stream in streams if count else ():
            wanted = clips.column("clip_id")
            if stream.modality in present:
                wanted = wanted.filter(pc.is_in(wanted, present[stream.modality]))
            self._verify(stream.group, wanted)

    def _phase(self, planned: Sequence[PlannedPool]) -> None:
        """Run pools at the same time; each counts by itself."""
        pools, counters = [], []
        with ExitStack() as stack:
            for pool in planned:
                counter = stack.enter_context(self.reporter.phase(pool.name, pool.total))
                counters.append(counter)
                pools.append(
                    Pool(
                        pool.name, pool.spec, pool.items, self._reporting(pool.name, counter), pool.on_death, pool.size
                    )
                )
                logger.info("phase %s started: %d items, %d workers", pool.name, pool.total, pool.size.workers)
            self.runner.run_pools(pools)
        for counter in counters:
            logger.info("phase %s finished: %s", counter.phase.name, json.dumps(counter.phase.as_record()))
        self.corpus.recover()  # parts of workers that died in this phase
        compact_if_worthwhile(self.corpus, [group for pool in planned for group in pool.groups])

    def _reporting(self, phase: str, counter: Counter) -> Callable[[ItemOutcome], None]:
        def report(outcome: ItemOutcome) -> None:
            counter.add(outcome.status, outcome.decodes, outcome.vram_mb)
            self.log.outcome(outcome, phase, raise_errors=self.scope.raise_errors)

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
        return clips.filter(pc.is_in(clips.column("clip_id"), self.corpus.kept_clip_id_array(self.recipe.keep)))

    @functools.cached_property
    def required_maps(self) -> dict[str, dict[str, MapSource]]:
        """The maps that each annotator starts from; the annotators in an order in which they can be made."""
        return required_maps(self.recipe, self.corpus)

    def _version(self, name: str, operator: Operator) -> str:
        # the frames an operator sees depend on the working size, so its results do too
        parts: dict[str, Any] = {"operator": operator.version(), "short_side_px": self.recipe.work.short_side_px}
        if operator.kind == "annotator" and self.recipe.work.storage != "full":
            parts["storage"] = self.recipe.work.storage
        parts |= environment_facts(self.recipe, operator.kind, name)
        maps = self.required_maps[name] if operator.kind == "annotator" else {}
        if maps:  # and on the maps it starts from
            parts["maps"] = [[*source, self._group_version(source.annotator)] for source in maps.values()]
        return fingerprint(**parts)

    def _unfinished(self, held: list[Any], groups: dict[str, str], sources: Collection[MapSource]) -> list[Any]:
        """After a worker's death: its journals are sealed, and what they hold needs no second run."""
        self.corpus.recover()
        left = []
        for item in held:
            one = pa.array([item.clip.clip_id], pa.string())
            todo = tuple(
                name for name in item.todo if not pc.any(pc.is_in(one, self.corpus.done(groups[name]))).as_py()
            )
            if todo:  # what it had finished may be what the others start from
                stored = {source: found[0].as_py() for source, found in extents(self.corpus, sources, one).items()}
                left.append(dataclasses.replace(item, todo=todo, stored=stored))
        return left

    def _unfinished_sources(self, held: list[SourceItem]) -> list[SourceItem]:
        self.corpus.recover()
        return self._new_sources([item.source for item in held])

    # ------------------------------------------------------------------ encode plans

    def _streams(self, family: str, text_family: str) -> list[encode_phase.EncodeStream]:
        assert self.recipe.encode is not None
        streams = []
        for name in self.recipe.encode.modalities:
            annotator, _, modality = name.rpartition(".")
            group = latent_group(family, modality)
            if modality == "rgb" and not annotator:
                streams.append(encode_phase.EncodeStream(modality, "", group, family))
                continue
            annotator = annotator or annotator_of(modality, "[encode] modalities", self.recipe, self.corpus)
            version = fingerprint(family=family, source=self._group_version(annotator), annotator=annotator)
            streams.append(encode_phase.EncodeStream(modality, annotator, group, version))
        version = text_family
        if self.captions:  # other texts, or the same column made anew: other embeddings
            made = self._group_version(self.captions.annotator)
            version = fingerprint(family=text_family, source=made, captions=".".join(self.captions))
        streams.append(encode_phase.EncodeStream(encode_phase.TEXT, "", text_group(text_family), version))
        return streams

    @functools.cached_property
    def captions(self) -> CaptionColumn | None:
        """The annotator's column that captions are taken from; None: the clips' own."""
        given = self.recipe.encode.caption if self.recipe.encode else ""
        return caption_column(given, self.recipe.annotators, self.corpus) if given else None

    def _group_version(self, annotator: str) -> str:
        if annotator in self.recipe.annotators and self.scope.covers(annotator):
            return self._version(annotator, self.recipe.annotators[annotator])
        return self.corpus.group_version(annotation_group(annotator))

    def _write_families(self, family: str, text_family: str, streams: list[encode_phase.EncodeStream]) -> None:
        options, codec, text_codec = self.recipe.encode, self.recipe.latent_codec, self.recipe.text_codec
        assert options is not None and codec is not None and text_codec is not None
        record = encode_phase.family_record(options, codec, streams)
        known = self.corpus.families().get(family, {}).get("modalities", [])
        record["modalities"] = sorted({*record["modalities"], *known})
        self.corpus.write_json(family_record(LATENTS, family), record)
        text_record = encode_phase.text_family_record(text_codec, ".".join(self.captions or ()))
        self.corpus.write_json(family_record(TEXT, text_family), text_record)

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

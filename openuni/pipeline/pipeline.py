"""A run: phases over a corpus, each planned from what is already there.

ingest (sources -> clips), filter (scores for every clip), annotate (modalities of kept clips), encode (latents and
text embeddings). A plan is "what should have a row in the group, less what has one": so a run resumes by itself.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from openuni.config.captions import CaptionColumn, caption_column, captions, clip_ids_with_caption
from openuni.config.recipe import CorpusRecipe
from openuni.console.progress import Reporter
from openuni.dedup.deduplicator import not_compared_reason
from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.operator import Operator
from openuni.manifests.corpus.compaction import compact_if_worthwhile
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
from openuni.manifests.corpus.splits import write_pending_splits
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.decoder.limits import Limits
from openuni.pipeline import encode_phase, shot_splitting
from openuni.pipeline.ingest_phase import IngestSpec, SourceItem
from openuni.pipeline.ledger import run_ledger
from openuni.pipeline.map_sources import MapSource, annotator_of, extents, required_maps
from openuni.pipeline.operator_phase import OperatorSpec
from openuni.pipeline.phases import ClipItem
from openuni.pipeline.run_log import RunLog
from openuni.pipeline.runners.resources import Runner
from openuni.pipeline.scope import RunScope
from openuni.pipeline.worker import ItemOutcome, Spec

logger = logging.getLogger(__name__)
WINDOW_ROWS = 50_000  # clips whose stored maps are looked up at a time: a plan of millions stays columnar
INGEST_VERSION = "1"
_INTERNAL_ERROR_HINT = "Internal error: rerun the command; if it persists, report it with the log of this run in runs/."


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
        self._phase("ingest", spec, new, len(new), self._unfinished_sources, [CLIPS])
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
            todo[name] = self._missing(group, clips.column("clip_id"))
        wanted = {name: wanted[name] for name in chosen}
        work = self.recipe.work
        compact, limits = work.storage == "compact", work.limits()
        spec = OperatorSpec(self.corpus.store.url, chosen, versions, work.short_side_px, wanted, compact, limits)
        names = " + ".join(chosen) if len(chosen) <= 2 else f"{len(chosen)} {kind}s"
        sources = {source for maps in wanted.values() for source in maps.values()}
        items, count = self._clip_items(clips, todo, sources)
        self._phase(names, spec, items, count, lambda held: self._unfinished(held, groups, sources), [*groups.values()])
        for group in groups.values() if count else ():
            self._verify(group, clips.column("clip_id"))

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
            missing = self._missing(stream.group, clips.column("clip_id"))
            if stream.annotator:
                present[stream.modality] = clip_ids_with_modality(self.corpus, stream.annotator, stream.modality)
                missing = pc.and_(missing, pc.is_in(clips.column("clip_id"), present[stream.modality]))
            if self.captions and stream.modality == encode_phase.TEXT:
                present[encode_phase.TEXT] = clip_ids_with_caption(self.corpus, self.captions)
                missing = pc.and_(missing, pc.is_in(clips.column("clip_id"), present[encode_phase.TEXT]))
            todo[stream.modality] = missing
        limits = dataclasses.replace(self.recipe.work.limits(), max_decoded_bytes=Limits.max_decoded_bytes)
        spec = encode_phase.EncodeSpec(self.corpus.store.url, options, codec, text_codec, tuple(streams), limits)
        sources = {MapSource(stream.annotator, stream.modality) for stream in streams if stream.annotator}
        items, count = self._clip_items(clips, todo, sources, self.captions)
        groups = {stream.modality: stream.group for stream in streams}
        on_death = functools.partial(self._unfinished, groups=groups, sources=sources)
        self._phase("encode", spec, items, count, on_death, list(groups.values()))
        for stream in streams if count else ():
            wanted = clips.column("clip_id")
            if stream.modality in present:
                wanted = wanted.filter(pc.is_in(wanted, present[stream.modality]))
            self._verify(stream.group, wanted)

    def _phase(
        self,
        name: str,
        spec: Spec,
        items: Iterable[Any],
        count: int,
        on_death: Callable[[list[Any]], list[Any]],
        groups: Sequence[str],
    ) -> None:
        if not count:
            return
        with self.reporter.phase(name, count) as counter:

            def report(outcome: ItemOutcome) -> None:
                counter.add(outcome.status, outcome.decodes, outcome.vram_mb)
                self.log.outcome(outcome, name, raise_errors=self.scope.raise_errors)

            logger.info("phase %s started: %d items", name, count)
            self.runner.run(spec, items, report, on_death)
            logger.info("phase %s finished: %s", name, json.dumps(counter.phase.as_record()))
        self.corpus.recover()  # parts of workers that died in this phase
        compact_if_worthwhile(self.corpus, groups)

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

    def _missing(self, group: str, wanted: pa.ChunkedArray | pa.Array) -> pa.Array:
        """Which of the clips wanted have no row in the group, booleans; raises when one has several."""
        if isinstance(wanted, pa.ChunkedArray):
            wanted = wanted.combine_chunks()
        found = self.corpus.table(group, ["clip_id"]).column("clip_id")
        places = pc.index_in(found, value_set=wanted).drop_null()
        rows = np.bincount(places.to_numpy(), minlength=len(wanted))
        if (rows > 1).any():
            raise OpenUniError(
                f"{group}: {(rows > 1).sum()} of {len(wanted)} clips have more than one row. {_INTERNAL_ERROR_HINT}"
            )
        return pa.array(rows == 0)

    @functools.cached_property
    def required_maps(self) -> dict[str, dict[str, MapSource]]:
        """The maps that each annotator starts from; the annotators in an order in which they can be made."""
        return required_maps(self.recipe, self.corpus)

    def _version(self, name: str, operator: Operator) -> str:
        # the frames an operator sees depend on the working size, so its results do too
        parts: dict[str, Any] = {"operator": operator.version(), "short_side_px": self.recipe.work.short_side_px}
        if operator.kind == "annotator" and self.recipe.work.storage != "full":
            parts["storage"] = self.recipe.work.storage
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

    def _clip_items(
        self,
        clips: pa.Table,
        todo: dict[str, pa.Array],
        sources: Collection[MapSource],
        texts: CaptionColumn | None = None,
    ) -> tuple[Iterator[ClipItem], int]:
        """The clips for which anything is left to do, with the places of the stored maps that this starts from.

        `texts`: where the clips' captions are taken from instead of their own rows.
        """
        plan = _plan(clips, todo)

        def items() -> Iterator[ClipItem]:
            for start in range(0, len(plan), WINDOW_ROWS):
                window = plan.slice(start, WINDOW_ROWS)
                ids = window.column("clip_id").combine_chunks()
                stored = extents(self.corpus, sources, ids)
                said = captions(self.corpus, texts, ids) if texts else []
                for position, (clip, names) in enumerate(self._rows(window, list(todo))):
                    if texts:
                        clip = dataclasses.replace(clip, caption=said[position].as_py())
                    places = {source: found[position].as_py() for source, found in stored.items()}
                    yield ClipItem(clip, names, places)

        return items(), len(plan)

    def _rows(self, plan: pa.Table, names: Sequence[str]) -> Iterator[tuple[Clip, tuple[str, ...]]]:
        """Each clip of a plan, and which of the names it is planned for."""
        start = 0
        for table in self.corpus.clip_list.tables(plan.column("row").to_numpy()):
            todo = plan.slice(start, len(table)).to_pylist()
            start += len(table)
            for row, planned in zip(table.to_pylist(), todo, strict=True):
                yield self.corpus.clip_list.clip_of_row(row), tuple(name for name in names if planned[f"todo:{name}"])

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
            raise OpenUniError(f"clips: {len(lost)} of {len(items)} sources have no row. {_INTERNAL_ERROR_HINT}")
        ids = self.corpus.table("clips", ["clip_id"]).column("clip_id")
        if pc.count_distinct(ids).as_py() != len(ids):
            raise OpenUniError(
                f"clips: {len(ids) - pc.count_distinct(ids).as_py()} duplicate rows. {_INTERNAL_ERROR_HINT}"
            )

    def _verify(self, group: str, wanted: pa.ChunkedArray | pa.Array) -> None:
        """Every planned clip has exactly one row, or the run ends with an error."""
        lost = pc.sum(self._missing(group, wanted)).as_py()
        if lost:
            raise OpenUniError(f"{group}: {lost} of {len(wanted)} clips have no row. {_INTERNAL_ERROR_HINT}")


def _plan(clips: pa.Table, todo: dict[str, pa.Array]) -> pa.Table:
    """The clips for which anything is left to do, with a column `todo:NAME` for each operator."""
    plan, anything = clips, None
    for name, mask in todo.items():
        plan = plan.append_column(f"todo:{name}", mask)
        anything = mask if anything is None else pc.or_(anything, mask)
    return plan.filter(anything) if anything is not None else plan.slice(0, 0)

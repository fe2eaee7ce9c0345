"""A run: phases over a corpus, each planned from what is already there.

ingest (sources -> clips), filter (scores for every clip), annotate (modalities of kept clips), encode (latents and
text embeddings). A plan is "what should have a row in the group, less what has one": so a run resumes by itself.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from manifests import schema
from manifests.component import fingerprint
from manifests.corpus import Corpus, clip_of_row, operator_folder, status_column
from manifests.errors import OpenUniError
from manifests.fates import Summary
from manifests.operator import Operator
from openuni import encode
from openuni.phases import ClipItem, IngestSpec, OperatorSpec, SourceItem
from openuni.progress import Reporter
from openuni.recipe import Recipe
from openuni.runner import Outcome, Runner, Spec

BATCH_ROWS = 1000  # rows of the plan turned into Python objects at a time: a plan of millions stays columnar
INGEST_VERSION = "1"


@dataclass(frozen=True)
class Scope:
    """What part of a run to do."""

    limit: int | None = None  # only the first so many sources
    only: tuple[str, ...] = ()  # only these operators, or "ingest", "encode"; empty: all
    add: bool = False  # sources that share nothing with the corpus's may be added to it
    retry_failed: bool = False  # do failed rows again

    def covers(self, name: str) -> bool:
        """Whether the operator or phase of that name is to run."""
        return not self.only or name in self.only


@dataclass
class Pipeline:
    """One run of one recipe on one corpus."""

    recipe: Recipe
    corpus: Corpus
    runner: Runner
    reporter: Reporter
    scope: Scope = Scope()

    def run(self, sources: Sequence[str]) -> Summary:
        """All phases; returns the corpus's ledger. The corpus's lock is held by the caller."""
        started = datetime.now(UTC)
        self._check_sources(sources)
        saved = self.corpus.recover()
        if saved:
            self.reporter.say(f"recovered {saved:,} finished rows of a run that was killed")
        filters, annotators = list(self.recipe.filters), list(self.recipe.annotators)
        self.corpus.save_record(keep=self.recipe.keep, filters=filters, annotators=annotators)
        try:
            self._ingest(sources)
            clips = self._clips(sources)
            self._operators("filter", self.recipe.filters, lambda: clips)
            self._operators("annotator", self.recipe.annotators, lambda: self._kept(clips))
            if self.recipe.encode is not None and self.scope.covers("encode"):
                self._encode(self._kept(clips))
            summary = self.corpus.summary()
        except BaseException as error:
            self._write_ledger(started, None, f"{type(error).__name__}: {error}")
            raise
        self._write_ledger(started, summary, None)
        return summary

    # ------------------------------------------------------------------ phases

    def _ingest(self, sources: Sequence[str]) -> None:
        if not self.scope.covers("ingest"):
            return
        if self.scope.retry_failed:
            self.corpus.forget("clips", ["failed"])
        known = set(self.corpus.table("clips", ["source"]).column("source").to_pylist()) if self._has_clips() else set()
        new = [SourceItem(source) for source in sources[: self.scope.limit] if source not in known]
        spec = IngestSpec(self.corpus.store.url, self.recipe.ingest, INGEST_VERSION)
        self._phase("ingest", spec, new, len(new), self._unfinished_sources)
        self.corpus.refresh()
        self._verify("clips", pa.array([item.source for item in new], pa.string()), "source")

    def _operators(self, kind: str, operators: Any, clips_of_phase: Callable[[], pa.Table]) -> None:
        chosen = {name: operator for name, operator in operators.items() if self.scope.covers(name)}
        if not chosen:
            return
        clips = clips_of_phase()
        versions = {name: self._version(operator) for name, operator in chosen.items()}
        groups = {name: f"{operator_folder(kind)}/{name}" for name in chosen}
        todo = {}
        for name, group in groups.items():
            self.corpus.settle(group, versions[name])
            if self.scope.retry_failed:
                self.corpus.forget(group, ["failed", "unavailable"])
            todo[name] = self._missing(clips, group)
        spec = OperatorSpec(self.corpus.store.url, chosen, versions, self.recipe.work.short_side_px)
        names = " + ".join(chosen) if len(chosen) <= 2 else f"{len(chosen)} {kind}s"
        items, count = _clip_items(clips, todo)
        self._phase(names, spec, items, count, lambda held: self._unfinished(held, groups))
        for group in groups.values():
            self._verify(group, clips.column("clip_id"), "clip_id")

    def _encode(self, clips: pa.Table) -> None:
        options, codec, text_codec = self.recipe.encode, self.recipe.latent_codec, self.recipe.text_codec
        assert options is not None and codec is not None and text_codec is not None
        family, text_family = encode.family_name(options, codec), encode.text_family_name(text_codec)
        streams = self._streams(family, text_family)
        self._write_families(family, text_family, streams)
        tables: dict[str, pa.Table] = {}
        todo: dict[str, pa.ChunkedArray] = {}
        for stream in streams:
            self.corpus.settle(stream.group, stream.version)
            if self.scope.retry_failed:
                self.corpus.forget(stream.group, ["failed"])
            missing = self._missing(clips, stream.group)
            if stream.annotator:
                tables[stream.modality] = self._extents(stream)
                present = tables[stream.modality].column("clip_id")
                missing = pc.and_(missing, pc.is_in(clips.column("clip_id"), present.combine_chunks()))
            todo[stream.modality] = missing
        spec = encode.EncodeSpec(self.corpus.store.url, options, codec, text_codec, tuple(streams))
        items, count = _encode_items(clips, todo, tables)
        groups = {stream.modality: stream.group for stream in streams}
        self._phase("encode", spec, items, count, lambda held: self._unfinished(held, groups))
        for stream in streams:
            wanted = clips.column("clip_id")
            if stream.annotator:
                wanted = wanted.filter(pc.is_in(wanted, tables[stream.modality].column("clip_id").combine_chunks()))
            self._verify(stream.group, wanted, "clip_id")

    def _phase(
        self,
        name: str,
        spec: Spec,
        items: Iterable[Any],
        count: int,
        on_death: Callable[[list[Any]], list[Any]],
    ) -> None:
        if not count:
            return
        with self.reporter.phase(name, count) as counter:

            def report(outcome: Outcome) -> None:
                counter.add(outcome.status)

            self.runner.run(spec, items, report, on_death)
        self.corpus.recover()  # parts of workers that died in this phase

    # ------------------------------------------------------------------ plans

    def _has_clips(self) -> bool:
        return bool(self.corpus.parts("clips"))

    def _check_sources(self, sources: Sequence[str]) -> None:
        if not self._has_clips() or self.scope.add:
            return
        known = self.corpus.table("clips", ["source"]).column("source")
        if not pc.any(pc.is_in(known, pa.array(list(sources), pa.string()))).as_py():
            raise OpenUniError(
                f"{self.corpus.store.url} already holds another corpus: {len(known):,} clips, such as {known[0]}, and "
                "none of the sources given now. Choose another --out, or add these sources to it with --add."
            )

    def _clips(self, sources: Sequence[str]) -> pa.Table:
        clips = self.corpus.clips
        if self.scope.limit is None:
            return clips
        within = pa.array(list(sources[: self.scope.limit]), pa.string())
        return clips.filter(pc.is_in(clips.column("source"), within))

    def _kept(self, clips: pa.Table) -> pa.Table:
        kept = pa.array(self.corpus.kept(self.recipe.keep), pa.string())
        return clips.filter(pc.is_in(clips.column("clip_id"), kept))

    def _missing(self, clips: pa.Table, group: str) -> pa.ChunkedArray:
        return pc.invert(pc.is_in(clips.column("clip_id"), self.corpus.done(group)))

    def _version(self, operator: Operator) -> str:
        # the frames an operator sees depend on the working size, so its results do too
        return fingerprint(operator=operator.version(), short_side_px=self.recipe.work.short_side_px)

    def _unfinished(self, held: list[Any], groups: dict[str, str]) -> list[Any]:
        """After a worker's death: its journals are sealed, and what they hold needs no second run."""
        self.corpus.recover()
        left = []
        for item in held:
            one = pa.array([item.clip.clip_id], pa.string())
            todo = tuple(
                name for name in item.todo if not pc.any(pc.is_in(one, self.corpus.done(groups[name]))).as_py()
            )
            if todo:
                left.append(dataclasses.replace(item, todo=todo))
        return left

    def _unfinished_sources(self, held: list[SourceItem]) -> list[SourceItem]:
        self.corpus.recover()
        known = set(self.corpus.table("clips", ["source"]).column("source").to_pylist()) if self._has_clips() else set()
        return [item for item in held if item.source not in known]

    # ------------------------------------------------------------------ encode plans

    def _streams(self, family: str, text_family: str) -> list[encode.Stream]:
        assert self.recipe.encode is not None
        streams = []
        for name in self.recipe.encode.modalities:
            annotator, _, modality = name.rpartition(".")
            group = f"latents/{family}/{modality}"
            if modality == "rgb" and not annotator:
                streams.append(encode.Stream(modality, "", group, family))
                continue
            annotator = annotator or self._annotator_of(modality)
            version = fingerprint(family=family, source=self._group_version(annotator), annotator=annotator)
            streams.append(encode.Stream(modality, annotator, group, version))
        streams.append(encode.Stream(encode.TEXT, "", f"text/{text_family}", text_family))
        return streams

    def _annotator_of(self, modality: str) -> str:
        return annotator_of(modality, self.recipe, self.corpus)

    def _group_version(self, annotator: str) -> str:
        if annotator in self.recipe.annotators:
            return self._version(self.recipe.annotators[annotator])
        return self.corpus.group_version(f"annotations/{annotator}")

    def _extents(self, stream: encode.Stream) -> pa.Table:
        """clip_id and the stored map's columns, for the clips that have it."""
        group = f"annotations/{stream.annotator}"
        table = self.corpus.table(group)
        if stream.annotator not in table.column_names:
            return pa.table({"clip_id": pa.array([], pa.string()), "extent": pa.array([], pa.null())})
        maps = pc.struct_field(table.column(stream.annotator), stream.modality)
        present = pc.and_(pc.equal(status_column(table, group), "ok"), pc.is_valid(pc.struct_field(maps, "shard")))
        return pa.table({"clip_id": table.column("clip_id"), "extent": maps}).filter(present)

    def _write_families(self, family: str, text_family: str, streams: list[encode.Stream]) -> None:
        options, codec, text_codec = self.recipe.encode, self.recipe.latent_codec, self.recipe.text_codec
        assert options is not None and codec is not None and text_codec is not None
        record = encode.family_record(options, codec, streams)
        known = self.corpus.families().get(family, {}).get("modalities", [])
        record["modalities"] = sorted({*record["modalities"], *known})
        self.corpus.put_json(f"latents/{family}/family.json", record)
        text_record = {
            "codec": text_codec.name(),
            "options": dataclasses.asdict(text_codec),
            "version": text_codec.version(),
        }
        self.corpus.put_json(f"text/{text_family}/family.json", text_record)

    # ------------------------------------------------------------------ conservation

    def _verify(self, group: str, wanted: pa.ChunkedArray | pa.Array, column: str) -> None:
        """Every planned clip has exactly one row, or the run ends with an error."""
        if not len(wanted):
            return
        found = self.corpus.table(group, [column]).column(column).combine_chunks()
        lost = pc.sum(pc.invert(pc.is_in(wanted, found))).as_py() or 0
        twice = len(found) - len(pc.unique(found))
        if lost or twice:
            raise OpenUniError(
                f"{group}: {lost} of {len(wanted)} clips have no row and {twice} have more than one. "
                "Run again; if it stays, please report it with the file of this run in runs/."
            )

    def _write_ledger(self, started: datetime, summary: Summary | None, error: str | None) -> None:
        name = f"{started.strftime('%Y%m%dT%H%M%S')}-{uuid4().hex[:6]}"
        record = {
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "recipe": json.loads(json.dumps(self.recipe.as_tables(), default=list)),
            "scope": dataclasses.asdict(self.scope),
            "phases": [phase.as_record() for phase in self.reporter.phases],
            "summary": summary_record(summary) if summary else None,
            "error": error,
        }
        self.corpus.put_json(f"runs/{name}.json", record)


def annotator_of(modality: str, recipe: Recipe, corpus: Corpus | None = None) -> str:
    """The annotator that makes a modality: of the recipe, else of the corpus. Raises when none or several do."""
    makers = [
        name
        for name, operator in recipe.annotators.items()
        if any(kind.name == modality for kind in schema.modality_fields(type(operator)).values())
    ]
    if not makers and corpus is not None:
        makers = [name for name in corpus.operators("annotator") if corpus.has_modality(name, modality)]
    if len(makers) == 1:
        return makers[0]
    if makers:
        named = ", ".join(f'"{name}.{modality}"' for name in makers)
        raise OpenUniError(f'[encode] modalities: several annotators make "{modality}". Name one: {named}.')
    raise OpenUniError(
        f'[encode] modalities: no annotator of this recipe makes "{modality}". Add one under [annotators.NAME]; '
        "openuni list shows what there is."
    )


def summary_record(summary: Summary) -> dict[str, Any]:
    """A ledger as JSON-able tables."""
    record = summary._asdict()
    record["dropped"] = [drop._asdict() for drop in summary.dropped]
    record["failed"] = [failure._asdict() for failure in summary.failed]
    return record


def _clip_items(clips: pa.Table, todo: dict[str, pa.ChunkedArray]) -> tuple[Iterator[ClipItem], int]:
    plan, count = _plan(clips, todo)

    def items() -> Iterator[ClipItem]:
        for row in _rows(plan):
            yield ClipItem(clip_of_row(row), tuple(name for name in todo if row[f"todo:{name}"]))

    return items(), count


def _encode_items(
    clips: pa.Table, todo: dict[str, pa.ChunkedArray], tables: dict[str, pa.Table]
) -> tuple[Iterator[encode.EncodeItem], int]:
    plan, count = _plan(clips, todo)

    def items() -> Iterator[encode.EncodeItem]:
        for start in range(0, len(plan), BATCH_ROWS):
            batch = plan.slice(start, BATCH_ROWS)
            ids = batch.column("clip_id").combine_chunks()
            extents: dict[str, list[Any]] = {}
            for name, table in tables.items():
                positions = pc.index_in(ids, table.column("clip_id").combine_chunks())
                extents[name] = table.column("extent").take(positions).to_pylist()
            for number, row in enumerate(batch.to_pylist()):
                names = tuple(name for name in todo if row[f"todo:{name}"])
                mine = {name: extents[name][number] for name in names if name in extents}
                yield encode.EncodeItem(clip_of_row(row), names, mine)

    return items(), count


def _plan(clips: pa.Table, todo: dict[str, pa.ChunkedArray]) -> tuple[pa.Table, int]:
    """The clips for which anything is left to do, with a column `todo:NAME` for each operator."""
    plan, anything = clips, None
    for name, mask in todo.items():
        plan = plan.append_column(f"todo:{name}", mask)
        anything = mask if anything is None else pc.or_(anything, mask)
    plan = plan.filter(anything) if anything is not None else plan.slice(0, 0)
    return plan, len(plan)


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for start in range(0, len(table), BATCH_ROWS):
        yield from table.slice(start, BATCH_ROWS).to_pylist()

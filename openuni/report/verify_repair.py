"""`openuni verify --repair`: set damaged files aside, so that the next run recomputes exactly what was lost."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from openuni.config.captions import caption_column
from openuni.config.recipe import CorpusRecipe
from openuni.manifests.contracts.discovery import component_names
from openuni.manifests.corpus.corpus import Corpus, new_record
from openuni.manifests.corpus.layout import (
    CLIPS,
    CORPUS_RECORD,
    LATENTS,
    OPERATOR_FOLDERS,
    PART_SUFFIX,
    SHARD_SUFFIXES,
    TEXT,
    family_record,
    in_folder,
    latent_group,
    operator_of,
    set_aside,
    visible_group,
)
from openuni.manifests.corpus.parts.part_files import read_part, table_bytes
from openuni.manifests.corpus.parts.part_listing import delete_replaced, rows_with_shard, shards_of
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.checksums import record_bytes
from openuni.pipeline import encode_phase, shot_splitting
from openuni.report.verify_findings import Findings
from openuni.report.verify_report import Damage


class Repair:
    """The repair of one corpus, whose lease the caller holds. Nothing is deleted: see the folder `damaged/TIME/`."""

    def __init__(self, found: Findings) -> None:
        self.found, self.store = found, found.store
        self.time = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
        self.moved: set[str] = set()  # parts, without suffix
        self.restored: set[str] = set()  # records
        self.ledgers = list(Corpus(self.store, {}).runs())
        self.imports = [ledger["import"] for ledger in self.ledgers if isinstance(ledger.get("import"), dict)]

    def run(self) -> Findings:
        """Set everything damaged aside; the findings say what was done about each."""
        self._find_rows_of_bad_shards()
        self._remove_imported_clips()
        for name in self.found.bad_records:
            self._set_aside(name)
        self._restore_records()
        for part in self.found.bad_parts:
            self._set_aside_part(part)
        for shard in self.found.bad_shards:
            if self.store.exists(_own_part(shard)):
                self._set_aside_part(_own_part(shard))
        for part, rows in self.found.bad_rows.items():
            self._remove_rows(part, rows)
        for shard in self.found.bad_shards:
            self._set_aside(shard)
        self.found.damage = [damage._replace(repaired=self._done(damage)) for damage in self.found.damage]
        return self.found

    def _done(self, damage: Damage) -> str:
        """What was done about a finding, and what recomputes it."""
        place = set_aside("", self.time)
        if damage.kind == "record":
            rebuilt = "; rebuilt from the recipe of an earlier run" if damage.file in self.restored else ""
            return f"moved to {place}{rebuilt}"
        if damage.kind == "duplicate":
            return f"one row of each clip kept; the former part is in {place}"
        group = visible_group(damage.file.rpartition("/")[0])
        if group == CLIPS or self._is_import(group):
            again = "run again with the sources, or import again"
        else:
            again = "the next run recomputes them"
        is_moved = damage.file.rpartition(".")[0] in self.moved
        if not is_moved and damage.clips is not None:
            return f"rows of {damage.clips:,} clips removed ({again}); the former part is in {place}"
        return f"moved to {place}; {again}"

    # ------------------------------------------------------------------ files

    def _set_aside(self, name: str) -> None:
        if self.store.exists(name):
            self.store.move(name, set_aside(name, self.time))

    def _set_aside_part(self, part: str) -> None:
        """The Parquet file first: rows must never lack their payloads."""
        self.moved.add(part.removesuffix(PART_SUFFIX))
        own = [part.removesuffix(PART_SUFFIX) + suffix for suffix in SHARD_SUFFIXES]
        shards = self.found.shards.pop(part, set())
        for name in (part, *own, *sorted(self._unused(shards))):
            self._set_aside(name)
        self.found.bad_rows = {name: rows for name, rows in self.found.bad_rows.items() if name != part}

    def _unused(self, shards: set[str]) -> set[str]:
        """Those to which no part refers."""
        return shards.difference(*self.found.shards.values())

    def _remove_rows(self, part: str, rows: set[int]) -> None:
        if not self.store.exists(part):
            return
        table = read_part(self.store, part)
        keep = np.ones(len(table), bool)
        keep[sorted(rows)] = False
        self.store.put(set_aside(part, self.time), self.store.read(part))
        if keep.any():
            remaining = table.filter(pa.array(keep))
            self.store.put(part, table_bytes(remaining))
            shards = self.found.shards.get(part, set())
            self.found.shards[part] = {in_folder(part.rpartition("/")[0], shard) for shard in shards_of(remaining)}
            for shard in sorted(self._unused(shards)):
                if _own_part(shard) != part:
                    self._set_aside(shard)
        else:
            self.store.delete(part)  # a copy has just been set aside
            self._set_aside_part(part)

    def _find_rows_of_bad_shards(self) -> None:
        """A merged part refers to several shards: only the rows of the bad ones are removed."""
        for shard in self.found.bad_shards:
            name = shard.rpartition("/")[2]
            for part, shards in self.found.shards.items():
                if shard in shards and part != _own_part(shard) and part not in self.found.bad_parts:
                    self.found.bad_rows.setdefault(part, set()).update(rows_with_shard(self.store, part, name))

    # ------------------------------------------------------------------ clips and records

    def _remove_imported_clips(self) -> None:
        """Clips whose imported maps are lost must be imported again, which their rows in clips/ would prevent."""
        lost = [
            read_part(self.store, part, ["clip_id"]).column("clip_id").take(pa.array(sorted(rows)))
            for part, rows in self.found.bad_rows.items()
            if self._is_import(part.rpartition("/")[0])
        ]
        for part in self._parts_set_aside():
            if self._is_import(part.rpartition("/")[0]) and part not in self.found.bad_parts:
                lost.append(read_part(self.store, part, ["clip_id"]).column("clip_id"))
        lost += [self._without_import(part.rpartition("/")[0]) for part in self.found.bad_parts]
        ids = pa.chunked_array([chunk for column in lost for chunk in column.chunks], pa.string())
        if not len(ids):
            return
        for clips in self.found.parts:
            if clips.folder == CLIPS:
                mask = pc.is_in(read_part(self.store, clips.name, ["clip_id"]).column("clip_id"), value_set=ids)
                if rows := set(np.flatnonzero(mask.to_numpy()).tolist()):
                    self.found.bad_rows.setdefault(clips.name, set()).update(rows)

    def _without_import(self, group: str) -> pa.ChunkedArray:
        """Clips of the collections that were imported into a group, without a row there: it was in a damaged part."""
        none = pa.chunked_array([], pa.string())
        if not self._is_import(group):
            return none
        imports = [one for one in self.imports if one.get("format") == operator_of(group)]
        collections = pa.array({str(one.get("collection")) for one in imports}, pa.string())
        rows = [part.name for part in self.found.parts if part.folder == group]
        done = [read_part(self.store, name, ["clip_id"]).column("clip_id") for name in rows]
        known = pa.chunked_array([chunk for column in done for chunk in column.chunks], pa.string())
        found = [none]
        for part in self.found.parts:
            if part.folder == CLIPS:
                table = read_part(self.store, part.name, ["clip_id", "collection", "status"])
                imported = pc.is_in(table.column("collection"), value_set=collections)
                accepted = pc.and_(imported, pc.equal(table.column("status"), "ok"))
                ids = table.filter(accepted).column("clip_id")
                found.append(ids.filter(pc.invert(pc.is_in(ids, value_set=known))))
        return pa.chunked_array([chunk for column in found for chunk in column.chunks], pa.string())

    def _is_import(self, folder: str) -> bool:
        """Whether the rows of a column group come from an importer."""
        names = {*component_names("importers"), *(str(one.get("format")) for one in self.imports)}
        return folder.startswith(OPERATOR_FOLDERS["annotator"]) and operator_of(folder) in names

    def _parts_set_aside(self) -> list[str]:
        """Sound parts that go because of their shards."""
        stems = {shard.rpartition(".")[0] for shard in self.found.bad_shards}
        return [part.name for part in self.found.parts if part.name.removesuffix(PART_SUFFIX) in stems]

    def _restore_records(self) -> None:
        """Write corpus.json and family.json anew from the recipes of earlier runs, the newest first."""
        recipes = [recipe for ledger in reversed(self.ledgers) if (recipe := _recipe_of(ledger)) is not None]
        for name in self.found.bad_records:
            if name == CORPUS_RECORD:
                self._write(name, self._corpus_record(recipes))
            elif record := self._family(name, recipes):  # prompts.json has none: training computes what is in it
                self._write(name, record)

    def _corpus_record(self, recipes: list[CorpusRecipe]) -> dict[str, Any]:
        """Without a recipe: no keep rule and no operators, until the next run."""
        record = new_record()
        for recipe in recipes[:1]:
            record["keep"] = recipe.keep
            record["filters"], record["annotators"] = list(recipe.filters), list(recipe.annotators)
            record["cut"] = shot_splitting.version(recipe.shot_detector, recipe.ingest)
        return record

    def _family(self, name: str, recipes: list[CorpusRecipe]) -> dict[str, Any] | None:
        """The record of a latent or text family, from the newest recipe that encodes into it."""
        folder, _, _ = name.rpartition("/")
        kind, _, family = folder.partition("/")
        if name != family_record(kind, family):
            return None
        for recipe in recipes:
            options, codec, text_codec = recipe.encode, recipe.latent_codec, recipe.text_codec
            if options is None or codec is None or text_codec is None:
                continue
            if kind == LATENTS and encode_phase.family_name(options, codec) == family:
                found = self.store.folders(folder)
                streams = [encode_phase.EncodeStream(one, "", latent_group(family, one), family) for one in found]
                return encode_phase.family_record(options, codec, streams)
            if kind == TEXT and encode_phase.text_family_name(text_codec) == family:
                try:
                    return encode_phase.text_family_record(text_codec, self._caption(recipe))
                except OpenUniError:  # its caption column does not exist here
                    continue
        return None

    def _caption(self, recipe: CorpusRecipe) -> str:
        """The caption column that a recipe embeds; empty: the clips' own captions."""
        given = recipe.encode.caption if recipe.encode else ""
        return ".".join(caption_column(given, recipe.annotators, Corpus(self.store, {}))) if given else ""

    def _write(self, name: str, record: Mapping[str, Any]) -> None:
        self.store.put(name, record_bytes(record))
        self.restored.add(name)


def finish_interrupted(found: Findings) -> None:
    """Delete the parts that killed compactions have left behind; each merged part was found sound."""
    for merged, replaced in found.replaced.items():
        delete_replaced(found.store, merged, replaced)
        found.notes.append(f"{merged}: {len(replaced):,} parts that it replaces were left and have been deleted")
    found.replaced.clear()


def _own_part(shard: str) -> str:
    """The part that was written together with a shard; it may have been merged into another."""
    return shard.rpartition(".")[0] + PART_SUFFIX


def _recipe_of(ledger: Mapping[str, Any]) -> CorpusRecipe | None:
    """The recipe of a run; None for imports, and for recipes with components that are not installed here."""
    try:
        given = ledger.get("recipe")
        return CorpusRecipe.parse(given, imports=False) if isinstance(given, dict) else None
    except OpenUniError:
        return None

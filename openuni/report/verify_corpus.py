"""Verification of a corpus: records, Parquet parts, payloads, rows."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from openuni.console.progress import Reporter
from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus.column_groups import ColumnGroups, status_column
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import (
    CLIPS,
    CORPUS_RECORD,
    FAILURES_SUFFIX,
    LATENTS,
    PART_SUFFIX,
    RUNS,
    SHARD_SUFFIXES,
    SUPERSEDED,
    TEXT,
    annotation_group,
    family_record,
    filter_group,
    in_folder,
    latent_group,
    operator_of,
    prompts_record,
    superseded,
    visible_group,
)
from openuni.manifests.corpus.parts.checked_dataset import parts_dataset
from openuni.manifests.corpus.parts.part_files import read_part, verify_part
from openuni.manifests.corpus.parts.part_listing import compactions, shards_of, unfinished_compactions, visible_parts
from openuni.manifests.errors import DamagedFile, OpenUniError
from openuni.manifests.storage.checksums import parse_record
from openuni.manifests.storage.store import Store
from openuni.report.verify_findings import NEXT_RUN, Findings, Part
from openuni.report.verify_payloads import EXTENT, BadPayload, PayloadCheck, check_payloads, extents_of
from openuni.report.verify_report import Damage, named

T = TypeVar("T")
R = TypeVar("R")


class CorpusVerification:
    """One verification. `workers`: number of threads. `seed`: of the sample."""

    def __init__(self, store: Store, reporter: Reporter, workers: int, seed: int | None) -> None:
        self.store, self.reporter, self.workers = store, reporter, workers
        self.random = np.random.default_rng(seed)
        self.groups = ColumnGroups(store, {})
        self.found = Findings(store)

    def run(self, sample: float | None) -> Findings:
        """Verify everything; `sample`: fraction (below 1) or number of the payloads to read, default all."""
        record = self._records()
        folders = {group: self._folders(group) for group in self.groups.group_folders()}
        names = [name for group in folders.values() for folder in group for name in self._parts_in(folder)]
        parts = self._each("Parquet parts", names, self._check_part)
        self.found.parts = [part for part in parts if part is not None]
        for inside in folders.values():
            for folder in inside:
                self._replaced_parts(folder)
        self._payloads(sample)
        for group, inside in folders.items():
            self._duplicate_rows(group)
            for folder in inside:
                self._orphan_shards(folder)
        self._rows(record)
        self._leftovers()
        return self.found

    # ------------------------------------------------------------------ records

    def _records(self) -> dict[str, Any] | None:
        """Verify all JSON records; returns corpus.json unless it is damaged."""
        found = None
        if self.store.exists(CORPUS_RECORD):
            try:
                found = Corpus.open(self.store.url).record
                self.found.records += 1
            except DamagedFile as error:
                self._bad_record(CORPUS_RECORD, error.reason, "every command")
        else:
            self._bad_record(CORPUS_RECORD, "the file is missing", "every command")
        for kind in (LATENTS, TEXT):
            for family in self.store.folders(kind):
                name = family_record(kind, family)
                if self.store.exists(name) or self._family_has_parts(kind, family):  # else its first write was killed
                    self._record(name, f"training on {in_folder(kind, family)}")
                if kind == TEXT and self.store.exists(prompts_record(family)):
                    self._record(prompts_record(family), "no clips: training loads the text codec instead")
        for name in self.store.names(RUNS, ".json"):
            self._record(name, "the history of runs; no clips")
        for name in self.store.names(RUNS, FAILURES_SUFFIX):
            self._failures(name)
        return found

    def _family_has_parts(self, kind: str, family: str) -> bool:
        folder = in_folder(kind, family)
        return any(map(self._parts_in, [folder, *(in_folder(folder, name) for name in self.store.folders(folder))]))

    def _failures(self, name: str) -> None:
        """Lines of a log of failed items; the last one may be cut short by a kill."""
        lines = self.store.read(name).split(b"\n")[:-1]
        bad = []
        for number, line in enumerate(lines, 1):
            try:
                parse_record(line, name)
            except DamagedFile as error:
                bad.append(f"line {number}: {error.reason}")
        if bad:
            self._bad_record(name, bad[0], "tracebacks that openuni explain shows; no clips")
        else:
            self.found.records += 1

    def _record(self, name: str, depends: str) -> None:
        try:
            parse_record(self.store.read(name), name)
            self.found.records += 1
        except (FileNotFoundError, DamagedFile) as error:
            self._bad_record(name, error.reason if isinstance(error, DamagedFile) else "the file is missing", depends)

    def _bad_record(self, name: str, reason: str, depends: str) -> None:
        self.found.bad_records.append(name)
        self.found.damage.append(Damage(name, "record", reason, (depends,)))

    # ------------------------------------------------------------------ parts

    def _folders(self, group: str) -> list[str]:
        """The folders with a group's parts: its own and those of superseded versions."""
        return [group, *(superseded(group, version) for version in self.store.folders(in_folder(group, SUPERSEDED)))]

    def _parts_in(self, folder: str) -> list[str]:
        try:
            return visible_parts(self.store, folder)
        except DamagedFile:  # a part that may replace others: these may be all that is left
            return self.store.names(folder, PART_SUFFIX)

    def _replaced_parts(self, folder: str) -> None:
        """Parts that a killed compaction has left: they count only if the merged part is damaged."""
        names = self.store.names(folder, PART_SUFFIX)
        try:
            unfinished = unfinished_compactions(self.store, names)
        except (DamagedFile, FileNotFoundError):
            return  # they are verified as parts, or the compaction goes on
        for merged, replaced in unfinished.items():
            left = [name for name in replaced if name in names]
            if merged in self.found.bad_parts:
                self.found.parts += [part for part in map(self._check_part, left) if part is not None]
                self.found.notes.append(
                    f"{merged} is damaged; the {len(left):,} parts that it replaces are still there"
                )
            elif left:
                self.found.replaced[merged] = left

    def _check_part(self, name: str) -> Part | None:
        folder = name.rpartition("/")[0]
        try:
            has_checksums = verify_part(self.store, name)
            self.groups.check_part_values(name, visible_group(folder))
            rows = self._rows_of(name)
            self.found.shards[name] = {in_folder(folder, shard) for shard in shards_of(rows)}
            payloads = len(extents_of(rows, folder).row) if visible_group(folder) != CLIPS else 0
            return Part(name, folder, payloads, has_checksums)
        except FileNotFoundError:
            return None  # superseded or rewritten while verifying
        except DamagedFile as error:
            self.found.bad_parts.append(name)
            self.found.damage.append(Damage(name, "part", error.reason, self._depends(folder)))
            return None

    def _rows_of(self, name: str) -> pa.Table:
        """clip_id and the columns with extents of a part."""
        group = visible_group(name.rpartition("/")[0])
        operator = operator_of(group)
        wanted = ["source", "status"] if group == CLIPS else [operator] if operator else ["status", *EXTENT]
        rows = read_part(self.store, name, ["clip_id", *wanted])
        if lacking := {"clip_id", *wanted} - set(rows.column_names):
            raise DamagedFile(name, f"it has no column {', '.join(sorted(lacking))}")
        return rows

    def _depends(self, folder: str, modalities: Sequence[str] = ()) -> tuple[str, ...]:
        """What uses the rows or payloads in a folder."""
        group = visible_group(folder)
        if folder != group:
            return (f"an earlier version of {group}, only if the recipe changes back",)
        operator = operator_of(group)
        if group == CLIPS:
            return ("every result of its clips",)
        if operator is None:
            return (f"training on {group}",)
        latents = [
            latent_group(family, modality)
            for family in self.store.folders(LATENTS)
            for modality in self.store.folders(in_folder(LATENTS, family))
            if modality in modalities
        ]
        return (operator, *(f"new encodings of {name}" for name in latents))

    # ------------------------------------------------------------------ payloads

    def _payloads(self, sample: float | None) -> None:
        counts = np.array([part.payloads for part in self.found.parts], np.int64)
        chosen: list[np.ndarray | None] = [None] * len(counts)
        total = int(counts.sum())
        wanted = total if sample is None else min(total, int(np.ceil(sample * total)) if sample < 1 else int(sample))
        if wanted < total:
            ends = np.cumsum(counts)
            picked = np.sort(self.random.choice(total, wanted, replace=False, shuffle=False))
            bounds = np.searchsorted(picked, [0, *ends])
            chosen = [picked[bounds[i] : bounds[i + 1]] - (ends[i] - counts[i]) for i in range(len(counts))]
        work = list(zip(self.found.parts, chosen, strict=True))
        with_payloads = [item for item in work if item[0].payloads or visible_group(item[0].folder) == CLIPS]
        for (part, _), check in zip(
            with_payloads, self._each("payloads", with_payloads, self._check_payloads), strict=True
        ):
            self.found.payloads += check.payloads
            self.found.payload_bytes += check.nbytes
            for shard, problem in check.bad_index:
                self.found.bad_shards.append(shard)
                text = f"{problem}. OpenUni still reads its payloads; other programs may not"
                self.found.damage.append(Damage(shard, "shard", text, self._depends(part.folder)))

    def _check_payloads(self, work: tuple[Part, np.ndarray | None]) -> PayloadCheck:
        part, chosen = work
        rows = self._rows_of(part.name)
        extents = extents_of(rows, part.folder)
        ids = rows.column("clip_id").to_pylist()
        check = check_payloads(self.store, part.folder, ids, extents, chosen, self._misplaced(part.folder))
        if check.bad:
            fields = dict(zip(extents.row.tolist(), extents.field, strict=True))
            self._report_payloads(part, check.bad, ids, fields)
            self.found.bad_rows.setdefault(part.name, set()).update(bad.row for bad in check.bad)
        return check

    def _report_payloads(self, part: Part, bad: list[BadPayload], ids: list[str], fields: dict[int, str]) -> None:
        """One finding per shard and kind of damage."""
        found: dict[tuple[str, str], list[BadPayload]] = {}
        for one in bad:
            found.setdefault((one.shard, one.kind), []).append(one)
        for (shard, kind), several in found.items():
            file = {CLIPS: shard}.get(visible_group(part.folder), in_folder(part.folder, shard))
            file = part.name if kind == "reference" else file
            clips = list(dict.fromkeys(ids[one.row] for one in several))
            depends = self._depends(part.folder, sorted({fields[one.row] for one in several}))
            self.found.damage.append(Damage(file, kind, several[0].reason, depends, len(clips), named(clips)))

    def _interrupted_moves(self, group: str) -> dict[str, str]:
        try:
            return self.groups.interrupted_moves(group)
        except DamagedFile:  # a merged part, which has been reported
            return {}

    def _misplaced(self, folder: str) -> dict[str, str]:
        """Shards of a folder of superseded parts that a killed process left in the group -> their names."""
        group = visible_group(folder)
        moves = self._interrupted_moves(group) if folder != group else {}
        return {name.rpartition("/")[2]: name for name, target in moves.items() if target == folder}

    def _orphan_shards(self, folder: str) -> None:
        """Shards whose Parquet part is gone."""
        parts = self._parts_in(folder)
        known = {name.removesuffix(PART_SUFFIX) + suffix for name in parts for suffix in SHARD_SUFFIXES}
        known.update(*(self.found.shards.get(name, ()) for name in parts))
        group = visible_group(folder)
        open_parts = {name.rpartition("/")[2] for name in self.groups.open_parts(group)}
        if folder == group:
            known.update(self._interrupted_moves(group))
        orphans = [
            shard
            for shard in self.store.names(folder, SHARD_SUFFIXES)
            if shard not in known and shard.rpartition("/")[2].rpartition(".")[0] not in open_parts
        ]
        lost = [name for name in parts if name in self.found.bad_parts and compactions(name)[1]]
        if lost:  # a merged part refers to several shards, and which ones is unknown if it is damaged
            self.found.shards[lost[0]] = set(orphans)
            return
        for shard in orphans:
            self.found.bad_shards.append(shard)
            reason = "no Parquet part refers to it: the part was deleted, or its writer died before the commit"
            self.found.damage.append(Damage(shard, "shard", reason, self._depends(folder)))

    # ------------------------------------------------------------------ rows

    def _sound_parts(self, group: str) -> list[str]:
        return [part.name for part in self.found.parts if part.folder == group]

    def _duplicate_rows(self, group: str) -> None:
        """Clips with several rows in a group: the first row that is ok is kept, else the first."""
        parts = self._sound_parts(group)
        if not parts:
            return
        ids = parts_dataset(self.store, parts).to_table(columns=["clip_id"]).column("clip_id").combine_chunks()
        encoded = ids.dictionary_encode()
        counts = np.bincount(encoded.indices.to_numpy(), minlength=len(encoded.dictionary))
        repeated = encoded.dictionary.filter(pa.array(counts > 1))
        if not len(repeated):
            return
        rows: dict[str, list[tuple[bool, str, int]]] = {}
        for part in parts:
            table = read_part(self.store, part)
            mask = pc.is_in(table.column("clip_id"), value_set=repeated)
            is_ok = pc.equal(status_column(table, group), "ok")
            for row in np.flatnonzero(mask.to_numpy()).tolist():
                is_bad = row in self.found.bad_rows.get(part, ())
                worth = bool(is_ok[row].as_py()) and not is_bad
                rows.setdefault(table.column("clip_id")[row].as_py(), []).append((worth, part, row))
        touched: dict[str, list[str]] = {}
        for clip_id, copies in rows.items():
            kept = next((copy for copy in copies if copy[0]), copies[0])
            for _, part, row in copies:
                touched.setdefault(part, []).append(clip_id)
                if (part, row) != kept[1:]:
                    self.found.bad_rows.setdefault(part, set()).add(row)
        for part, clips in touched.items():
            clips = list(dict.fromkeys(clips))
            reason = "clips with more than one row in the column group"
            damage = Damage(part, "duplicate", reason, self._depends(group), len(clips), named(clips))
            self.found.damage.append(damage)

    def _rows(self, record: dict[str, Any] | None) -> None:
        """Notes on rows without a clip and on clips without a row; both are normal after an interruption."""
        clips = self._sound_parts(CLIPS)
        known = (
            parts_dataset(self.store, clips, clip_schema()).to_table(columns=["clip_id", "status"]) if clips else None
        )
        ids = known.column("clip_id").combine_chunks() if known is not None else pa.array([], pa.string())
        done: dict[str, pa.Array] = {}
        for group in self.groups.group_folders():
            if group == CLIPS or not (parts := self._sound_parts(group)):
                continue
            rows = parts_dataset(self.store, parts).to_table(columns=["clip_id"]).column("clip_id").combine_chunks()
            done[group] = rows
            strange = rows.filter(pc.invert(pc.is_in(rows, value_set=ids)))
            if len(strange):
                some = ", ".join(strange.slice(0, 3).to_pylist())
                self.found.notes.append(
                    f"{group}: {len(strange):,} rows of clips that are not in clips/, such as {some}"
                )
        if record is None or known is None or self.found.bad_parts:
            return
        accepted = known.filter(pc.equal(known.column("status"), "ok")).column("clip_id").combine_chunks()
        for name in record["filters"]:
            self._pending(filter_group(name), accepted, done)
        if record["annotators"]:
            try:
                kept = Corpus(self.store, record).kept_clip_id_array()
            except OpenUniError as error:
                self.found.notes.append(f"pending clips of annotators are unknown: {error}")
                return
            for name in record["annotators"]:
                self._pending(annotation_group(name), kept, done)

    def _pending(self, group: str, wanted: pa.Array, done: dict[str, pa.Array]) -> None:
        rows = done.get(group, pa.array([], pa.string()))
        missing = wanted.filter(pc.invert(pc.is_in(wanted, value_set=rows)))
        if len(missing):
            some = ", ".join(missing.slice(0, 3).to_pylist())
            text = f"{len(missing):,} of {len(wanted):,} clips have no row, such as {some}; {NEXT_RUN} computes them"
            self.found.notes.append(f"{group}: {text}")

    def _leftovers(self) -> None:
        temporary = self.store.temp_files()
        if temporary:
            some = f"{len(temporary):,} temporary files of killed processes, such as {', '.join(temporary[:3])}"
            self.found.notes.append(f"{some}; {NEXT_RUN} deletes them")
        unsealed = sum(len(self.groups.open_parts(group)) for group in self.groups.groups_with_open_parts())
        if unsealed:
            self.found.notes.append(f"{unsealed:,} open parts of a run in progress or killed; {NEXT_RUN} seals them")

    # ------------------------------------------------------------------ threads

    def _each(self, name: str, items: Sequence[T], check: Callable[[T], R]) -> list[R]:
        """`check` of every item, in threads, with progress and ETA."""
        if not items:
            return []
        before = len(self.found.damage)
        with self.reporter.phase(name, len(items)) as counter, ThreadPoolExecutor(self.workers) as pool:
            results = []
            for result in _in_order(pool, check, items):
                damaged = len(self.found.damage) > before
                before = len(self.found.damage)
                counter.add("failed" if damaged else "ok")
                results.append(result)
        return results


def _in_order(pool: ThreadPoolExecutor, check: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    futures = [pool.submit(check, item) for item in items]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()

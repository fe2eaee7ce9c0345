"""A corpus: the folder (or URL) of manifests and shards that the pipeline writes and the trainer reads."""

import logging
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus import outcomes
from openuni.manifests.corpus.clip_list import ClipList
from openuni.manifests.corpus.column_groups import ColumnGroups
from openuni.manifests.corpus.corpus_clip import CorpusClip
from openuni.manifests.corpus.layout import (
    CORPUS_RECORD,
    LATENTS,
    RUNS,
    SHARD_SUFFIXES,
    TEXT,
    family_record,
    in_folder,
    prompts_record,
)
from openuni.manifests.corpus.parts.part_files import read_columns, read_part, table_bytes
from openuni.manifests.corpus.parts.part_listing import relisted, shards_of
from openuni.manifests.corpus.splits import require_complete_splits
from openuni.manifests.corpus.writer import storage_errors
from openuni.manifests.errors import DamagedFile, OpenUniError
from openuni.manifests.storage.lock import lock
from openuni.manifests.storage.store import Store

logger = logging.getLogger(__name__)
FORMAT = 1
UNFINISHED_SELECTION = "unfinished_selection"  # key of corpus.json: the command that completes the corpus
SELECTED_BY = "selected_by"  # key of corpus.json: the command that made it, once it is complete
RECORD_TYPES = {"keep": str, "filters": list[str], "annotators": list[str], "encoded": dict[str, str]}
REMEDY = (
    "Clips, scores, maps and latents are not affected. Restore the file, or replace its contents with "
    '{"format": 1, "keep": "", "filters": [], "annotators": [], "encoded": {}} and run: '
    "openuni run RECIPE --out CORPUS, which fills it in and recomputes nothing."
)


def new_record() -> dict[str, Any]:
    """The contents of corpus.json without a recipe: no keep rule and no operators."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"format": FORMAT, "created": created, "keep": "", "filters": [], "annotators": [], "encoded": {}}


class Corpus(ColumnGroups):
    """A corpus, opened with `Corpus.open(url)`, created by `openuni.run`. `corpus[key]`: a clip by index or clip_id."""

    # ------------------------------------------------------------------ opening

    @classmethod
    def open(cls, url: str) -> "Corpus":
        """Open the corpus at a folder or URL.

        Raises `OpenUniError` if it is missing or has a newer format, and if it is a selection that was interrupted.
        """
        corpus = cls._read(Store(str(url)))
        command = corpus.record.get(UNFINISHED_SELECTION)
        if command:
            raise OpenUniError(f"{corpus.store.url} is an unfinished selection. Finish it with: {command}")
        return corpus

    @classmethod
    def _read(cls, store: Store) -> "Corpus":
        if not store.exists(CORPUS_RECORD):
            raise OpenUniError(f"no corpus at {store.url} (corpus.json not found). Create one with: openuni run")
        record = store.read_json(CORPUS_RECORD, {"format": int}, REMEDY)
        if record["format"] != FORMAT:
            raise OpenUniError(
                f"{store.url} has corpus format {record['format']!r}; this version reads format {FORMAT}. "
                "Update OpenUni."
            )
        store.read_json(CORPUS_RECORD, RECORD_TYPES, REMEDY)
        return cls(store, record)

    @classmethod
    def create(cls, url: str) -> "Corpus":
        """Open the corpus at `url`, or create an empty one if the folder is new or empty."""
        store = Store(str(url))
        return cls.open(url) if store.exists(CORPUS_RECORD) else cls._create(store)

    @classmethod
    def _create(cls, store: Store, **facts: Any) -> "Corpus":
        if not store.is_empty():
            raise OpenUniError(
                f"{store.url} is not empty and not a corpus (corpus.json not found). "
                "Pass a new or empty folder with --out."
            )
        corpus = cls(store, new_record() | facts)
        corpus.save_record()
        return corpus

    def save_record(self, **changes: Any) -> None:
        """Update and write corpus.json."""
        self.record.update(changes)
        self.write_json(CORPUS_RECORD, self.record)

    def runs(self) -> Iterator[dict[str, Any]]:
        """The ledgers of all runs, oldest first; damaged ones are skipped with a warning."""
        for name in self.store.names(RUNS, ".json"):
            try:
                yield self.read_json(name)
            except DamagedFile as error:
                logger.warning("skipped: %s", error)

    def select(self, keep: str, out: str) -> "Corpus":
        """Create a corpus at `out` with the clips that pass `keep`: rows are filtered, shards are linked or copied.

        Until it is complete, `out` cannot be opened; call again to finish it.
        """
        require_complete_splits(self)
        kept = self.kept_clip_id_array(keep)
        if not len(kept):
            raise OpenUniError(f"keep = {keep!r} passes none of {len(self):,} clips; nothing was written")
        command = shlex.join(["openuni", "select", self.store.url, "--keep", keep, "--out", out])
        store = self._selection_target(out, command).store
        with lock(store), storage_errors(store):
            target = self._selection_target(out, command)
            if target.record.get(SELECTED_BY) == command and target.clip_list.ids.equals(kept):
                return target  # complete, and still up to date
            if target.parts("clips") and UNFINISHED_SELECTION not in target.record:
                raise OpenUniError(f"{store.url} already contains another corpus. Pass a different --out.")
            target.save_record(**{UNFINISHED_SELECTION: command})
            for group in target.group_folders():
                target.delete_parts(group)  # of an attempt that was interrupted
            others = [group for group in self.groups() if group != "clips"]
            for group in [*others, "clips"]:
                relisted(partial(self._select_group, group, kept, target))
            records = [family_record(LATENTS, name) for name in self.families()]
            records += [family_record(TEXT, name) for name in self.text_families()]
            prompts = [prompts_record(name) for name in self.text_families()]
            for record in [*records, *(name for name in prompts if self.store.exists(name))]:
                store.put(record, self.store.read(record))
            del target.record[UNFINISHED_SELECTION]
            facts = {key: self.record[key] for key in ("filters", "annotators", "encoded")}
            target.save_record(**facts, keep=keep, **{SELECTED_BY: command})
        return target

    def _selection_target(self, out: str, command: str) -> "Corpus":
        store = Store(str(out))
        if not store.exists(CORPUS_RECORD):
            return self._create(store, **{UNFINISHED_SELECTION: command})
        return self._read(store)

    # ------------------------------------------------------------------ queries

    def kept_clip_ids(self, keep: str | None = None) -> list[str]:
        """clip_ids that ingest accepted and that pass `keep`, in order of ingest. Default: the rule of the last run."""
        return self.kept_clip_id_array(keep).to_pylist()

    def kept_clip_id_array(self, keep: str | None = None) -> pa.Array:
        """`kept_clip_ids` as an Arrow string array, for millions of clips."""
        return outcomes.kept_clip_ids(self, self.record["keep"] if keep is None else keep)

    def summary(self) -> outcomes.Summary:
        """Clip outcomes: ok, dropped by rule, failed by error, pending."""
        return outcomes.summary(self)

    @property
    def clips(self) -> pa.Table:
        """The clips that ingest accepted, with all columns, in order of ingest. Read from storage on each access."""
        table = self.dataset("clips", clip_schema()).to_table()
        return table.filter(pc.equal(table.column("status"), "ok"))

    @cached_property
    def clip_list(self) -> ClipList:
        """The accepted clips by index, for millions of clips; a snapshot of the first access or the last `refresh`."""
        return ClipList(self)

    def refresh(self) -> None:
        """Discard the cached clip list; call it after the corpus was written to."""
        self.__dict__.pop("clip_list", None)

    def __len__(self) -> int:
        return len(self.clip_list.ids)

    def __getitem__(self, key: int | str) -> CorpusClip:
        """A clip by index or clip_id."""
        position = pc.index(self.clip_list.ids, key).as_py() if isinstance(key, str) else key
        if isinstance(key, str) and position < 0:
            raise KeyError(f"clip {key} not found in {self.store.url}")
        if not -len(self) <= position < len(self):
            raise IndexError(f"clip {position} is out of range: the corpus has {len(self)} clips")
        return CorpusClip(self, self.clip_list.clip(position % len(self)))

    def __iter__(self) -> Iterator[CorpusClip]:
        return (CorpusClip(self, clip) for clip in self.clip_list.clips())

    def __repr__(self) -> str:
        return f"Corpus({self.store.url!r}, {len(self)} clips)"

    # ------------------------------------------------------------------ inner

    def _select_group(self, group: str, kept: pa.Array, target: "Corpus") -> None:
        target.delete_parts(group)  # if parts of this corpus were merged while they were copied
        parts = self.parts(group)
        if not parts:
            return
        self.check_names(parts)
        columns = {"clip_id": ("clip_id",)}
        ids = [
            table["clip_id"]
            for table in read_columns(self.store, parts, columns, pa.schema([("clip_id", pa.string())]))
        ]
        chunks = pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())
        mask = pc.is_in(chunks, value_set=kept)  # computed once for all parts, since it hashes all of `kept`
        payloads = set(self.store.names(group, SHARD_SUFFIXES))

        def copy(part: str, mask_of_part: pa.ChunkedArray) -> None:
            if not pc.any(mask_of_part).as_py():
                return
            rows = read_part(self.store, part).filter(mask_of_part)
            for payload in payloads & {in_folder(group, shard) for shard in shards_of(rows)}:
                self.store.copy_to(target.store, payload)
            target.store.put(part, table_bytes(rows))

        with ThreadPoolExecutor(self.store.parallel_files) as pool:
            ends = accumulate(map(len, ids), initial=0)
            masks = [mask.slice(start, end - start) for start, end in pairwise(ends)]
            list(pool.map(copy, parts, masks))  # raises the first error

"""A corpus: the folder (or URL) of manifests and shards that the pipeline writes and the trainer reads."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus import outcomes
from openuni.manifests.corpus.clip_list import ClipList
from openuni.manifests.corpus.column_groups import PARALLEL_PARTS, ColumnGroups
from openuni.manifests.corpus.corpus_clip import CorpusClip
from openuni.manifests.corpus.layout import CORPUS_RECORD, LATENTS, RUNS, TEXT, family_record
from openuni.manifests.corpus.store import Store
from openuni.manifests.corpus.writer import table_bytes
from openuni.manifests.errors import OpenUniError

FORMAT = 1


class Corpus(ColumnGroups):
    """A corpus, opened with `Corpus.open(url)`, created by `openuni.run`. `corpus[key]`: a clip by index or clip_id."""

    # ------------------------------------------------------------------ opening

    @classmethod
    def open(cls, url: str) -> "Corpus":
        """Open the corpus at a folder or URL. Raises `OpenUniError` if it is missing or has a newer format."""
        store = Store(str(url))
        if not store.exists(CORPUS_RECORD):
            raise OpenUniError(f"no corpus at {store.url} (corpus.json not found). Create one with: openuni run")
        record = json.loads(store.read(CORPUS_RECORD))
        if record.get("format") != FORMAT:
            raise OpenUniError(
                f"{store.url} has corpus format {record.get('format')!r}; this version reads format {FORMAT}. "
                "Update OpenUni."
            )
        return cls(store, record)

    @classmethod
    def create(cls, url: str) -> "Corpus":
        """Open the corpus at `url`, or create an empty one if the folder is new or empty."""
        store = Store(str(url))
        if store.exists(CORPUS_RECORD):
            return cls.open(url)
        if not store.is_empty():
            raise OpenUniError(
                f"{store.url} is not empty and not a corpus (corpus.json not found). "
                "Pass a new or empty folder with --out."
            )
        record = {
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "keep": "",
            "filters": [],
            "annotators": [],
            "encoded": {},
        }
        corpus = cls(store, record)
        corpus.save_record()
        return corpus

    def save_record(self, **changes: Any) -> None:
        """Update and write corpus.json."""
        self.record.update(changes)
        self.write_json(CORPUS_RECORD, self.record)

    def runs(self) -> Iterator[dict[str, Any]]:
        """The ledgers of all runs, oldest first; unreadable ones are skipped."""
        for name in self.store.names(RUNS, ".json"):
            try:
                record = json.loads(self.store.read(name))
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record

    def select(self, keep: str, out: str) -> "Corpus":
        """Create a corpus at `out` with the clips that pass `keep`: rows are filtered, shards are linked or copied."""
        kept = self.kept_clip_id_array(keep)
        if not len(kept):
            raise OpenUniError(f"keep = {keep!r} passes none of {len(self):,} clips; nothing was written")
        target = Corpus.create(out)
        if target.parts("clips"):
            raise OpenUniError(f"{target.store.url} already contains another corpus. Pass a different --out.")
        groups = self.groups()
        for group in [*groups[1:], "clips"]:  # `clips` comes last: until then the new corpus is empty
            self._select_group(group, kept, target)
        records = [family_record(LATENTS, name) for name in self.families()]
        for record in [*records, *(family_record(TEXT, name) for name in self.text_families())]:
            target.store.put(record, self.store.read(record))
        target.save_record(**{key: self.record[key] for key in ("filters", "annotators", "encoded")}, keep=keep)
        return target

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
        parts = self.parts(group)
        if not parts:
            return
        self.check_names(parts)
        ids = self._dataset(parts).to_table(columns=["clip_id"]).column("clip_id")
        mask = pc.is_in(ids, value_set=kept)  # computed once for all parts, since it hashes all of `kept`
        payloads = {*self.store.names(group, ".tar"), *self.store.names(group, ".safetensors")}

        def copy(part: str, mask_of_part: pa.ChunkedArray) -> None:
            rows = pq.read_table(self.store.path(part), filesystem=self.store.fs).filter(mask_of_part)
            if not len(rows):
                return
            for payload in payloads & {part.removesuffix(".parquet") + suffix for suffix in (".tar", ".safetensors")}:
                self.store.copy_to(target.store, payload)
            target.store.put(part, table_bytes(rows))

        with ThreadPoolExecutor(PARALLEL_PARTS) as pool:
            ends = accumulate(pool.map(self._row_count, parts), initial=0)
            masks = [mask.slice(start, end - start) for start, end in pairwise(ends)]
            list(pool.map(copy, parts, masks))  # raises the first error

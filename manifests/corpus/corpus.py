"""A corpus: the folder (or URL) of manifests and shards that passes between the pipeline and the trainer."""

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
    """Open one with `Corpus.open(url)`; `openuni.run` makes them. `corpus[i]` is a clip, by position or clip_id."""

    # ------------------------------------------------------------------ opening

    @classmethod
    def open(cls, url: str) -> "Corpus":
        """The corpus at a folder or URL; raises `OpenUniError` when there is none, or one of a newer format."""
        store = Store(str(url))
        if not store.exists(CORPUS_RECORD):
            raise OpenUniError(f"there is no corpus at {store.url} (no corpus.json). Make one with: openuni run")
        record = json.loads(store.read(CORPUS_RECORD))
        if record.get("format") != FORMAT:
            raise OpenUniError(
                f"{store.url} has corpus format {record.get('format')!r}; this version reads {FORMAT}. Update openuni."
            )
        return cls(store, record)

    @classmethod
    def create(cls, url: str) -> "Corpus":
        """Open the corpus at `url`, or make an empty one where there is nothing yet."""
        store = Store(str(url))
        if store.exists(CORPUS_RECORD):
            return cls.open(url)
        if not store.is_empty():
            raise OpenUniError(
                f"{store.url} is not empty and holds no corpus (no corpus.json). Give a new or empty folder with --out."
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
        """Change facts of corpus.json."""
        self.record.update(changes)
        self.write_json(CORPUS_RECORD, self.record)

    def runs(self) -> Iterator[dict[str, Any]]:
        """The ledgers of all runs, oldest first; one that cannot be read is passed over."""
        for name in self.store.names(RUNS, ".json"):
            try:
                record = json.loads(self.store.read(name))
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record

    def select(self, keep: str, out: str) -> "Corpus":
        """A new corpus at `out` with the clips that pass `keep`: rows are filtered, payload files linked or copied."""
        kept = self.kept_clip_id_array(keep)
        if not len(kept):
            raise OpenUniError(f"keep = {keep!r} passes none of {len(self):,} clips; nothing was written")
        target = Corpus.create(out)
        if target.parts("clips"):
            raise OpenUniError(f"{target.store.url} already holds another corpus. Give a new folder with --out.")
        groups = self.groups()
        for group in [*groups[1:], "clips"]:  # the clip list comes last: until then the new corpus is empty
            self._select_group(group, kept, target)
        records = [family_record(LATENTS, name) for name in self.families()]
        for record in [*records, *(family_record(TEXT, name) for name in self.text_families())]:
            target.store.put(record, self.store.read(record))
        target.save_record(**{key: self.record[key] for key in ("filters", "annotators", "encoded")}, keep=keep)
        return target

    # ------------------------------------------------------------------ questions

    def kept_clip_ids(self, keep: str | None = None) -> list[str]:
        """clip_ids that ingest accepted and that pass `keep` (default: the rule of the last run), in order."""
        return self.kept_clip_id_array(keep).to_pylist()

    def kept_clip_id_array(self, keep: str | None = None) -> pa.Array:
        """The same as a string array, for millions of them."""
        return outcomes.kept_clip_ids(self, self.record["keep"] if keep is None else keep)

    def summary(self) -> outcomes.Summary:
        """What became of every clip: kept, dropped by which rule, failed for which reason, not done yet."""
        return outcomes.summary(self)

    @property
    def clips(self) -> pa.Table:
        """The clips that ingest accepted with all their columns, in order of ingest; read anew each time."""
        table = self.dataset("clips", clip_schema()).to_table()
        return table.filter(pc.equal(table.column("status"), "ok"))

    @cached_property
    def clip_list(self) -> ClipList:
        """The same by number, for millions of clips; as it was when first asked for, or at the last `refresh`."""
        return ClipList(self)

    def refresh(self) -> None:
        """Forget what was read of the clip list, after something wrote to the corpus."""
        self.__dict__.pop("clip_list", None)

    def __len__(self) -> int:
        return len(self.clip_list.ids)

    def __getitem__(self, key: int | str) -> CorpusClip:
        """A clip by position or clip_id."""
        position = pc.index(self.clip_list.ids, key).as_py() if isinstance(key, str) else key
        if isinstance(key, str) and position < 0:
            raise KeyError(f"{key} is no clip of {self.store.url}")
        if not -len(self) <= position < len(self):
            raise IndexError(f"clip {position} of {len(self)}")
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
        ids = self._dataset(parts).to_table(columns=["clip_id"]).column("clip_id")
        mask = pc.is_in(ids, value_set=kept)  # once for all parts: it hashes all of `kept`
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
            list(pool.map(copy, parts, masks))  # raises what any of them raised

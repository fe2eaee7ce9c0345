"""A corpus: the folder (or URL) of manifests and shards that passes between the pipeline and the trainer.

Column groups: `clips`, `filters/NAME`, `annotations/NAME`, `latents/FAMILY/MODALITY`, `text/FAMILY`. Each is a folder
of Parquet parts beside the payload files they point into. In every group a clip has at most one row, and all rows of
a group have one version: parts of another version are set aside in the group's `superseded/` folder.
"""

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from manifests import fates
from manifests.clip_list import ClipList
from manifests.corpus_clip import CorpusClip
from manifests.errors import OpenUniError
from manifests.schema import clip_schema
from manifests.shards import Shard, checksum
from manifests.store import Store
from manifests.writer import PartWriter, recover, spool_folder, table_bytes

FORMAT = 1
PARALLEL_PARTS = 8  # files worked on at once: an object store answers slowly, and many requests as fast as one
VERSION_KEY = b"openuni.version"


class Corpus:
    """Open one with `Corpus.open(url)`; `openuni.run` makes them."""

    def __init__(self, store: Store, record: dict[str, Any]) -> None:
        self.store = store
        self.record = record  # corpus.json

    # ------------------------------------------------------------------ opening

    @classmethod
    def open(cls, url: str) -> "Corpus":
        """The corpus at a folder or URL; raises `OpenUniError` when there is none, or one of a newer format."""
        store = Store(str(url))
        if not store.exists("corpus.json"):
            raise OpenUniError(f"there is no corpus at {store.url} (no corpus.json). Make one with: openuni run")
        record = json.loads(store.read("corpus.json"))
        if record.get("format") != FORMAT:
            raise OpenUniError(
                f"{store.url} has corpus format {record.get('format')!r}; this version reads {FORMAT}. Update openuni."
            )
        return cls(store, record)

    @classmethod
    def create(cls, url: str) -> "Corpus":
        """Open the corpus at `url`, or make an empty one where there is nothing yet."""
        store = Store(str(url))
        if store.exists("corpus.json"):
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
        self.put_json("corpus.json", self.record)

    def put_json(self, name: str, record: dict[str, Any]) -> None:
        """Write a JSON file of the corpus, whole or not at all; a file that says the same is left alone."""
        data = json.dumps(record, indent=2, default=str).encode()
        if not self.store.exists(name) or self.store.read(name) != data:
            self.store.put(name, data)

    def runs(self) -> Iterator[dict[str, Any]]:
        """The ledgers of all runs, oldest first; one that cannot be read is passed over."""
        for name in self.store.names("runs", ".json"):
            try:
                record = json.loads(self.store.read(name))
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record

    # ------------------------------------------------------------------ groups and parts

    def operators(self, kind: str) -> list[str]:
        """Names of the operators that have a column group: kind is "filter" or "annotator"."""
        return self.store.folders(operator_folder(kind))

    def families(self) -> dict[str, dict[str, Any]]:
        """Latent families: name -> its record (codec, options, size_px, frames, modalities, fingerprint)."""
        return self._family_records("latents")

    def text_families(self) -> dict[str, dict[str, Any]]:
        """Text families: name -> its record (codec, options, fingerprint)."""
        return self._family_records("text")

    def groups(self) -> list[str]:
        """All column groups that exist, `clips` first."""
        found = ["clips"] if self.parts("clips") else []
        found += [f"filters/{name}" for name in self.operators("filter")]
        found += [f"annotations/{name}" for name in self.operators("annotator")]
        for family in self.store.folders("latents"):
            found += [f"latents/{family}/{name}" for name in self.store.folders(f"latents/{family}")]
        return found + [f"text/{family}" for family in self.store.folders("text")]

    def parts(self, group: str) -> list[str]:
        """Names of a group's visible Parquet files, in the order they were made."""
        return self.store.names(group, ".parquet")

    def group_version(self, group: str) -> str:
        """The version of a group's rows; "none" while it is empty."""
        parts = self.parts(group)
        return self._part_version(parts[0]) if parts else "none"

    def has_modality(self, annotator: str, modality: str) -> bool:
        """Whether an annotator's column group has a field for a modality."""
        parts = self.parts(f"annotations/{annotator}")
        if not parts:
            return False
        fields = pq.read_schema(self.store.path(parts[0]), filesystem=self.store.fs).field(annotator).type
        return any(field.name == modality and pa.types.is_struct(field.type) for field in fields)

    def dataset(self, group: str, schema: pa.Schema | None = None) -> pads.Dataset:
        """The group as a pyarrow dataset: nothing is read until asked for. Empty groups need a schema."""
        parts = self.parts(group)
        if not parts:
            return pads.dataset((schema or pa.schema([pa.field("clip_id", pa.string())])).empty_table())
        return self._dataset(parts, schema)

    def table(self, group: str, columns: Sequence[str] | Mapping[str, pads.Expression] | None = None) -> pa.Table:
        """The group in memory, one row per clip; `columns`: names, or name -> what to read, as pyarrow writes them."""
        wanted = list(columns) if isinstance(columns, Sequence) else columns
        return self.dataset(group).to_table(columns=wanted)

    def look_up(self, group: str, ids: pa.Array, columns: Mapping[str, pads.Expression]) -> pa.StructArray:
        """These columns of a group (name -> what to read) for each clip_id, in that order; null: it has no row.

        Still in Arrow: a hundred thousand rows are a few megabytes, and `array[i].as_py()` makes one of them a dict.
        """
        wanted = {"clip_id": pads.field("clip_id")} | dict(columns)
        table = self.dataset(group).to_table(columns=wanted, filter=pads.field("clip_id").isin(ids))
        places = pc.index_in(ids, value_set=table.column("clip_id").combine_chunks())
        return table.drop_columns("clip_id").to_struct_array().combine_chunks().take(places)

    def find(self, group: str, clip_id: str) -> dict[str, Any] | None:
        """A clip's row in a group, None when it has none. Only ids are read to find it, then its part."""
        dataset = self.dataset(group)
        for tagged in dataset.scanner(columns=["clip_id"]).scan_batches():
            if pc.index(tagged.record_batch.column("clip_id"), clip_id).as_py() >= 0:
                rows = tagged.fragment.to_table(schema=dataset.schema, filter=pads.field("clip_id") == clip_id)
                return dict(rows.to_pylist()[0])
        return None

    def read(self, group: str, shard: str, offset: int, nbytes: int, xxh3: int) -> bytes:
        """One payload by its extent; raises `OpenUniError` when its bytes are not those that were written."""
        if "/" in shard:
            raise OpenUniError(f'{group}: "{shard}" is not a file beside its manifest; the manifest is damaged')
        data = self.store.read_range(f"{group}/{shard}", offset, nbytes)
        if len(data) != nbytes or checksum(data) != xxh3:
            raise OpenUniError(
                f"{self.store.url}/{group}/{shard}: the {nbytes} bytes at {offset} have changed since they were "
                "written (checksum differs). Restore it, or delete its .parquet part and run again to recompute it."
            )
        return data

    # ------------------------------------------------------------------ writing

    def writer(self, group: str, schema: pa.Schema, version: str, shard_type: type[Shard] | None = None) -> PartWriter:
        """A writer of one group for one worker; rows become visible part by part."""
        return PartWriter(self.store, group, schema.with_metadata({VERSION_KEY: version.encode()}), shard_type)

    def recover(self) -> int:
        """Seal what dead workers left behind, in every group; returns the number of clips saved."""
        return sum(recover(self.store, group) for group in self._groups_with_open_parts())

    def settle(self, group: str, version: str) -> None:
        """Make `version` the group's only one: others are set aside, parts of this one set aside earlier come back."""
        parts = self.parts(group)
        with ThreadPoolExecutor(PARALLEL_PARTS) as pool:
            versions = list(pool.map(self._part_version, parts))
        for part, found in zip(parts, versions, strict=True):
            if found != version:
                self._move_part(part, f"{group}/superseded/{found}")
        for part in self.parts(f"{group}/superseded/{version}"):
            self._move_part(part, group)

    def forget(self, group: str, statuses: Sequence[str], among: Mapping[str, pa.Array] | None = None) -> int:
        """Remove the rows with these statuses so that the next run does them again; returns how many there were.

        `among`: column -> values; only rows that have one of them there. What another run failed at then stays.
        """

        def chosen(rows: pa.Table) -> pa.ChunkedArray:
            mask = pc.is_in(status_column(rows, group), pa.array(list(statuses)))
            for column, values in (among or {}).items():
                mask = pc.and_(mask, pc.is_in(rows.column(column), value_set=values))
            return mask

        return self.remove(group, chosen)

    def remove(self, group: str, chosen: Callable[[pa.Table], pa.ChunkedArray]) -> int:
        """Remove the rows for which `chosen` (given a part's rows) says true; returns how many there were."""
        removed = 0

        def change(rows: pa.Table) -> pa.Table:
            nonlocal removed
            left = rows.filter(pc.invert(pc.fill_null(chosen(rows), False)))
            removed += len(rows) - len(left)
            return left

        self.rewrite(group, change)
        return removed

    def rewrite(self, group: str, change: Callable[[pa.Table], pa.Table]) -> None:
        """Put `change(rows)` in the place of each part's rows, part by part; equal rows are not written again."""
        for part in self.parts(group):
            rows = pq.read_table(self.store.path(part), filesystem=self.store.fs)
            changed = change(rows)
            if not changed.equals(rows):
                self.store.put(part, table_bytes(changed))

    def select(self, keep: str, out: str) -> "Corpus":
        """A new corpus at `out` with the clips that pass `keep`: rows are filtered, payload files linked or copied."""
        kept = self.kept_ids(keep)
        if not len(kept):
            raise OpenUniError(f"keep = {keep!r} passes none of {len(self):,} clips; nothing was written")
        target = Corpus.create(out)
        if target.parts("clips"):
            raise OpenUniError(f"{target.store.url} already holds another corpus. Give a new folder with --out.")
        groups = self.groups()
        for group in [*groups[1:], "clips"]:  # the clip list comes last: until then the new corpus is empty
            self._select_group(group, kept, target)
        families = [f"latents/{name}" for name in self.families()] + [f"text/{name}" for name in self.text_families()]
        for family in families:
            target.store.put(f"{family}/family.json", self.store.read(f"{family}/family.json"))
        target.save_record(**{key: self.record[key] for key in ("filters", "annotators", "encoded")}, keep=keep)
        return target

    @contextmanager
    def lock(self, wait_s: float = 30.0) -> Iterator[None]:
        """Hold the corpus for one run. Waits for dying workers of a killed run; raises when another run is alive."""
        with _locked(self._lock_path("driver"), fcntl.LOCK_EX, 0.0, self.store.url):
            with _locked(self._lock_path("workers"), fcntl.LOCK_EX, wait_s, self.store.url):
                self.store.sweep_drafts()  # no worker is alive: their locks end with their processes
            yield

    def worker_lock(self) -> TextIO:
        """Held by a worker for as long as it lives, so that no other run starts while it might still write."""
        file = self._lock_path("workers").open("a")
        fcntl.flock(file, fcntl.LOCK_SH)
        return file

    # ------------------------------------------------------------------ questions

    def done(self, group: str) -> pa.Array:
        """clip_ids that have a row in the group."""
        return self.table(group, ["clip_id"]).column("clip_id").combine_chunks()

    def kept(self, keep: str | None = None) -> list[str]:
        """clip_ids that ingest accepted and that pass `keep` (default: the rule of the last run), in order."""
        return self.kept_ids(keep).to_pylist()

    def kept_ids(self, keep: str | None = None) -> pa.Array:
        """The same as a string array, for millions of them."""
        return fates.kept(self, self.record["keep"] if keep is None else keep)

    def summary(self) -> fates.Summary:
        """What became of every clip: kept, dropped by which rule, failed for which reason, not done yet."""
        return fates.summary(self)

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

    def _family_records(self, kind: str) -> dict[str, dict[str, Any]]:
        found = {}
        for family in self.store.folders(kind):
            if self.store.exists(f"{kind}/{family}/family.json"):
                found[family] = json.loads(self.store.read(f"{kind}/{family}/family.json"))
        return found

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

    def _dataset(self, parts: Sequence[str], schema: pa.Schema | None = None) -> pads.Dataset:
        paths = [self.store.path(part) for part in parts]
        return pads.dataset(paths, filesystem=self.store.fs, format="parquet", schema=schema)

    def _row_count(self, part: str) -> int:
        return int(pq.read_metadata(self.store.path(part), filesystem=self.store.fs).num_rows)

    def _part_version(self, part: str) -> str:
        metadata = pq.read_schema(self.store.path(part), filesystem=self.store.fs).metadata or {}
        return metadata.get(VERSION_KEY, b"unknown").decode()

    def _move_part(self, part: str, folder: str) -> None:
        # the Parquet file goes last when a part appears and first when it disappears: never rows without payload
        name = part.rsplit("/", 1)[1].removesuffix(".parquet")
        source = part.rsplit("/", 1)[0]
        names = [f"{name}.parquet", f"{name}.tar", f"{name}.safetensors"]
        if "/superseded/" in part:
            names.reverse()
        for entry in names:
            if self.store.exists(f"{source}/{entry}"):
                self.store.move(f"{source}/{entry}", f"{folder}/{entry}")

    def _groups_with_open_parts(self) -> list[str]:
        root = self.store.local("") if self.store.is_local else spool_folder(self.store)
        if self.store.is_local:
            folders = [path.parent for path in root.rglob(".open") if path.is_dir()]
        else:
            folders = sorted({path.parent for path in root.rglob("*.journal")})
        return [folder.relative_to(root).as_posix() for folder in folders]

    def _lock_path(self, name: str) -> Any:
        folder = self.store.local("") if self.store.is_local else spool_folder(self.store)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f".{name}.lock"


def operator_folder(kind: str) -> str:
    """The folder of an operator kind's column groups: filters/ or annotations/."""
    return {"filter": "filters", "annotator": "annotations"}[kind]


def status_column(table: pa.Table, group: str) -> pa.ChunkedArray:
    """The status column of a group's table: flat, or inside the operator's struct."""
    if group.split("/")[0] in ("filters", "annotations"):
        return pc.struct_field(table.column(group.split("/", 1)[1]), "status")
    return table.column("status")


@contextmanager
def _locked(path: Any, kind: int, wait_s: float, url: str) -> Iterator[None]:
    deadline = time.monotonic() + wait_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OpenUniError(f"another run is writing to {url}. Wait for it, or stop it first.") from None
                time.sleep(0.1)
        yield

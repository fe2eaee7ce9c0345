"""Crash-safe appending to a column group: finished clips survive a kill, and parts become visible atomically.

A worker has one open part at a time: a shard and a journal in the group's hidden `.open/` folder. A clip is finished
once its line is in the journal. Sealing renames the shard into place and then writes the Parquet file, which is the
commit. `recover` seals the open parts of dead workers. For a corpus on an object store, open parts are stored in a
local spool folder and uploaded when sealed.
"""

import base64
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import pyarrow as pa
import xxhash

from openuni.manifests.corpus.layout import OPEN
from openuni.manifests.corpus.parts.part_files import read_part, table_bytes
from openuni.manifests.corpus.parts.part_listing import finish_compactions, shards_of_part, unused_name, visible_parts
from openuni.manifests.corpus.shards import SafetensorsShard, Shard, ShardEntry, TarShard
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.lease import LeaseLost
from openuni.manifests.storage.remote_errors import remote_errors
from openuni.manifests.storage.store import Store

MAX_PART_ROWS = 20_000
MAX_PART_BYTES = 512 * 1024**2
STORAGE_FULL_ERRNOS = {28, 27, 122}  # ENOSPC, EFBIG (process limit), EDQUOT (disk quota)


class StorageFull(OpenUniError):
    """The disk of the corpus is full. Finished clips are kept, and a rerun with free space resumes from there."""


class StorageFailed(OpenUniError):
    """The disk or store of the corpus refused a write. Finished clips are kept, and a rerun resumes from there."""


def new_part_name() -> str:
    """Name of a part, without suffix. Names sort by creation time: readers list clips in the order of writing."""
    return f"part-{time.time_ns():016x}-{uuid4().hex[:6]}"


class PartWriter:
    """Appends rows (and payloads) to one column group and seals parts that reach their maximum size.

    `seal_after_s`: also a part that has been open for so long, for readers that follow while it is written. It doubles
    with every part sealed for this reason, so that a long run does not leave many small ones.
    """

    def __init__(self, store: Store, group: str, schema: pa.Schema, shard_type: type[Shard] | None = None) -> None:
        self.store, self.group, self.schema, self.shard_type = store, group, schema, shard_type
        self.part: OpenPart | None = None
        self.seal_after_s: float | None = None

    def put(self, key: str, data: bytes, dtype: str = "", shape: tuple[int, ...] = ()) -> dict[str, Any]:
        """Append one payload; return its extent: shard, offset, nbytes, xxh3."""
        with write_errors(self.store):
            return self._extent(self._open_part().put(key, data, dtype, shape))

    def put_file(self, key: str, source: BinaryIO) -> dict[str, Any]:
        """Append the contents of an open file as one payload, in bounded memory; return its extent."""
        with write_errors(self.store):
            return self._extent(self._open_part().put_file(key, source))

    def scratch_folder(self) -> Path:
        """Folder on a local disk for temporary files of the clip in work: that of the open parts."""
        folder = open_parts_dir(self.store, self.group)
        with write_errors(self.store):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _extent(self, entry: ShardEntry) -> dict[str, Any]:
        assert self.part is not None
        shard = f"{self.part.name}{self.shard_type.suffix if self.shard_type else ''}"
        return {"shard": shard, "offset": entry.offset, "nbytes": entry.nbytes, "xxh3": entry.xxh3}

    def commit(self, *rows: dict[str, Any]) -> None:
        """Finish one clip: its row and the payloads appended since the last commit. Several rows: one transaction."""
        with write_errors(self.store):
            part = self._open_part()
            part.commit(*rows)
            if part.is_full:
                self.finish()
            elif self.seal_after_s is not None and time.monotonic() - part.opened >= self.seal_after_s:
                self.seal_after_s *= 2
                self.finish()

    def rollback(self) -> None:
        """Discard payloads appended since the last commit."""
        if self.part is not None:
            self.part.rollback()

    def finish(self) -> None:
        """Seal the open part, which makes it visible."""
        if self.part is not None:
            part, self.part = self.part, None
            with write_errors(self.store):
                part.seal(self.store, self.group)

    def _open_part(self) -> "OpenPart":
        if self.part is None:
            folder = open_parts_dir(self.store, self.group)
            folder.mkdir(parents=True, exist_ok=True)
            self.part = OpenPart.create(folder, new_part_name(), self.schema, self.shard_type)
        return self.part


class OpenPart:
    """A part that is not visible yet: `NAME.journal` and, if the group has payloads, `NAME.tar` or `.safetensors`.

    The journal's first line contains the schema and the kind of shard, so that any process can seal the part. Each
    further line is one transaction: one finished clip, or several. Every line starts with its checksum.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema, shard_type: type[Shard] | None) -> None:
        self.folder, self.name, self.schema = folder, name, schema
        self.journal_path = folder / f"{name}.journal"
        self.journal = self.journal_path.open("ab", buffering=0)  # nothing of a line that failed is written later
        fcntl.flock(self.journal, fcntl.LOCK_EX)  # keeps other processes from sealing this part
        self.shard = shard_type(folder / f"{name}{shard_type.suffix}") if shard_type else None
        self.rows: list[dict[str, Any]] = []
        self.opened = time.monotonic()
        self.committed = 0  # number of shard entries that belong to finished rows

    @classmethod
    def create(cls, folder: Path, name: str, schema: pa.Schema, shard_type: type[Shard] | None) -> "OpenPart":
        """Start a new part."""
        part = cls(folder, name, schema, shard_type)
        schema_text = base64.b64encode(schema.serialize().to_pybytes()).decode()
        part._append_line({"schema": schema_text, "suffix": shard_type.suffix if shard_type else ""})
        return part

    @property
    def is_full(self) -> bool:
        """Whether the part has reached its maximum size."""
        shard_is_full = self.shard is not None and (self.shard.nbytes >= MAX_PART_BYTES or self.shard.is_full)
        return shard_is_full or len(self.rows) >= MAX_PART_ROWS

    def put(self, key: str, data: bytes, dtype: str, shape: tuple[int, ...]) -> ShardEntry:
        """Append one payload; it takes effect when its row is committed."""
        if self.shard is None:
            raise OpenUniError(f"{self.name}: this column group has no payloads")
        return self.shard.put(key, data, dtype, shape)

    def put_file(self, key: str, source: BinaryIO) -> ShardEntry:
        """Append an open file's contents; see `put`."""
        if self.shard is None:
            raise OpenUniError(f"{self.name}: this column group has no payloads")
        return self.shard.put_file(key, source)

    def commit(self, *rows: dict[str, Any]) -> None:
        """Finish one clip, or several in one transaction: they share a journal line, and so a part."""
        entries = self.shard.entries[self.committed :] if self.shard else []
        self._append_line({"rows": rows, "entries": entries})
        self.rows.extend(rows)
        self.committed += len(entries)

    def rollback(self) -> None:
        """Truncate payloads without a committed row."""
        if self.shard is not None and len(self.shard.entries) > self.committed:
            self.shard.reopen(self.shard.entries[: self.committed])

    def seal(self, store: Store, group: str, name: str = "") -> None:
        """Move the shard into place, then write the Parquet file, which is the commit. `name`: of the Parquet file."""
        with self.journal:  # if it fails, the next run seals the part, in this process too
            self._seal(store, group, name)
            self.journal_path.unlink()

    def _seal(self, store: Store, group: str, name: str) -> None:
        self.rollback()
        with _withdrawn_if_lost(store) as written:
            if self.shard is not None:
                self.shard.close(finish=bool(self.rows))
                if self.rows:
                    written.append(f"{group}/{self.shard.path.name}")
                    store.put_file(self.shard.path, written[-1])
                else:
                    self.shard.path.unlink()
            if self.rows:
                written.append(f"{group}/{name or self.name}.parquet")
                store.put(written[-1], parquet_bytes(self.rows, self.schema))

    def _append_line(self, record: dict[str, Any]) -> None:
        text = json.dumps(record, separators=(",", ":")).encode()
        left = memoryview(b"%016x %s\n" % (xxhash.xxh3_64_intdigest(text), text))
        end = os.fstat(self.journal.fileno()).st_size
        try:
            while left:
                left = left[self.journal.write(left) :]
        except OSError:
            os.truncate(self.journal_path, end)  # an incomplete line would invalidate all later ones
            raise


@contextmanager
def _withdrawn_if_lost(store: Store) -> Iterator[list[str]]:
    """Context of writing the files of a part, whose names it collects: nobody else writes files of these names.

    A write may take effect late, after another run has taken over and written rows of the same clips, such as a request
    of a machine that was suspended meanwhile. Then these files are deleted again, and `LeaseLost` is raised.
    """
    written: list[str] = []
    try:
        yield written
        store.check_fence()
    except BaseException:
        with suppress(Exception):  # the first error counts
            try:
                store.check_fence()
            except LeaseLost:
                for name in reversed(written):
                    store.withdraw(name)
        raise


def recover(store: Store, group: str) -> int:
    """Seal the open parts of dead workers in `group`; return the number of recovered rows.

    Parts of live workers are not touched. Incomplete journal lines and payloads are discarded; their clips stay
    pending. Rows of clips that have one already are discarded too: a machine may come back with open parts of a corpus
    on an object store after another one has done their clips.
    """
    folder = open_parts_dir(store, group)
    recovered = 0
    known: set[str] | None = None
    for journal_path in sorted(folder.glob("*.journal")):
        with journal_path.open("ab") as journal:
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
        if known is None:
            finish_compactions(store, group)
            known = _clip_ids(store, group)
        recovered += _recover_part(store, group, journal_path, known)
    live_parts = {path.stem for path in folder.glob("*.journal")}
    for path in folder.glob("*") if folder.exists() else ():
        if path.name.split(".")[0] not in live_parts:
            path.unlink()  # a shard without a journal contains no finished clips
    return recovered


def _clip_ids(store: Store, group: str) -> set[str]:
    found: set[str] = set()
    for part in visible_parts(store, group):
        found.update(read_part(store, part, ["clip_id"]).column("clip_id").to_pylist())
    return found


def _new_rows(rows: list[dict[str, Any]], known: set[str]) -> list[dict[str, Any]]:
    """The rows whose clips are not in `known`, which then has them."""
    found = [row for row in rows if row["clip_id"] not in known]
    known.update(row["clip_id"] for row in found)
    return found


def _recover_part(store: Store, group: str, journal_path: Path, known: set[str]) -> int:
    name = journal_path.stem
    lines = list(_journal_lines(journal_path))
    if len(lines) < 2 or store.exists(f"{group}/{name}.parquet"):  # nothing finished, or already committed
        journal_path.unlink()
        return 0
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(lines[0]["schema"])))
    suffix = lines[0]["suffix"]
    target = unused_name(store, group, name)
    if suffix and store.exists(f"{group}/{name}{suffix}"):
        # killed after moving the shard, before writing the Parquet file; or after it, and the part was merged since
        rows = _new_rows([row for line in lines[1:] for row in line["rows"]], known)
        if rows:
            with _withdrawn_if_lost(store) as written:
                written.append(f"{group}/{target}.parquet")
                store.put(written[0], parquet_bytes(rows, schema))
        elif not any(f"{name}{suffix}" in shards_of_part(store, part) for part in visible_parts(store, group)):
            store.delete(f"{group}/{name}{suffix}")
        journal_path.unlink()
        return len(rows)
    shard_type = next((kind for kind in (TarShard, SafetensorsShard) if kind.suffix == suffix), None)
    part = OpenPart(journal_path.parent, name, schema, shard_type)
    for line in lines[1:]:
        entries = [ShardEntry.from_json(entry) for entry in line["entries"]]
        if part.shard is not None:
            if not all(part.shard.is_intact(entry) for entry in entries):
                break  # payloads behind a damaged one cannot be trusted
            part.shard.entries.extend(entries)
            part.committed += len(entries)
        part.rows.extend(_new_rows(line["rows"], known))
    if part.shard is not None:
        part.shard.reopen(part.shard.entries)
    part.seal(store, group, target)
    return len(part.rows)


def _journal_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n"):
        digest, _, text = line.partition(b" ")
        if not text or digest != b"%016x" % xxhash.xxh3_64_intdigest(text):
            return
        record = json.loads(text)
        if "row" in record:  # format of earlier versions
            record["rows"] = [record.pop("row")]
        yield record


def parquet_bytes(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    """Serialize the rows of a part as one Parquet file in memory.

    Strings with lone surrogates, such as file names that are not UTF-8, are written with these escaped.
    """
    try:
        table = pa.Table.from_pylist(rows, schema=schema)
    except UnicodeEncodeError:
        table = pa.Table.from_pylist([_escape_surrogates(row) for row in rows], schema=schema)
    return table_bytes(table)


def _escape_surrogates(value: Any) -> Any:
    """Escape lone surrogates in all strings of a nested value."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _escape_surrogates(entry) for key, entry in value.items()}
    return [_escape_surrogates(entry) for entry in value] if isinstance(value, list | tuple) else value


def open_parts_dir(store: Store, group: str) -> Path:
    """Folder of a group's open parts: in the group itself, or in the local spool of a corpus on an object store."""
    if store.is_local:
        return store.local(f"{group}/{OPEN}")
    return spool_dir(store) / group


def spool_dir(store: Store) -> Path:
    """Local folder for the open parts and locks of a remote corpus. `OPENUNI_SPOOL` sets another location."""
    base = Path(os.environ.get("OPENUNI_SPOOL", Path.home() / ".cache" / "openuni" / "spool"))
    return base / xxhash.xxh3_64_hexdigest(store.url.encode())


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk, or a quota or limit, is full: by its number, or in a library's text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in STORAGE_FULL_ERRNOS
    if not type(error).__module__.startswith(("_duckdb", "duckdb", "safetensors", "builtins")):
        return False
    marks = [mark for number in STORAGE_FULL_ERRNOS for mark in (f"(os error {number})", f": {os.strerror(number)}")]
    return any(mark in str(error) for mark in marks)


@contextmanager
def storage_errors(store: Store) -> Iterator[None]:
    """Context that converts "disk full" errors of the operating system to `StorageFull`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OpenUniError) or not is_disk_full(error):
            raise
        raise StorageFull(
            f"no space left while writing to {store.url} ({error}). Everything finished is kept. Free some space, then "
            "rerun the same command to resume."
        ) from error


@contextmanager
def write_errors(store: Store) -> Iterator[None]:
    """Context of writing rows and payloads: every error of the operating system or of the store is one of storage.

    It ends the run. As an error of the clip it would become a failed row, which a rerun does not retry.
    """
    try:
        with remote_errors(store.url), storage_errors(store):
            yield
    except OSError as error:
        raise StorageFailed(
            f"cannot write to {store.url} ({error}). Everything finished is kept. Check the disk, then rerun the same "
            "command to resume."
        ) from error

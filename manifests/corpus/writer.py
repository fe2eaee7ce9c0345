"""Appending to a column group: every finished clip survives a kill, nothing is visible before it is whole.

A worker owns one open part at a time: a payload file and a journal, both hidden in the group's `.open/` folder. A
clip is finished when its line is in the journal. Sealing renames the payload into place and then writes the Parquet
file: that is the commit. `recover` seals the open parts of workers that died. On an object store the open part
lies in a local spool folder and is uploaded when sealed.
"""

import base64
import fcntl
import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from openuni.manifests.corpus.layout import OPEN
from openuni.manifests.corpus.shards import SafetensorsShard, Shard, ShardEntry, TarShard
from openuni.manifests.corpus.store import Store
from openuni.manifests.errors import OpenUniError

MAX_PART_ROWS = 20_000
MAX_PART_BYTES = 512 * 1024**2
STORAGE_FULL_ERRNOS = {28, 27, 122}  # no space left, file too large (a quota of the process), disk quota


class StorageFull(OpenUniError):
    """The corpus's disk is full. What was finished is kept; the run goes on from there once there is space."""


class PartWriter:
    """Appends rows (and payloads) of one column group, sealing parts as they grow."""

    def __init__(self, store: Store, group: str, schema: pa.Schema, shard_type: type[Shard] | None = None) -> None:
        self.store, self.group, self.schema, self.shard_type = store, group, schema, shard_type
        self.part: OpenPart | None = None

    def put(self, key: str, data: bytes, dtype: str = "", shape: tuple[int, ...] = ()) -> dict[str, Any]:
        """Append one payload; returns the columns that find it again: shard, offset, nbytes, xxh3."""
        with storage_errors(self.store):
            entry = self._open_part().put(key, data, dtype, shape)
        assert self.part is not None
        shard = f"{self.part.name}{self.shard_type.suffix if self.shard_type else ''}"
        return {"shard": shard, "offset": entry.offset, "nbytes": entry.nbytes, "xxh3": entry.xxh3}

    def commit(self, *rows: dict[str, Any]) -> None:
        """Finish one clip: its row, and the payloads put since the last commit. Several rows: all of them or none."""
        with storage_errors(self.store):
            part = self._open_part()
            part.commit(*rows)
            if part.is_full:
                self.finish()

    def rollback(self) -> None:
        """Forget payloads put since the last commit."""
        if self.part is not None:
            self.part.rollback()

    def finish(self) -> None:
        """Seal what is open, making it visible."""
        if self.part is not None:
            part, self.part = self.part, None
            with storage_errors(self.store):
                part.seal(self.store, self.group)

    def _open_part(self) -> "OpenPart":
        if self.part is None:
            folder = open_parts_dir(self.store, self.group)
            folder.mkdir(parents=True, exist_ok=True)
            # the name sorts by time of creation, so that readers see clips in the order they were made
            name = f"part-{time.time_ns():016x}-{uuid4().hex[:6]}"
            self.part = OpenPart.create(folder, name, self.schema, self.shard_type)
        return self.part


class OpenPart:
    """A part that is not yet visible: `NAME.journal` and, where the group has payloads, `NAME.tar` or `.safetensors`.

    The journal's first line names schema and kind of payload file, so that a part can be sealed by anyone; each
    further line is one finished clip, or several that are only whole together. Every line begins with its checksum.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema, shard_type: type[Shard] | None) -> None:
        self.folder, self.name, self.schema = folder, name, schema
        self.journal_path = folder / f"{name}.journal"
        self.journal = self.journal_path.open("ab")
        fcntl.flock(self.journal, fcntl.LOCK_EX)  # as long as its writer lives, nobody else seals this part
        self.shard = shard_type(folder / f"{name}{shard_type.suffix}") if shard_type else None
        self.rows: list[dict[str, Any]] = []
        self.committed = 0  # entries of the shard that belong to finished rows

    @classmethod
    def create(cls, folder: Path, name: str, schema: pa.Schema, shard_type: type[Shard] | None) -> "OpenPart":
        """Begin a new part."""
        part = cls(folder, name, schema, shard_type)
        schema_text = base64.b64encode(schema.serialize().to_pybytes()).decode()
        part._append_line({"schema": schema_text, "suffix": shard_type.suffix if shard_type else ""})
        return part

    @property
    def is_full(self) -> bool:
        """Whether it is time to seal."""
        big = self.shard is not None and (self.shard.nbytes >= MAX_PART_BYTES or self.shard.is_full)
        return big or len(self.rows) >= MAX_PART_ROWS

    def put(self, key: str, data: bytes, dtype: str, shape: tuple[int, ...]) -> ShardEntry:
        """Append one payload; it counts once its row is committed."""
        if self.shard is None:
            raise OpenUniError(f"{self.name}: this column group holds no payloads")
        return self.shard.put(key, data, dtype, shape)

    def commit(self, *rows: dict[str, Any]) -> None:
        """Finish one clip, or several as one: they share a line, and so a part."""
        entries = self.shard.entries[self.committed :] if self.shard else []
        self._append_line({"rows": rows, "entries": entries})
        self.rows.extend(rows)
        self.committed += len(entries)

    def rollback(self) -> None:
        """Cut off payloads without a row."""
        if self.shard is not None and len(self.shard.entries) > self.committed:
            self.shard.reopen(self.shard.entries[: self.committed])

    def seal(self, store: Store, group: str) -> None:
        """Bring the payload in, then the Parquet file: that is the commit."""
        self.rollback()
        if self.shard is not None:
            self.shard.close(finish=bool(self.rows))
            if self.rows:
                store.put_file(self.shard.path, f"{group}/{self.shard.path.name}")
            else:
                self.shard.path.unlink()
        if self.rows:
            store.put(f"{group}/{self.name}.parquet", parquet_bytes(self.rows, self.schema))
        self.journal_path.unlink()
        self.journal.close()

    def _append_line(self, record: dict[str, Any]) -> None:
        text = json.dumps(record, separators=(",", ":")).encode()
        end = self.journal.tell()
        try:
            self.journal.write(b"%016x %s\n" % (xxhash.xxh3_64_intdigest(text), text))
            self.journal.flush()
        except OSError:
            os.truncate(self.journal_path, end)  # half a line must not stand before later ones
            raise


def recover(store: Store, group: str) -> int:
    """Seal the open parts that dead workers left in `group`; returns how many finished rows that saved.

    Parts of living workers are left alone. Lines and payloads cut short by a kill are dropped: those clips are simply
    not done yet.
    """
    folder = open_parts_dir(store, group)
    saved = 0
    for journal_path in sorted(folder.glob("*.journal")):
        with journal_path.open("ab") as journal:
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
        saved += _recover_part(store, group, journal_path)
    alive = {path.stem for path in folder.glob("*.journal")}
    for stray in folder.glob("*") if folder.exists() else ():
        if stray.name.split(".")[0] not in alive:
            stray.unlink()  # payloads without a journal: nothing in them was finished
    return saved


def _recover_part(store: Store, group: str, journal_path: Path) -> int:
    name = journal_path.stem
    lines = list(_journal_lines(journal_path))
    if len(lines) < 2 or store.exists(f"{group}/{name}.parquet"):  # nothing finished, or already committed
        journal_path.unlink()
        return 0
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(lines[0]["schema"])))
    suffix = lines[0]["suffix"]
    if suffix and store.exists(f"{group}/{name}{suffix}"):  # killed between payload and Parquet file
        rows = [row for line in lines[1:] for row in line["rows"]]
        store.put(f"{group}/{name}.parquet", parquet_bytes(rows, schema))
        journal_path.unlink()
        return len(rows)
    shard_type = next((kind for kind in (TarShard, SafetensorsShard) if kind.suffix == suffix), None)
    part = OpenPart(journal_path.parent, name, schema, shard_type)
    for line in lines[1:]:
        entries = [ShardEntry.from_json(entry) for entry in line["entries"]]
        if part.shard is not None:
            if not all(part.shard.is_intact(entry) for entry in entries):
                break  # later payloads lie behind this one: none of them can be trusted
            part.shard.entries.extend(entries)
            part.committed += len(entries)
        part.rows.extend(line["rows"])
    if part.shard is not None:
        part.shard.reopen(part.shard.entries)
    part.seal(store, group)
    return len(part.rows)


def _journal_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n"):
        digest, _, text = line.partition(b" ")
        if not text or digest != b"%016x" % xxhash.xxh3_64_intdigest(text):
            return
        record = json.loads(text)
        if "row" in record:  # as earlier versions wrote it
            record["rows"] = [record.pop("row")]
        yield record


def parquet_bytes(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    """Rows as one Parquet file in memory (a part has at most `MAX_PART_ROWS` of them).

    A text that is no Unicode, as a file's name or JSON may bring one, is written with the odd parts escaped.
    """
    try:
        table = pa.Table.from_pylist(rows, schema=schema)
    except UnicodeEncodeError:
        table = pa.Table.from_pylist([_escaped(row) for row in rows], schema=schema)
    return table_bytes(table)


def _escaped(value: Any) -> Any:
    """The same with all texts in it as they can be encoded."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _escaped(entry) for key, entry in value.items()}
    return [_escaped(entry) for entry in value] if isinstance(value, list | tuple) else value


def table_bytes(table: pa.Table) -> bytes:
    """A table as one Parquet file in memory."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def open_parts_dir(store: Store, group: str) -> Path:
    """Where open parts of a group lie: in the group itself, or in a local spool for a corpus on an object store."""
    if store.is_local:
        return store.local(f"{group}/{OPEN}")
    return spool_dir(store) / group


def spool_dir(store: Store) -> Path:
    """Local folder for a remote corpus's open parts and lock; `OPENUNI_SPOOL` moves it to a larger disk."""
    base = Path(os.environ.get("OPENUNI_SPOOL", Path.home() / ".cache" / "openuni" / "spool"))
    return base / xxhash.xxh3_64_hexdigest(store.url.encode())


@contextmanager
def storage_errors(store: Store) -> Iterator[None]:
    """Turn the operating system's "disk full" into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in STORAGE_FULL_ERRNOS:
            raise StorageFull(
                f"no space left while writing to {store.url} ({error.strerror}). Every finished clip is kept. "
                "Free some space, then run the same command again: it goes on where it stopped."
            ) from error
        raise

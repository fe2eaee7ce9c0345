"""Reading and writing the Parquet parts of a corpus: every byte that is read is verified first.

All reads go through `CheckedFile`, so that footers, page headers and pages are covered alike; Parquet's page checksums
are written too, for other programs, and verified. Parts of earlier versions have no checksums and are read as they are.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from openuni.manifests.corpus.part_limits import check_declared
from openuni.manifests.errors import DamagedFile
from openuni.manifests.storage.checksums import (
    TAIL_BYTES,
    BlockTable,
    add_block_checksums,
    block_table,
    wanted_tail_bytes,
)
from openuni.manifests.storage.store import Store

MAX_CACHED_BYTES = 1024**2  # the last read is kept if it is at most this long
READ_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
MAX_REOPENED = 20  # times that a dataset is opened anew while parts are merged
VERIFIED_BYTES = 8 * 1024**2  # read at a time by `verify_part`


def table_bytes(table: pa.Table) -> bytes:
    """Serialize a table as one Parquet file in memory, with page and block checksums."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return add_block_checksums(sink.getvalue())


class CheckedFile(io.RawIOBase):
    """A part, open for reading; what is returned has been verified block by block.

    Raises `DamagedFile` that names the part. `table` is None for parts without checksums.
    """

    def __init__(self, store: Store, name: str) -> None:
        super().__init__()
        self.where = store.location(name)
        self._store, self._name = store, name
        # an open file: a part that is replaced meanwhile stays the same for this reader
        self._descriptor = os.open(store.path(name), os.O_RDONLY) if store.is_local else None
        self._nbytes = store.nbytes(name) if self._descriptor is None else os.fstat(self._descriptor).st_size
        self._position = 0
        self._cached: tuple[int, bytes] = (0, b"")
        tail = self._read_raw(max(0, self._nbytes - TAIL_BYTES), self._nbytes)
        while len(tail) < (wanted := wanted_tail_bytes(tail, self._nbytes) if len(tail) >= 8 else 0):
            tail = self._read_raw(self._nbytes - wanted, self._nbytes)
        self.table: BlockTable | None = block_table(tail, self._nbytes, self.where)
        self._tail = tail

    def readable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._position

    def size(self) -> int:
        """Size of the file, bytes."""
        return self._nbytes

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.IOBase`."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._nbytes}[whence]
        self._position = base + offset
        return self._position

    def read(self, nbytes: int | None = -1) -> bytes:
        """Up to `nbytes` bytes from the current position. Raises `DamagedFile` for a wrong checksum."""
        start = self._position
        end = self._nbytes if nbytes is None or nbytes < 0 else min(start + nbytes, self._nbytes)
        data = self._read_verified(start, end) if end > start else b""
        self._position = start + len(data)
        return data

    def close(self) -> None:
        """See `io.IOBase`."""
        descriptor, self._descriptor = getattr(self, "_descriptor", None), None
        if descriptor is not None:
            os.close(descriptor)
        super().close()

    def _read_verified(self, start: int, end: int) -> bytes:
        tail_start = self._nbytes - len(self._tail)
        if start >= tail_start and (self.table is None or start >= self.table.body_bytes):
            return self._tail[start - tail_start : end - tail_start]
        if self.table is None:
            return self._read_raw(start, end)
        body_end = min(end, self.table.body_bytes)
        data = self._blocks(start, body_end)
        return data if end == body_end else data + self._tail[body_end - tail_start : end - tail_start]

    def _blocks(self, start: int, end: int) -> bytes:
        """Bytes of the body; whole blocks are read and verified."""
        assert self.table is not None
        cached_start, cached = self._cached
        if cached_start <= start and end <= cached_start + len(cached):
            return cached[start - cached_start : end - cached_start]
        block_bytes = self.table.block_bytes
        first, last = start // block_bytes, -(-end // block_bytes)
        read_start, read_end = first * block_bytes, min(last * block_bytes, self.table.body_bytes)
        data = self._read_raw(read_start, read_end)
        view = memoryview(data)
        for number in range(first, last):
            at = number * block_bytes - read_start
            if not self.table.verify(number, view[at : at + block_bytes]):
                raise DamagedFile(self.where, f"checksum mismatch of the 64 KiB from byte {number * block_bytes:,}")
        if len(data) <= MAX_CACHED_BYTES:
            self._cached = read_start, data
        return data[start - read_start : end - read_start]

    def _read_raw(self, start: int, end: int) -> bytes:
        if self._descriptor is not None:
            data = os.pread(self._descriptor, end - start, start)
            while data and len(data) < end - start:  # a read is limited to 2 GiB
                more = os.pread(self._descriptor, end - start - len(data), start + len(data))
                if not more:
                    break
                data += more
        else:
            data = self._store.read_range(self._name, start, end - start) if end > start else b""
        if len(data) != end - start:
            raise DamagedFile(self.where, f"{len(data):,} bytes at {start:,}, expected {end - start:,}: truncated")
        return data


class _CheckedFiles(pafs.FSSpecHandler):
    """pyarrow's view of a store, in which files are `CheckedFile`."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.fs)
        self._store = store

    def open_input_file(self, path: str) -> pa.PythonFile:
        """See `pyarrow.fs.FileSystemHandler`."""
        return pa.PythonFile(CheckedFile(self._store, self._store.name_of(path)), mode="r")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        """See `pyarrow.fs.FileSystemHandler`."""
        return self.open_input_file(path)


def open_part(store: Store, part: str) -> pq.ParquetFile:
    """One part, for its metadata or rows. Raises `DamagedFile`."""
    with _named(store, part):
        checked = CheckedFile(store, part)
        source = pa.PythonFile(checked, mode="r")
        file = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=True)
    check_declared(file.metadata, checked.size(), store.location(part))
    return file


def read_part(
    store: Store, part: str, columns: Sequence[str] | Callable[[pa.Schema], list[str]] | None = None
) -> pa.Table:
    """The rows of one part. `columns`: names, or a function of the schema that gives them. Raises `DamagedFile`."""
    with _named(store, part), open_part(store, part) as file:
        wanted = columns(file.schema_arrow) if callable(columns) else columns
        return file.read(None if wanted is None else list(wanted))


def verify_part(store: Store, part: str) -> bool:
    """Read a whole part; returns whether it has checksums. Parts without them are decoded.

    Raises `DamagedFile` if anything in it is damaged.
    """
    with CheckedFile(store, part) as file:
        if file.table is not None:
            while file.read(VERIFIED_BYTES):
                pass
            return True
    _decode(store, part)
    return False


def _decode(store: Store, part: str) -> None:
    """Decode a whole part. Raises `DamagedFile` if that fails."""
    with _named(store, part), open_part(store, part) as parquet:
        for batch in parquet.iter_batches():
            batch.validate(full=True)


@contextmanager
def _named(store: Store, part: str) -> Iterator[None]:
    """Context that converts pyarrow's errors in reading a part to `DamagedFile`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except READ_ERRORS as error:
        raise DamagedFile(store.location(part), f"not readable: {str(error).splitlines()[0][:200]}") from error


@contextmanager
def part_errors(store: Store, parts: Sequence[str]) -> Iterator[None]:
    """Context that converts pyarrow's errors in reading parts to `DamagedFile`, which names the part.

    Errors for which no part is to blame are passed on.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except READ_ERRORS:
        for part in parts:
            verify_part(store, part)
        for part in parts:
            _decode(store, part)
        raise


def _validated(table: pa.Table) -> pa.Table:
    """The table. Raises `pyarrow.ArrowInvalid` for texts that are no UTF-8; takes a fifth of a second per GB."""
    table.validate(full=True)
    return table


class CheckedDataset:
    """The methods of `pyarrow.dataset.Dataset` that read, with errors that name the damaged part.

    `unchecked`: the dataset itself. Its reads are verified too, but errors in parts without checksums are pyarrow's.
    `reopen`: the dataset anew, if parts have been merged into others since they were listed; the rows are the same.
    """

    def __init__(self, store: Store, parts: Sequence[str], unchecked: pads.Dataset) -> None:
        self.store, self.parts, self.unchecked = store, parts, unchecked
        self.reopen: Callable[[], CheckedDataset] | None = None

    @property
    def schema(self) -> pa.Schema:
        """See `pyarrow.dataset.Dataset`."""
        return self.unchecked.schema

    def to_table(self, **options: Any) -> pa.Table:
        """See `pyarrow.dataset.Dataset`."""
        for _ in range(MAX_REOPENED):
            try:
                with part_errors(self.store, self.parts):
                    return _validated(self.unchecked.to_table(**options))
            except FileNotFoundError as error:
                self._reopen(error)
        return _validated(self.unchecked.to_table(**options))

    def to_batches(self, **options: Any) -> Iterator[pa.RecordBatch]:
        """See `pyarrow.dataset.Dataset`."""
        done = 0  # rows
        for attempt in range(MAX_REOPENED + 1):
            left = done
            try:
                with part_errors(self.store, self.parts):
                    for batch in self.unchecked.to_batches(**options):
                        if left < len(batch):
                            batch.validate(full=True)
                            yield batch.slice(left)
                        done += max(0, len(batch) - left)
                        left = max(0, left - len(batch))
                return
            except FileNotFoundError as error:
                if attempt == MAX_REOPENED:
                    raise
                self._reopen(error)

    def tagged_batches(self, **options: Any) -> Iterator[Any]:
        """Batches (`record_batch`), each with the `fragment` that it comes from.

        Raises `FileNotFoundError` if a part has been merged meanwhile.
        """
        with part_errors(self.store, self.parts):
            yield from self.unchecked.scanner(**options).scan_batches()

    def _reopen(self, error: FileNotFoundError) -> None:
        """Read the parts that are there now."""
        if self.reopen is None:
            raise error
        other = self.reopen()
        self.parts, self.unchecked = other.parts, other.unchecked


def parts_dataset(store: Store, parts: Sequence[str], schema: pa.Schema | None = None) -> CheckedDataset:
    """Parts as a lazy dataset; reading it raises `DamagedFile` that names the part. `schema`: default: the first's."""
    options = pads.ParquetFragmentScanOptions(page_checksum_verification=True)
    with part_errors(store, parts):
        dataset = pads.dataset(
            [store.path(part) for part in parts],
            filesystem=pafs.PyFileSystem(_CheckedFiles(store)),
            format=pads.ParquetFileFormat(default_fragment_scan_options=options),
            schema=schema,
        )
    return CheckedDataset(store, parts, dataset)

"""Reading and writing the Parquet parts of a corpus: every byte that is read is verified first.

All reads go through `CheckedFile`, so that footers, page headers and pages are covered alike; Parquet's page checksums
are written too, for other programs, and verified. Parts of earlier versions have no checksums and are read as they are.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from openuni.manifests.corpus.parts.part_limits import check_declared
from openuni.manifests.corpus.parts.part_texts import OpenedPart, is_among, is_measured, measure_texts, read_opened
from openuni.manifests.errors import DamagedFile
from openuni.manifests.storage.checked_file import CheckedFile
from openuni.manifests.storage.checksums import TAIL_BYTES, add_block_checksums
from openuni.manifests.storage.store import Store

T = TypeVar("T")
PARALLEL_PARTS = 8  # files processed concurrently, to hide the latency of object stores
READ_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
MIN_SMALL_PARTS = 4  # successive ones that are read at once
SMALL_PARTS_AT_A_TIME = 256
MAX_KEPT_COLUMNS = 48  # of parts with more, only the columns that are asked for are read
MAX_KEPT_BYTES = 128 * 1024**2  # rows of the small parts of a column group
MAX_REOPENED = 20  # times that a dataset is opened anew while parts are merged
VERIFIED_BYTES = 8 * 1024**2  # read at a time by `verify_part`


def table_bytes(table: pa.Table) -> bytes:
    """Serialize a table as one Parquet file in memory, with page and block checksums."""
    sink = io.BytesIO()
    # dictionaries of numbers, which hardly repeat, cost time and space
    texts = [path for path, kind in _leaves(list(table.schema)) if pa.types.is_string(kind)]
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, use_dictionary=texts or False)
    return add_block_checksums(sink.getvalue())


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


def _leaves(fields: Sequence[pa.Field], prefix: str = "") -> Iterator[tuple[str, pa.DataType]]:
    """Path in the file and type of every column that Parquet stores."""
    for field in fields:
        path = f"{prefix}{field.name}"
        if pa.types.is_struct(field.type):
            yield from _leaves(list(field.type), f"{path}.")
        elif pa.types.is_list(field.type):
            yield from _leaves([field.type.value_field.with_name("element")], f"{path}.list.")
        else:
            yield path, field.type


def open_part(store: Store, part: str) -> pq.ParquetFile:
    """One part, for its metadata or rows. Raises `DamagedFile`."""
    return _unless_replaced(store, part, lambda: _open_part(store, part))


def _open_part(store: Store, part: str) -> pq.ParquetFile:
    return _open(store, part).file


def _open(store: Store, part: str) -> OpenedPart:
    with _named(store, part):
        file = CheckedFile(store, part)
        if file.size() <= TAIL_BYTES:  # its end is all of it: without a call for each page
            with file:
                data = pa.BufferReader(file.read())
            small = pq.ParquetFile(data, page_checksum_verification=file.table is None)
            texts = check_declared(small.metadata, file.size(), store.location(part))
            return OpenedPart(small, data, None, file.size(), texts)
        # without pre_buffer: Arrow's threads would let go of the file later, at the end of the process perhaps
        source, footer = pa.PythonFile(file, mode="r"), pq.read_metadata(pa.BufferReader(file.footer()))
        checks_pages = file.table is None
        found = pq.ParquetFile(source, metadata=footer, page_checksum_verification=checks_pages, pre_buffer=False)
    texts = check_declared(footer, file.size(), store.location(part))
    return OpenedPart(found, source, file, file.size(), texts)


def read_part(
    store: Store, part: str, columns: Sequence[str] | Callable[[pa.Schema], list[str]] | None = None
) -> pa.Table:
    """The rows of one part. `columns`: names, or a function of the schema that gives them. Raises `DamagedFile`."""

    def read() -> pa.Table:
        with _named(store, part):
            opened = _open(store, part)
            with opened.file as file:
                names = columns(file.schema_arrow) if callable(columns) else columns
                wanted = None if names is None else list(names)
                if opened.checked is not None and not store.is_local:
                    opened.checked.load(_ranges(file.metadata, wanted))
                return _validated(read_opened(store, part, opened, wanted))

    return _unless_replaced(store, part, read)


def _ranges(metadata: pq.FileMetaData, columns: Sequence[str] | None) -> list[tuple[int, int]]:
    """Start and end of the bytes with these columns (names or paths; default: all)."""
    found = []
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        for chunk in (group.column(number) for number in range(group.num_columns)):
            if is_among(chunk.path_in_schema, columns):
                first = chunk.dictionary_page_offset or chunk.data_page_offset
                found.append((first, first + chunk.total_compressed_size))
    return found


def _unless_replaced(store: Store, part: str, read: Callable[[], T]) -> T:
    """The result of `read`. A part that another process has written since it was listed would look damaged."""
    try:
        return read()
    except DamagedFile:
        if not store.tails.forget(part):
            raise
    return read()


Path = tuple[str, ...]  # of a column: its name, then those of fields of structs


def read_columns(
    store: Store,
    parts: Sequence[str],
    columns: Mapping[str, Path],
    schema: pa.Schema,
    change: Callable[[pa.Table], pa.Table] = lambda rows: rows,
) -> list[pa.Table]:
    """Columns of each part, name -> path; no others are read, also within structs.

    `schema`: has all paths; what a part of an earlier version lacks is null. `change`: of the columns of each part, so
    that less is held in memory. Raises `DamagedFile`.
    """

    def read(part: str) -> pa.Table:
        def wanted(own: pa.Schema) -> list[str]:
            return [".".join(path) for path in columns.values() if type_at(own, path) is not None] or ["clip_id"]

        return change(_columns_of(read_part(store, part, wanted), columns, schema))

    with ThreadPoolExecutor(PARALLEL_PARTS) as pool:
        return list(pool.map(read, parts))  # raises the first error


def read_joined(
    store: Store,
    parts: Sequence[str],
    columns: Mapping[str, Path],
    schema: pa.Schema,
    change: Callable[[pa.Table], pa.Table] = lambda rows: rows,
) -> pa.Table:
    """The same in one table. Of successive small parts, all columns are read at once and kept for the next query."""
    tables: list[pa.Table] = []
    for run, rows in joined_runs(store, parts):
        if rows is None:
            tables += read_columns(store, run, columns, schema, change)
        else:
            tables.append(change(_columns_of(rows, columns, schema)))
    empty = pa.schema([(name, type_at(schema, path)) for name, path in columns.items()]).empty_table()
    return pa.concat_tables(tables or [change(empty)])


def joined_runs(store: Store, parts: Sequence[str]) -> Iterator[tuple[list[str], pa.Table | None]]:
    """The parts in runs: successive small ones with all their rows, and others, with None."""
    for is_small, several in groupby(parts, lambda part: store.size(part) <= TAIL_BYTES):
        run = list(several)
        yield run, _small_parts(store, run) if is_small and len(run) >= MIN_SMALL_PARTS else None


def _small_parts(store: Store, parts: Sequence[str]) -> pa.Table | None:
    """All rows of small parts; None if their columns differ, or they take too much memory."""
    states = [store.state(part) for part in parts]
    key = parts[0].rpartition("/")[0]
    kept_states, kept = store.kept_rows.get(key, (None, None))
    if kept_states == (parts, states):
        return kept
    store.kept_rows.pop(key, None)
    if sum(1 for _ in _leaves(list(_schema_of(store, parts[0])))) > MAX_KEPT_COLUMNS:
        return None
    with ThreadPoolExecutor(PARALLEL_PARTS) as pool:
        tables, nbytes = list[pa.Table](), 0
        for start in range(0, len(parts), SMALL_PARTS_AT_A_TIME):
            several = parts[start : start + SMALL_PARTS_AT_A_TIME]
            read = map if store.is_local else pool.map  # a disk has no latency that is worth the threads
            tables += read(lambda part: read_part(store, part), several)
            nbytes += sum(table.nbytes for table in tables[start:])
            if nbytes > MAX_KEPT_BYTES or not all(table.schema.equals(tables[0].schema) for table in tables[start:]):
                return None
    rows = pa.concat_tables(table.replace_schema_metadata(None) for table in tables).combine_chunks()
    store.kept_rows[key] = (list(parts), states), rows
    return rows


def _columns_of(rows: pa.Table, columns: Mapping[str, Path], schema: pa.Schema) -> pa.Table:
    arrays = []
    for path in columns.values():
        kind = type_at(schema, path)
        there = type_at(rows.schema, path) is not None
        arrays.append(_column_at(rows, path, kind) if there else pa.nulls(len(rows), kind))
    return pa.table(arrays, names=list(columns))


def type_at(schema: pa.Schema, path: Path) -> pa.DataType | None:
    """The type of a column; None if there is no such path."""
    kind = pa.struct(list(schema))
    for name in path:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind


def _column_at(rows: pa.Table, path: Path, kind: pa.DataType) -> pa.ChunkedArray:
    column = rows.column(path[0])
    for name in path[1:]:
        column = pc.struct_field(column, name)
    return column if column.type == kind else column.cast(kind)


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
        measure_texts(store, part, _open(store, part))
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

    `reopen`: the dataset anew, if parts have been merged into others since they were listed; the rows are the same.
    Raises `DamagedFile` if the first part, whose schema counts unless one is given, is damaged.
    """

    def __init__(self, store: Store, parts: Sequence[str], schema: pa.Schema | None = None) -> None:
        self.store, self.parts, self.schema = store, parts, _schema_of(store, parts[0]) if schema is None else schema
        self.reopen: Callable[[], CheckedDataset] | None = None

    @cached_property
    def unchecked(self) -> pads.Dataset:
        """The dataset itself. Its reads are verified too, but errors in parts without checksums are pyarrow's."""
        if not self.parts:
            return pads.dataset(self.schema.empty_table())
        for part in self.parts:
            if not is_measured(self.store, part):
                with _named(self.store, part):
                    measure_texts(self.store, part, _open(self.store, part))
        options = pads.ParquetFragmentScanOptions(page_checksum_verification=True)
        with part_errors(self.store, self.parts):
            return pads.dataset(
                [self.store.path(part) for part in self.parts],
                filesystem=pafs.PyFileSystem(_CheckedFiles(self.store)),
                format=pads.ParquetFileFormat(default_fragment_scan_options=options),
                schema=self.schema,
            )

    def to_table(
        self, columns: Sequence[str] | Mapping[str, Path | pads.Expression] | None = None, **options: Any
    ) -> pa.Table:
        """See `pyarrow.dataset.Dataset`. `columns` also allows paths, which are much faster than expressions.

        With paths or names alone, no other columns and fields of structs are read.
        """
        for _ in range(MAX_REOPENED):
            try:
                return self._to_table(columns, **options)
            except FileNotFoundError as error:
                self._reopen(error)
        return self._to_table(columns, **options)

    def _to_table(self, columns: Any, **options: Any) -> pa.Table:
        names = self.schema.names if columns is None else columns
        paths = names if isinstance(names, Mapping) else {name: (name,) for name in names}
        is_plain = all(isinstance(path, tuple) and type_at(self.schema, path) is not None for path in paths.values())
        if is_plain and not options:
            return read_joined(self.store, self.parts, paths, self.schema)
        if isinstance(columns, Mapping):
            columns = {name: pads.field(*path) if isinstance(path, tuple) else path for name, path in columns.items()}
        with part_errors(self.store, self.parts):
            return _validated(self.unchecked.to_table(columns=columns, **options))

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

    def _reopen(self, error: FileNotFoundError) -> None:
        """Read the parts that are there now."""
        if self.reopen is None:
            raise error
        self.parts = self.reopen().parts
        self.__dict__.pop("unchecked", None)


def _schema_of(store: Store, part: str) -> pa.Schema:
    with open_part(store, part) as file:
        return file.schema_arrow


def parts_dataset(store: Store, parts: Sequence[str], schema: pa.Schema | None = None) -> CheckedDataset:
    """Parts as a lazy dataset; reading it raises `DamagedFile` that names the part. `schema`: default: the first's."""
    return CheckedDataset(store, parts, schema)

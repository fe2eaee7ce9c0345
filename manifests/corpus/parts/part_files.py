"""Reading and writing the Parquet parts of a corpus: every byte that is read is verified first.

All reads go through `CheckedFile`, so that footers, page headers and pages are covered alike; Parquet's page checksums
are written too, for other programs, and verified. Parts of earlier versions have no checksums and are read as they are.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from openuni.manifests.corpus.parts.part_limits import check_declared
from openuni.manifests.corpus.parts.part_texts import OpenedPart, is_among, is_measured, measure_texts, read_opened
from openuni.manifests.errors import DamagedFile
from openuni.manifests.storage.checked_file import CheckedFile
from openuni.manifests.storage.checksums import TAIL_BYTES, add_block_checksums
from openuni.manifests.storage.store import Store

T = TypeVar("T")
READ_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
VERIFIED_BYTES = 8 * 1024**2  # read at a time by `verify_part`


def table_bytes(table: pa.Table) -> bytes:
    """Serialize a table as one Parquet file in memory, with page and block checksums."""
    sink = io.BytesIO()
    # dictionaries of numbers, which hardly repeat, cost time and space
    texts = [path for path, kind in leaves(list(table.schema)) if pa.types.is_string(kind)]
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, use_dictionary=texts or False)
    return add_block_checksums(sink.getvalue())


def leaves(fields: Sequence[pa.Field], prefix: str = "") -> Iterator[tuple[str, pa.DataType]]:
    """Path in the file and type of every column that Parquet stores."""
    for field in fields:
        path = f"{prefix}{field.name}"
        if pa.types.is_struct(field.type):
            yield from leaves(list(field.type), f"{path}.")
        elif pa.types.is_list(field.type):
            yield from leaves([field.type.value_field.with_name("element")], f"{path}.list.")
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
    store: Store, part: str, columns: Sequence[str] | Callable[[pa.Schema], Sequence[str] | None] | None = None
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
                return validated(read_opened(store, part, opened, wanted))

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
        rows = read_part(store, part, lambda own: names_there(own, columns))
        return change(columns_of(rows, columns, schema))

    with ThreadPoolExecutor(store.parallel_files) as pool:
        return list(pool.map(read, parts))  # raises the first error


def names_there(own: pa.Schema, columns: Mapping[str, Path]) -> list[str]:
    """Dotted names of the columns that are there; a part is never read without any."""
    return [".".join(path) for path in columns.values() if type_at(own, path) is not None] or ["clip_id"]


def columns_of(rows: pa.Table, columns: Mapping[str, Path], schema: pa.Schema) -> pa.Table:
    """Columns of rows (name -> path) with the types of `schema`; null where rows lack them."""
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
    decode(store, part)
    return False


def content_digest(store: Store, part: str) -> str:
    """A digest of all bytes of a part, from its checksums: only its end is read. Empty for parts without them.

    Raises `DamagedFile` if the end is damaged.
    """
    with CheckedFile(store, part) as file:
        if file.table is None:
            return ""
        return xxhash.xxh3_128_hexdigest(b"".join([file.table.checksums, file.footer()]))


def decode(store: Store, part: str) -> None:
    """Decode a whole part. Raises `DamagedFile` if that fails."""
    with _named(store, part), open_part(store, part) as parquet:
        measure_texts(store, part, _open(store, part))
        for batch in parquet.iter_batches():
            batch.validate(full=True)


def measure_parts(store: Store, parts: Sequence[str]) -> None:
    """See `measure_texts`: of parts that pyarrow will read by itself. Raises `DamagedFile`."""
    for part in parts:
        if not is_measured(store, part):
            with _named(store, part):
                measure_texts(store, part, _open(store, part))


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
            decode(store, part)
        raise


def validated(table: pa.Table) -> pa.Table:
    """The table. Raises `pyarrow.ArrowInvalid` for texts that are no UTF-8; takes a fifth of a second per GB."""
    table.validate(full=True)
    return table


def schema_of(store: Store, part: str) -> pa.Schema:
    """The schema of a part. Raises `DamagedFile`."""
    with open_part(store, part) as file:
        return file.schema_arrow

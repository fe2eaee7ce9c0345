"""Reading many small parts: in one table, since every call costs as much as thousands of rows, and if possible once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import pyarrow as pa

from openuni.manifests.corpus.parts.part_files import (
    Path,
    columns_of,
    leaves,
    names_there,
    read_columns,
    read_part,
    schema_of,
    type_at,
)
from openuni.manifests.storage.checksums import TAIL_BYTES
from openuni.manifests.storage.store import Store

MIN_JOINED_PARTS = 4  # successive ones
MAX_JOINED_BYTES = 1024**2  # of a part
PARTS_AT_A_TIME = 128
MAX_KEPT_COLUMNS = 48  # of small parts with more, only the columns that are asked for are read, each time
MAX_KEPT_BYTES = 128 * 1024**2  # rows of the small parts of a column group


def read_joined(
    store: Store,
    parts: Sequence[str],
    columns: Mapping[str, Path],
    schema: pa.Schema,
    change: Callable[[pa.Table], pa.Table] = lambda rows: rows,
) -> pa.Table:
    """The same in one table. Of successive small parts, all columns are read at once and kept for the next query."""

    def wanted(part: str, own: pa.Schema) -> list[str]:
        return names_there(own, columns)

    tables: list[pa.Table] = []
    for run, rows in joined_runs(store, parts, wanted):
        if rows is None:
            tables += read_columns(store, run, columns, schema, change)
        else:
            tables.append(change(columns_of(rows, columns, schema)))
    empty = pa.schema([(name, type_at(schema, path)) for name, path in columns.items()]).empty_table()
    return pa.concat_tables(tables or [change(empty)])


def joined_runs(
    store: Store, parts: Sequence[str], wanted: Callable[[str, pa.Schema], list[str]]
) -> Iterator[tuple[list[str], pa.Table | None]]:
    """The parts in runs: successive ones with their rows in one table, and large or different ones, with None.

    `wanted`: of a part and its schema, the columns that are needed, as dotted names. Others may be there, too.
    """
    for size_class, several in groupby(parts, lambda part: _size_class(store.size(part))):
        run = list(several)
        if size_class == "large" or len(run) < MIN_JOINED_PARTS:
            yield run, None
            continue
        columns = sum(1 for _ in leaves(list(schema_of(store, run[0]))))
        if size_class == "small" and columns <= MAX_KEPT_COLUMNS:
            rows = _kept_rows(store, run)
            if rows is not None:
                yield run, rows
                continue
        for start in range(0, len(run), PARTS_AT_A_TIME):
            chunk = run[start : start + PARTS_AT_A_TIME]
            yield chunk, _read(store, chunk, wanted)


def _size_class(nbytes: int) -> str:
    if nbytes <= TAIL_BYTES:
        return "small"
    return "medium" if nbytes <= MAX_JOINED_BYTES else "large"


def _kept_rows(store: Store, parts: Sequence[str]) -> pa.Table | None:
    """All rows of small parts, kept for the next query; None if their columns differ, or they take too much memory."""
    states = [store.state(part) for part in parts]
    key = parts[0].rpartition("/")[0]
    kept_states, kept = store.kept_rows.get(key, (None, None))
    if kept_states == (parts, states):
        return kept
    store.kept_rows.pop(key, None)
    tables, nbytes = list[pa.Table](), 0
    for start in range(0, len(parts), PARTS_AT_A_TIME):
        rows = _read(store, parts[start : start + PARTS_AT_A_TIME], lambda part, own: None)
        nbytes += rows.nbytes if rows is not None else 0
        if rows is None or not rows.schema.equals((tables or [rows])[0].schema) or nbytes > MAX_KEPT_BYTES:
            return None
        tables.append(rows)
    rows = pa.concat_tables(tables).combine_chunks()
    store.kept_rows[key] = (list(parts), states), rows
    return rows


def _read(store: Store, parts: Sequence[str], wanted: Callable[[str, pa.Schema], list[str] | None]) -> pa.Table | None:
    """The columns wanted (None: all) of parts, in one table; None if the parts do not all have the same columns."""
    first = schema_of(store, parts[0])
    names = wanted(parts[0], first)
    differ = []

    def read(part: str) -> pa.Table:
        def same(own: pa.Schema) -> Sequence[str] | None:
            if own.equals(first):
                return names
            differ.append(part)
            return []

        return read_part(store, part, same).replace_schema_metadata(None)

    if store.is_local:
        tables = list(map(read, parts))  # a disk has no latency that is worth the threads
    else:
        with ThreadPoolExecutor(store.parallel_files) as pool:
            tables = list(pool.map(read, parts))
    return None if differ else pa.concat_tables(tables).combine_chunks()

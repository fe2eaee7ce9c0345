"""The parts of column groups: which files they are, also while parts are being merged, their shards and their rows.

`compaction.py` merges parts into one whose name is FIRST-cN: FIRST is the first of them, without the suffix of an
earlier compaction, and N counts compactions. Its footer lists the parts that it replaces. Writing it is the commit:
from then on these parts are hidden. They are deleted next, the first one last, so that names tell whether a deletion is
unfinished: only then are lists read. A group whose rows are replaced as a whole is written in the same way.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from openuni.manifests.corpus.layout import PART_SUFFIX, SHARD_SUFFIXES, in_folder, operator_of
from openuni.manifests.corpus.names import check_part_names, is_shard, name_columns
from openuni.manifests.corpus.parts.checked_dataset import CheckedDataset, parts_dataset
from openuni.manifests.corpus.parts.part_files import (
    Path,
    columns_of,
    names_there,
    open_part,
    read_columns,
    read_part,
    schema_of,
)
from openuni.manifests.corpus.parts.part_limits import check_kinds, check_values, checked_columns
from openuni.manifests.corpus.parts.small_parts import joined_runs, read_joined
from openuni.manifests.errors import DamagedFile, OpenUniError
from openuni.manifests.storage.checksums import TAIL_BYTES
from openuni.manifests.storage.store import Store

T = TypeVar("T")
REPLACES_KEY = b"openuni.replaces"  # in the footer: JSON list of names in the same folder
COMPACTED = re.compile(r"(.+)-c([0-9]{1,9})")
PAGE_ENTRIES = 1000  # number of entries that an object store lists at once
PARTS_AT_A_TIME = 8  # of large parts, held in memory together
MAX_LISTINGS = 20  # while another process moves or merges parts


def visible_parts(store: Store, folder: str) -> list[str]:
    """Names of the Parquet files directly in `folder`, without those that another one replaces, in order.

    Raises `DamagedFile` if a part that may replace others is damaged.
    """
    for _ in range(MAX_LISTINGS):
        entries = store.names(folder, "")
        seen = parts = [name for name in entries if name.endswith(PART_SUFFIX)]
        if store.is_local or len(entries) >= PAGE_ENTRIES:
            # A listing in several steps may miss a merged part, written after its place was passed, together with
            # parts deleted before theirs was reached. A listing from before has these.
            parts = store.names(folder, PART_SUFFIX)
        try:
            hidden = replaced_parts(store, parts, seen)
        except FileNotFoundError:
            continue  # merged again meanwhile
        if set(seen) <= {*parts, *hidden}:
            return [name for name in parts if name not in hidden]
    raise OpenUniError(
        f"{store.location(folder)}: another process is moving or merging its parts. Wait for it, then rerun."
    )


def relisted(read: Callable[[], T]) -> T:
    """The result of `read`, which lists parts and reads them; again if a part was moved or merged in between."""
    for _ in range(MAX_LISTINGS):
        with suppress(FileNotFoundError):
            return read()
    return read()


def replaced_parts(store: Store, parts: Collection[str], seen: Collection[str] = ()) -> set[str]:
    """Names, present or not, that some of `parts` replace, if a deletion is unfinished. `seen`: an earlier listing."""
    return {name for names in unfinished_compactions(store, parts, seen).values() for name in names}


def unfinished_compactions(store: Store, parts: Collection[str], seen: Collection[str] = ()) -> dict[str, list[str]]:
    """The merged parts whose first part has not been deleted yet -> `replaced_by` of them."""
    families: dict[str, list[tuple[int, str]]] = {}
    for name in {*parts, *seen}:
        first, count = compactions(name)
        families.setdefault(first, []).append((count, name))
    merged = [name for members in families.values() for _, name in sorted(members)[1:]]
    return {name: replaced_by(store, name) for name in merged if name in parts}


def compactions(part: str) -> tuple[str, int]:
    """The name, without suffix, of the first part that was merged into this one, and the number of compactions."""
    stem = part.removesuffix(PART_SUFFIX)
    match = COMPACTED.fullmatch(stem)
    return (match[1], int(match[2])) if match else (stem, 0)


def merged_name(first: str) -> str:
    """The name of the part that several are merged into; `first`: the first of them."""
    stem, count = compactions(first)
    return f"{stem}-c{count + 1}{PART_SUFFIX}"


def replacing(parts: Sequence[str]) -> dict[bytes, bytes]:
    """What the footer of a part holds that replaces others of its folder."""
    return {REPLACES_KEY: json.dumps([name.rpartition("/")[2] for name in parts]).encode()}


def replaced_by(store: Store, part: str) -> list[str]:
    """The parts that a merged part replaces, the first one last. Raises `DamagedFile`."""
    with open_part(store, part) as file:
        text = (file.schema_arrow.metadata or {}).get(REPLACES_KEY, b"[]")
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    folder = part.rpartition("/")[0]
    if not isinstance(names, list) or not all(isinstance(name, str) and "/" not in name for name in names):
        raise DamagedFile(store.location(part), f"{REPLACES_KEY.decode()} is not a list of file names")
    return [in_folder(folder, name) for name in reversed(names) if in_folder(folder, name) != part]


def finish_compactions(store: Store, folder: str) -> int:
    """Delete the parts that a killed compaction has merged; return their number. The caller may write to the corpus.

    Raises `DamagedFile` if the merged part is damaged: the others may be all that is left.
    """
    names = set(store.names(folder, PART_SUFFIX))
    found = unfinished_compactions(store, names)
    return sum(delete_replaced(store, merged, [name for name in old if name in names]) for merged, old in found.items())


def delete_replaced(store: Store, merged: str, parts: Sequence[str]) -> int:
    """Delete parts that have been merged, in the order of `replaced_by`; return their number.

    Their shards without any payload in use, such as those of failed clips, are deleted before.
    """
    folder = merged.rpartition("/")[0]
    own = {part.removesuffix(PART_SUFFIX) + suffix for part in parts for suffix in SHARD_SUFFIXES}
    unused = own.intersection(store.names(folder, SHARD_SUFFIXES)) - _files_of(store, merged)
    if unused:  # rare, and only then are all parts looked at
        unused = unused.difference(*(_files_of(store, part) for part in visible_parts(store, folder)))
    with ThreadPoolExecutor(store.parallel_files) as pool:
        for several in (sorted(unused), parts[:-1], parts[-1:]):
            list(pool.map(store.delete, several))  # raises the first error
    return len(parts)


def _files_of(store: Store, part: str) -> set[str]:
    return {in_folder(part.rpartition("/")[0], shard) for shard in shards_of_part(store, part)}


def unused_name(store: Store, folder: str, name: str) -> str:
    """`name`, or if a merged part is called after it, which would hide a part of this name: another one."""
    stems = [part.removesuffix(PART_SUFFIX) for part in store.names(folder, PART_SUFFIX)]
    taken = {compactions(stem)[0] for stem in stems if compactions(stem)[1]}
    while in_folder(folder, name) in taken:
        name += "-r"
    return name


# ---------------------------------------------------------------------- shards


def shard_columns(schema: pa.Schema) -> list[tuple[str, ...]]:
    """Paths of the columns with names of shards: top-level, or in the structs of modalities."""
    found: list[tuple[str, ...]] = []

    def visit(fields: Any, path: tuple[str, ...]) -> None:
        for field in fields:
            if field.name == "shard":
                found.append((*path, field.name))
            elif pa.types.is_struct(field.type):
                visit(field.type, (*path, field.name))

    visit(schema, ())
    return found


def shards_of(rows: pa.Table) -> set[str]:
    """Names, relative to the folder, of the shards that rows of a part refer to. Other columns are not needed.

    References that are not plain file names are left out.
    """
    found = (name for column in _shard_names(rows) for name in pc.unique(column).to_pylist())
    return {name for name in found if name is not None and is_shard(name)}


def shards_of_part(store: Store, part: str) -> set[str]:
    """The same of a part, of which only these columns are read."""
    return shards_of(_read_shard_columns(store, part))


def rows_with_shard(store: Store, part: str, shard: str) -> set[int]:
    """Indices of the rows of a part that refer to a shard, by its name relative to the folder."""
    columns = _shard_names(_read_shard_columns(store, part))
    masks = (pc.fill_null(pc.equal(column, shard), False).to_numpy() for column in columns)
    return {row for mask in masks for row in np.flatnonzero(mask).tolist()}


def _read_shard_columns(store: Store, part: str) -> pa.Table:
    return read_part(store, part, lambda schema: [".".join(path) for path in shard_columns(schema)])


def _shard_names(rows: pa.Table) -> Iterator[pa.ChunkedArray]:
    for top, *rest in shard_columns(rows.schema):
        column = rows.column(top)
        for name in rest:
            column = pc.struct_field(column, name)
        yield column


# ---------------------------------------------------------------------- rows


class GroupReader:
    """Reads the rows of column groups."""

    def __init__(self, store: Store) -> None:
        self.store = store
        # parts whose names were found harmless -> their shards and those of parts that were checked together
        self._checked_parts: dict[str, set[str]] = {}

    def parts(self, group: str) -> list[str]:
        """Names of a group's visible Parquet files, in order of creation."""
        return visible_parts(self.store, group)

    def dataset(self, group: str, schema: pa.Schema | None = None) -> CheckedDataset:
        """The group as a lazy pyarrow dataset. `schema`: used for groups without parts; default: only `clip_id`.

        Reading raises `DamagedFile` for a damaged part. `dataset(group).unchecked` is the `pyarrow.dataset.Dataset`.
        """

        def open_parts() -> CheckedDataset:
            parts = self.parts(group)
            if not parts:
                return CheckedDataset(self.store, [], schema or pa.schema([pa.field("clip_id", pa.string())]))
            self.check_names(parts)
            found = parts_dataset(self.store, parts, schema)
            if operator_of(group) is not None:
                self.operator_column(found.schema, group)
            return found

        found = relisted(open_parts)
        found.reopen = open_parts
        return found

    def table(
        self, group: str, columns: Sequence[str] | Mapping[str, Path | pads.Expression] | None = None
    ) -> pa.Table:
        """The group in memory, one row per clip. `columns`: see `CheckedDataset.to_table`; default: all."""
        selection = list(columns) if isinstance(columns, Sequence) else columns
        return self.dataset(group).to_table(columns=selection)

    def columns(
        self,
        group: str,
        paths: Mapping[str, Path],
        change: Callable[[pa.Table], pa.Table] = lambda rows: rows,
        schema: pa.Schema | None = None,
    ) -> pa.Table:
        """Columns of a group (name -> path), after `change` of those of each part; see `read_columns`."""

        def read() -> pa.Table:
            dataset = self.dataset(group, schema)
            return read_joined(self.store, dataset.parts, paths, dataset.schema, change)

        return relisted(read)

    def look_up(self, group: str, ids: pa.Array, columns: Mapping[str, Path | pads.Expression]) -> pa.StructArray:
        """Columns of a group (name -> path or expression) for each clip_id, in the order of `ids`; null without a row.

        The result stays in Arrow, where a hundred thousand rows take a few megabytes; `array[i].as_py()` converts one
        row to a dict.
        """
        paths: dict[str, Any] = {"clip_id": ("clip_id",)} | dict(columns)
        dataset = self.dataset(group)
        if all(isinstance(path, tuple) for path in paths.values()):
            table = self.columns(group, paths, lambda rows: rows.filter(pc.is_in(rows["clip_id"], value_set=ids)))
        else:
            table = dataset.to_table(columns=paths, filter=pads.field("clip_id").isin(ids))
        rows = pc.index_in(ids, value_set=table.column("clip_id").combine_chunks())
        return table.drop_columns("clip_id").to_struct_array().combine_chunks().take(rows)

    def find(self, group: str, clip_id: str) -> dict[str, Any] | None:
        """A clip's row in a group, or None. Reads only the ids to locate the row, then its part."""
        return relisted(lambda: self._find(group, clip_id))

    def _find(self, group: str, clip_id: str) -> dict[str, Any] | None:
        dataset = self.dataset(group)

        def place(part: str) -> int:
            ids = read_columns(self.store, [part], {"clip_id": ("clip_id",)}, dataset.schema)[0]["clip_id"]
            return int(pc.index(ids, clip_id).as_py())

        with ThreadPoolExecutor(self.store.parallel_files) as pool:
            for part, row in zip(dataset.parts, pool.map(place, dataset.parts), strict=True):
                if row >= 0:
                    rows = parts_dataset(self.store, [part], dataset.schema).to_table()
                    return dict(rows.slice(row, 1).to_pylist()[0])
        return None

    def check_names(self, parts: Sequence[str]) -> None:
        """Raise `OpenUniError` for a clip id, shard, collection, split or number that must not be used.

        Every access to rows is preceded by it, so that no later code needs to doubt them. Reads a part once.
        """
        unchecked = [part for part in parts if part not in self._checked_parts]
        for run, rows in joined_runs(self.store, unchecked, _checked_names):
            if rows is not None:
                with suppress(OpenUniError):  # of which part: see below
                    group = run[0].rpartition("/")[0]
                    check_kinds(schema_of(self.store, run[0]), group, self.store.url)
                    self._checked_parts.update(dict.fromkeys(run, _checked(rows, group, self.store.url)))
                    continue
            with ThreadPoolExecutor(self.store.parallel_files) as pool:
                self._checked_parts.update(zip(run, pool.map(self.check_part, run), strict=True))  # or the first error

    def checked_tables(self, group: str, columns: Sequence[str], schema: pa.Schema | None = None) -> Iterator[pa.Table]:
        """Columns of a group, a few parts at a time, so that millions of rows are never in memory together.

        As by `dataset`, rows are checked first, but each part is read once only. Raises `DamagedFile`; and
        `FileNotFoundError` if parts are merged meanwhile: see `relisted`. `schema`: default: that of the first part.
        Columns that it lacks are left out.
        """
        parts = self.parts(group)
        if not parts:
            if schema is not None:
                yield schema.empty_table().select(list(columns))
            return
        schema = schema_of(self.store, parts[0]) if schema is None else schema
        columns = [name for name in columns if name in schema.names]
        paths = {name: (name,) for name in columns}
        if all(self.store.size(part) <= TAIL_BYTES for part in parts):  # their rows are kept for other queries
            self.check_names(parts)
            yield read_joined(self.store, parts, paths, schema)
            return

        def read(part: str) -> pa.Table:
            where = f"{self.store.url}/{part}"

            def needed(own: pa.Schema) -> list[str]:
                check_kinds(own, group, where)
                return list(dict.fromkeys([*names_there(own, paths), *_checked_names(part, own)]))

            rows = read_part(self.store, part, needed)
            if part not in self._checked_parts:
                self._checked_parts[part] = _checked(rows, group, where)
            return columns_of(rows, paths, schema)

        with ThreadPoolExecutor(self.store.parallel_files) as pool:
            for start in range(0, len(parts), PARTS_AT_A_TIME):
                yield pa.concat_tables(pool.map(read, parts[start : start + PARTS_AT_A_TIME]))

    def check_part_values(self, part: str, group: str) -> None:
        """Raise `DamagedFile` for numbers and types of a part with which its rows cannot be used."""
        with open_part(self.store, part) as file:
            schema = file.schema_arrow
        check_kinds(schema, group, self.store.location(part))
        if columns := checked_columns(group, schema):
            check_values(read_part(self.store, part, columns), group, self.store.location(part))

    def check_part(self, part: str) -> set[str]:
        """As `check_names`, for one part; returns the shards that it refers to."""
        group, where = part.rpartition("/")[0], f"{self.store.url}/{part}"

        def needed(schema: pa.Schema) -> list[str]:
            check_kinds(schema, group, where)
            return _checked_names(part, schema)

        return _checked(read_part(self.store, part, needed), group, where)

    def operator_column(self, schema: pa.Schema, group: str) -> pa.Field:
        """The column that has the operator's name; raises `OpenUniError` for a folder that holds another's rows."""
        operator = operator_of(group) or ""
        if operator not in schema.names:
            raise OpenUniError(
                f"{self.store.url}/{group} holds rows of {', '.join(schema.names[1:])}, not of {operator}. If "
                "the folder was renamed, restore its name; otherwise delete it and run again."
            )
        return schema.field(operator)


def _checked_names(part: str, schema: pa.Schema) -> list[str]:
    """The columns of a part that `_checked` looks at, as dotted names."""
    names = [".".join(path) for path in name_columns(schema)]
    return list(dict.fromkeys([*names, *checked_columns(part.rpartition("/")[0], schema)]))


def _checked(rows: pa.Table, group: str, where: str) -> set[str]:
    """The shards that rows refer to. Raises `OpenUniError` for names and numbers that must not be used."""
    check_part_names(rows, list(name_columns(rows.schema)), where)
    check_values(rows, group, where)
    return shards_of(rows)

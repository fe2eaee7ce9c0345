"""The column groups of a corpus: reading, writing and versioning.

Column groups: `clips`, `filters/NAME`, `annotations/NAME`, `latents/FAMILY/MODALITY`, `text/FAMILY`. Each is a folder
of Parquet parts and the shards that they refer to. A clip has at most one row per group, and all rows of a group have
the same version: parts of other versions are moved to the group's `superseded/` folder.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from openuni.manifests.corpus.layout import (
    CLIPS,
    LATENTS,
    MAX_GROUP_DEPTH,
    OPEN,
    OPERATOR_FOLDERS,
    SUPERSEDED,
    TEXT,
    annotation_group,
    family_record,
    latent_group,
    operator_group,
    operator_of,
    superseded,
    text_group,
)
from openuni.manifests.corpus.names import check_folder_names, check_part_names, is_shard, name_columns, shown
from openuni.manifests.corpus.part_files import CheckedDataset, open_part, parts_dataset, read_part, table_bytes
from openuni.manifests.corpus.shards import Shard, checksum
from openuni.manifests.corpus.writer import (
    PartWriter,
    new_part_name,
    open_parts_dir,
    recover,
    spool_dir,
    storage_errors,
)
from openuni.manifests.errors import DamagedFile, OpenUniError
from openuni.manifests.storage.checksums import parse_record, record_bytes
from openuni.manifests.storage.store import Store

PARALLEL_PARTS = 8  # files processed concurrently, to hide the latency of object stores
VERSION_KEY = b"openuni.version"
FAMILY_TYPES: dict[str, dict[str, Any]] = {
    LATENTS: {"codec": str, "options": dict, "size_px": list[int], "frames": int, "modalities": list[str]},
    TEXT: {"codec": str, "options": dict},
}
FAMILY_REMEDY = (
    "The tensors are not affected. Restore the file, or delete it and run `openuni run RECIPE --out CORPUS` with the "
    "recipe that encoded them: it writes the file again and recomputes nothing."
)


class ColumnGroups:
    """A corpus as a collection of column groups. `record`: the contents of its corpus.json."""

    def __init__(self, store: Store, record: dict[str, Any]) -> None:
        self.store = store
        self.record = record
        self._checked_parts: set[str] = set()  # parts whose names were found harmless

    def write_json(self, name: str, record: dict[str, Any]) -> None:
        """Write a JSON file of the corpus atomically, with its checksum, unless its contents are the same."""
        data = record_bytes(record)
        if not self.store.exists(name) or self.read_json(name) != parse_record(data, name):
            with storage_errors(self.store):
                self.store.put(name, data)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the corpus. Raises `DamagedFile` if it is not an object or its checksum differs."""
        return parse_record(self.store.read(name), self.store.location(name))

    # ------------------------------------------------------------------ groups and parts

    def operators(self, kind: str) -> list[str]:
        """Names of the operators that have rows; `kind`: "filter" or "annotator".

        An operator whose first part is still open (being written, or left behind by a kill) has none yet.
        """
        found = self._folders(OPERATOR_FOLDERS[kind])
        return [name for name in found if self.parts(operator_group(kind, name))]

    def unfinished_operators(self, kind: str) -> list[str]:
        """Operators of the last run, and any with a folder, that have no rows yet; `kind`: "filter" or "annotator"."""
        known = [*self.record[f"{kind}s"], *self._folders(OPERATOR_FOLDERS[kind])]
        return [name for name in dict.fromkeys(known) if not self.parts(operator_group(kind, name))]

    def families(self) -> dict[str, dict[str, Any]]:
        """Latent families: name -> record (codec, options, size_px, frames, modalities, fingerprint)."""
        return self._family_records(LATENTS)

    def text_families(self) -> dict[str, dict[str, Any]]:
        """Text families: name -> record (codec, options, fingerprint)."""
        return self._family_records(TEXT)

    def groups(self) -> list[str]:
        """All column groups that have rows, `clips` first."""
        return [group for group in self.group_folders() if self.parts(group)]

    def parts(self, group: str) -> list[str]:
        """Names of a group's visible Parquet files, in order of creation."""
        return self.store.names(group, ".parquet")

    def group_version(self, group: str) -> str:
        """The version of a group's rows; "none" if it is empty."""
        parts = self.parts(group)
        return self._part_version(parts[0]) if parts else "none"

    def has_modality(self, annotator: str, modality: str) -> bool:
        """Whether an annotator's column group has a field for a modality."""
        fields = self.operator_fields(annotation_group(annotator))
        return any(field.name == modality and pa.types.is_struct(field.type) for field in fields)

    def operator_fields(self, group: str) -> list[pa.Field]:
        """The fields of the struct column of an operator's group; none while it is empty."""
        parts = self.parts(group)[:1]  # all parts of a group share a schema
        return [field for part in parts for field in self._operator_column(self._part_schema(part), group).type]

    def dataset(self, group: str, schema: pa.Schema | None = None) -> CheckedDataset:
        """The group as a lazy pyarrow dataset. `schema`: used for groups without parts; default: only `clip_id`.

        Reading raises `DamagedFile` for a damaged part. `dataset(group).unchecked` is the `pyarrow.dataset.Dataset`.
        """
        parts = self.parts(group)
        if not parts:
            empty = (schema or pa.schema([pa.field("clip_id", pa.string())])).empty_table()
            return CheckedDataset(self.store, [], pads.dataset(empty))
        self.check_names(parts)
        found = parts_dataset(self.store, parts, schema)
        if operator_of(group) is not None:
            self._operator_column(found.schema, group)
        return found

    def table(self, group: str, columns: Sequence[str] | Mapping[str, pads.Expression] | None = None) -> pa.Table:
        """The group in memory, one row per clip. `columns`: names, or name -> pyarrow expression; default: all."""
        selection = list(columns) if isinstance(columns, Sequence) else columns
        return self.dataset(group).to_table(columns=selection)

    def look_up(self, group: str, ids: pa.Array, columns: Mapping[str, pads.Expression]) -> pa.StructArray:
        """Columns of a group (name -> pyarrow expression) for each clip_id, in the order of `ids`; null without a row.

        The result stays in Arrow, where a hundred thousand rows take a few megabytes; `array[i].as_py()` converts one
        row to a dict.
        """
        selection = {"clip_id": pads.field("clip_id")} | dict(columns)
        table = self.dataset(group).to_table(columns=selection, filter=pads.field("clip_id").isin(ids))
        rows = pc.index_in(ids, value_set=table.column("clip_id").combine_chunks())
        return table.drop_columns("clip_id").to_struct_array().combine_chunks().take(rows)

    def find(self, group: str, clip_id: str) -> dict[str, Any] | None:
        """A clip's row in a group, or None. Reads only the ids to locate the row, then its part."""
        dataset = self.dataset(group)
        for tagged in dataset.tagged_batches(columns=["clip_id"]):
            if pc.index(tagged.record_batch.column("clip_id"), clip_id).as_py() >= 0:
                part = parts_dataset(self.store, [self.store.name_of(tagged.fragment.path)], dataset.schema)
                return dict(part.to_table(filter=pads.field("clip_id") == clip_id).to_pylist()[0])
        return None

    def missing_shards(self, group: str) -> list[str]:
        """Names of shards that rows of the group refer to and that do not exist."""
        parts = self.parts(group)
        there = {name for suffix in (".tar", ".safetensors") for name in self.store.names(group, suffix)}
        stems = {name.rpartition(".")[0] for name in there}
        missing: set[str] = set()
        for part in parts:
            if part.removesuffix(".parquet") in stems or not _shard_columns(self._part_schema(part)):
                continue
            table = parts_dataset(self.store, [part])
            for column in _shard_columns(table.schema):
                named = pc.unique(table.to_table(columns={"shard": pads.field(*column)})["shard"]).to_pylist()
                missing |= {f"{group}/{name}" for name in named if name is not None}
        return sorted(missing - there)

    def require_shards(self, groups: Sequence[str]) -> None:
        """Raise `OpenUniError` if a shard of these groups is missing."""
        missing = [name for group in groups for name in self.missing_shards(group)]
        if missing:
            raise OpenUniError("\n".join(self._missing_shard_message(name) for name in missing))

    def _missing_shard_message(self, name: str) -> str:
        return (
            f"{self.store.url}/{name} is missing. Restore it, or delete {name.rpartition('.')[0]}.parquet and rerun "
            "`openuni run` (or the import): the results of its clips are then computed again."
        )

    def read(self, group: str, shard: str, offset: int, nbytes: int, xxh3: int) -> bytes:
        """Read one payload by its extent. Raises `OpenUniError` if its checksum differs."""
        if not is_shard(shard):
            raise OpenUniError(f"{group}: shard {shown(shard)} must be a plain file name; the Parquet file is damaged")
        if offset < 0 or nbytes < 0:
            raise OpenUniError(f"{group}/{shard}: {nbytes} bytes at offset {offset}; the Parquet file is damaged")
        where = self.store.location(f"{group}/{shard}")
        try:
            data = self.store.read_range(f"{group}/{shard}", offset, nbytes)
        except FileNotFoundError as error:
            raise OpenUniError(self._missing_shard_message(f"{group}/{shard}")) from error
        except (MemoryError, OverflowError, ValueError) as error:  # of a row without checksums
            raise DamagedFile(where, f"no {nbytes} bytes at offset {offset}") from error
        if len(data) != nbytes or checksum(data) != xxh3:
            raise DamagedFile(
                where, f"checksum mismatch of {nbytes} bytes at offset {offset}; it changed after it was written"
            )
        return data

    # ------------------------------------------------------------------ writing

    def writer(self, group: str, schema: pa.Schema, version: str, shard_type: type[Shard] | None = None) -> PartWriter:
        """A writer of one group, for one worker. Rows become visible when their part is sealed."""
        return PartWriter(self.store, group, schema.with_metadata({VERSION_KEY: version.encode()}), shard_type)

    def recover(self) -> int:
        """Seal open parts of dead workers in every column group; return the number of recovered rows."""
        with storage_errors(self.store):
            return sum(recover(self.store, group) for group in self.groups_with_open_parts())

    def groups_with_open_parts(self) -> list[str]:
        """Column groups with open parts, of live or dead workers."""
        root = self.store.local("") if self.store.is_local else spool_dir(self.store)
        if self.store.is_local:
            levels = [f"{'*/' * depth}{OPEN}" for depth in range(1, MAX_GROUP_DEPTH + 1)]
            folders = [path.parent for level in levels for path in root.glob(level) if path.is_dir()]
        else:
            folders = sorted({path.parent for path in root.rglob("*.journal")})
        return [folder.relative_to(root).as_posix() for folder in folders]

    def open_parts(self, group: str) -> list[str]:
        """Names of a group's open parts, without suffix."""
        return sorted(path.stem for path in open_parts_dir(self.store, group).glob("*.journal"))

    def activate_version(self, group: str, version: str) -> None:
        """Make `version` the only visible one.

        Parts of other versions are moved to `superseded/`; earlier parts of this version are restored from there.
        """
        parts = self.parts(group)
        with ThreadPoolExecutor(PARALLEL_PARTS) as pool:
            versions = list(pool.map(self._part_version, parts))
        for part, found in zip(parts, versions, strict=True):
            if found != version:
                self._move_part(part, superseded(group, found))
        for part in self.parts(superseded(group, version)):
            self._move_part(part, group)

    def delete_by_status(self, group: str, statuses: Sequence[str], among: Mapping[str, pa.Array] | None = None) -> int:
        """Delete the rows with these statuses, so that the next run retries them; return their number.

        `among`: column -> values; restricts the deletion to rows that have one of these values in the column.
        """

        def should_delete(rows: pa.Table) -> pa.ChunkedArray:
            mask = pc.is_in(status_column(rows, group), pa.array(list(statuses)))
            for column, values in (among or {}).items():
                mask = pc.and_(mask, pc.is_in(rows.column(column), value_set=values))
            return mask

        return self.delete_rows(group, should_delete)

    def delete_rows(self, group: str, should_delete: Callable[[pa.Table], pa.ChunkedArray]) -> int:
        """Delete the rows for which `should_delete` (rows of a part -> boolean mask) is true; return their number."""
        deleted = 0

        def change(rows: pa.Table) -> pa.Table:
            nonlocal deleted
            remaining = rows.filter(pc.invert(pc.fill_null(should_delete(rows), False)))
            deleted += len(rows) - len(remaining)
            return remaining

        self.rewrite(group, change)
        return deleted

    def rewrite(self, group: str, change: Callable[[pa.Table], pa.Table]) -> None:
        """Replace each part's rows with `change(rows)`; parts whose rows stay equal are not rewritten."""
        for part in self.parts(group):
            rows = read_part(self.store, part)
            changed = change(rows)
            if not changed.equals(rows):
                with storage_errors(self.store):
                    self.store.put(part, table_bytes(changed))

    def replace(self, group: str, table: pa.Table, version: str) -> None:
        """Replace a group without payloads by one part with these rows; never leaves a part of them."""
        data = table_bytes(table.replace_schema_metadata({VERSION_KEY: version.encode()}))
        for part in self.parts(group):  # not moved to superseded/: recomputing is expected to be cheap
            self.store.delete(part)
        with storage_errors(self.store):
            self.store.put(f"{group}/{new_part_name()}.parquet", data)

    def done(self, group: str) -> pa.Array:
        """clip_ids that have a row in the group."""
        return self.table(group, ["clip_id"]).column("clip_id").combine_chunks()

    # ------------------------------------------------------------------ inner

    def group_folders(self) -> list[str]:
        """Folders of column groups, with or without rows, `clips` first."""
        found = [CLIPS]
        for folder in OPERATOR_FOLDERS.values():
            found += [f"{folder}/{name}" for name in self._folders(folder)]
        for family in self._folders(LATENTS):
            found += [latent_group(family, name) for name in self._folders(f"{LATENTS}/{family}")]
        return found + [text_group(family) for family in self._folders(TEXT)]

    def _family_records(self, kind: str) -> dict[str, dict[str, Any]]:
        found = {}
        for family in self._folders(kind):
            if self.store.exists(family_record(kind, family)):
                found[family] = self.store.read_json(family_record(kind, family), FAMILY_TYPES[kind], FAMILY_REMEDY)
        return found

    def _folders(self, folder: str) -> list[str]:
        return check_folder_names(self.store.folders(folder), f"{self.store.url}/{folder}")

    def check_names(self, parts: Sequence[str]) -> None:
        """Raise `OpenUniError` for a clip id, shard, collection or split that must not be used. Reads a part once.

        Every access to rows is preceded by it, so that no later code needs to doubt a name.
        """
        unchecked = [part for part in parts if part not in self._checked_parts]

        def check(part: str) -> None:
            with open_part(self.store, part) as file:
                columns = list(name_columns(file.schema_arrow))
            table = read_part(self.store, part, [".".join(column) for column in columns])
            check_part_names(table, columns, f"{self.store.url}/{part}")

        with ThreadPoolExecutor(PARALLEL_PARTS) as pool:
            list(pool.map(check, unchecked))  # raises the first error
        self._checked_parts.update(unchecked)

    def _row_count(self, part: str) -> int:
        with open_part(self.store, part) as file:
            return int(file.metadata.num_rows)

    def _part_version(self, part: str) -> str:
        return (self._part_schema(part).metadata or {}).get(VERSION_KEY, b"unknown").decode()

    def _part_schema(self, part: str) -> pa.Schema:
        with open_part(self.store, part) as file:
            return file.schema_arrow

    def _operator_column(self, schema: pa.Schema, group: str) -> pa.Field:
        """The column that has the operator's name; raises `OpenUniError` for a folder that holds another's rows."""
        operator = operator_of(group) or ""
        if operator not in schema.names:
            raise OpenUniError(
                f"{self.store.url}/{group} holds rows of {', '.join(schema.names[1:])}, not of {operator}. If "
                "the folder was renamed, restore its name; otherwise delete it and run again."
            )
        return schema.field(operator)

    def _move_part(self, part: str, folder: str) -> None:
        # move the Parquet file last to publish a part and first to retract it: rows must never lack their payloads
        name = part.rsplit("/", 1)[1].removesuffix(".parquet")
        source = part.rsplit("/", 1)[0]
        names = [f"{name}.parquet", f"{name}.tar", f"{name}.safetensors"]
        if f"/{SUPERSEDED}/" in part:
            names.reverse()
        for entry in names:
            if self.store.exists(f"{source}/{entry}"):
                self.store.move(f"{source}/{entry}", f"{folder}/{entry}")


def status_column(table: pa.Table, group: str) -> pa.ChunkedArray:
    """The status column of a group's table, either top-level or in the operator's struct."""
    operator = operator_of(group)
    return table.column("status") if operator is None else pc.struct_field(table.column(operator), "status")


def _shard_columns(schema: pa.Schema) -> list[tuple[str, ...]]:
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

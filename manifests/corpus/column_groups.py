"""The column groups of a corpus: reading, writing and versioning.

Column groups: `clips`, `filters/NAME`, `annotations/NAME`, `latents/FAMILY/MODALITY`, `text/FAMILY`. Each is a folder
of Parquet parts and the shards that they refer to. A clip has at most one row per group, and all rows of a group have
the same version: parts of other versions are moved to the group's `superseded/` folder.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from openuni.manifests.corpus.layout import (
    CLIPS,
    LATENTS,
    MAX_GROUP_DEPTH,
    OPEN,
    OPERATOR_FOLDERS,
    PART_SUFFIX,
    SHARD_SUFFIXES,
    SUPERSEDED,
    TEXT,
    annotation_group,
    family_record,
    in_folder,
    latent_group,
    operator_group,
    operator_of,
    superseded,
    text_group,
)
from openuni.manifests.corpus.names import check_folder_names, is_shard, shown
from openuni.manifests.corpus.parts.part_files import (
    open_part,
    read_part,
    table_bytes,
)
from openuni.manifests.corpus.parts.part_listing import (
    GroupReader,
    compactions,
    delete_replaced,
    finish_compactions,
    merged_name,
    relisted,
    replacing,
    shards_of_part,
)
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

VERSION_KEY = b"openuni.version"
FAMILY_TYPES: dict[str, dict[str, Any]] = {
    LATENTS: {"codec": str, "options": dict, "size_px": list[int], "frames": int, "modalities": list[str]},
    TEXT: {"codec": str, "options": dict},
}
OPTIONAL_FAMILY_TYPES: dict[str, Any] = {"fps": float, "buckets": dict, "windows": dict}
FAMILY_REMEDY = (
    "The tensors are not affected. Restore the file, or delete it and run `openuni run RECIPE --out CORPUS` with the "
    "recipe that encoded them: it writes the file again and recomputes nothing."
)


class ColumnGroups(GroupReader):
    """A corpus as a collection of column groups. `record`: the contents of its corpus.json."""

    def __init__(self, store: Store, record: dict[str, Any]) -> None:
        super().__init__(store)
        self.record = record

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

    def group_version(self, group: str) -> str:
        """The version of a group's rows; "none" if it is empty."""
        return relisted(lambda: next(map(self._part_version, self.parts(group)), "none"))

    def has_modality(self, annotator: str, modality: str) -> bool:
        """Whether an annotator's column group has a field for a modality."""
        fields = self.operator_fields(annotation_group(annotator))
        return any(field.name == modality and pa.types.is_struct(field.type) for field in fields)

    def operator_fields(self, group: str) -> list[pa.Field]:
        """The fields of the struct column of an operator's group; none while it is empty."""

        def fields() -> list[pa.Field]:
            parts = self.parts(group)[:1]  # all parts of a group share a schema
            return [field for part in parts for field in self.operator_column(self._part_schema(part), group).type]

        return relisted(fields)

    def missing_shards(self, group: str) -> list[str]:
        """Names of shards that rows of the group refer to and that do not exist."""
        return relisted(lambda: self._missing_shards(group))

    def _missing_shards(self, group: str) -> list[str]:
        parts = self.parts(group)
        there = set(self.store.names(group, SHARD_SUFFIXES))
        stems = {name.rpartition(".")[0] for name in there}
        others = [part for part in parts if part.removesuffix(PART_SUFFIX) not in stems]
        self.check_names(others)
        return sorted({in_folder(group, name) for part in others for name in self._checked_parts[part]} - there)

    def require_shards(self, groups: Sequence[str]) -> None:
        """Raise `OpenUniError` if a shard of these groups is missing."""
        missing = [name for group in groups for name in self.missing_shards(group)]
        if missing:
            raise OpenUniError("\n".join(self.missing_shard_message(name) for name in missing))

    def missing_shard_message(self, name: str) -> str:
        """What is missing and how to get it back. `name`: of a shard, with its group."""
        part = name.rpartition(".")[0] + PART_SUFFIX
        if self.store.exists(part):
            remedy = f"delete {part}"
        else:  # one of several shards of a merged part
            remedy = f"remove the rows that refer to it with `openuni verify {shlex.quote(self.store.url)} --repair`,"
        return (
            f"{self.store.url}/{name} is missing. Restore it, or {remedy} and rerun "
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
            raise OpenUniError(self.missing_shard_message(f"{group}/{shard}")) from error
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
        """Seal open parts of dead workers in every column group; return the number of recovered rows.

        Compactions that were killed are finished.
        """
        with storage_errors(self.store):
            for group in self.group_folders():
                finish_compactions(self.store, group)
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
        finish_compactions(self.store, group)  # else the replaced parts would be visible again
        for shard, folder in self.interrupted_moves(group).items():
            self.store.move(shard, f"{folder}/{shard.rpartition('/')[2]}")
        parts = self.parts(group)
        with ThreadPoolExecutor(self.store.parallel_files) as pool:
            versions = list(pool.map(self._part_version, parts))
        for other in sorted({*versions} - {version}):
            moved = [part for part, found in zip(parts, versions, strict=True) if found == other]
            self._move_parts(moved, superseded(group, other))
        self._move_parts(self.parts(superseded(group, version)), group)

    def interrupted_moves(self, group: str) -> dict[str, str]:
        """Shards of a group whose part is in `superseded/`, and the folder where it is.

        A process was killed between moving the two.
        """
        alone = set(self.store.names(group, SHARD_SUFFIXES))
        alone = alone - self._shards_of_parts(group) if alone else alone  # a group without shards is not listed again
        if not alone:
            return {}
        folders = [superseded(group, version) for version in self.store.folders(f"{group}/{SUPERSEDED}")]
        names = {name.rpartition("/")[2]: name for name in alone}
        found: dict[str, str] = {}
        for folder in folders:
            there = {name.rpartition("/")[2] for name in self._shards_of_parts(folder)}
            found |= {names[name]: folder for name in there & names.keys()}
        return found

    def _shards_of_parts(self, folder: str) -> set[str]:
        """Names of the shards, there or not, that belong to the visible parts of a folder."""
        parts = self.parts(folder)
        own = {part.removesuffix(PART_SUFFIX) + suffix for part in parts for suffix in SHARD_SUFFIXES}
        merged = [part for part in parts if compactions(part)[1]]  # others have a shard of their own name only
        return own | {in_folder(folder, shard) for part in merged for shard in shards_of_part(self.store, part)}

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

    def delete_parts(self, group: str) -> None:
        """Delete all parts of a group, then their shards: visible rows have their payloads."""
        finish_compactions(self.store, group)
        for suffix in (PART_SUFFIX, *SHARD_SUFFIXES):
            for name in self.store.names(group, suffix):
                self.store.delete(name)

    def rewrite(self, group: str, change: Callable[[pa.Table], pa.Table]) -> None:
        """Replace each part's rows with `change(rows)`; parts whose rows stay equal are not rewritten."""
        finish_compactions(self.store, group)
        for part in self.parts(group):
            rows = read_part(self.store, part)
            changed = change(rows)
            if not changed.equals(rows):
                with storage_errors(self.store):
                    self.store.put(part, table_bytes(changed))

    def replace(self, group: str, table: pa.Table, version: str) -> None:
        """Replace a group without payloads by one part with these rows.

        Readers see the former rows or these, wherever the process is killed. The former ones are not moved to
        `superseded/`: recomputing them is expected to be cheap.
        """
        finish_compactions(self.store, group)
        former, metadata, name = (
            self.parts(group),
            {VERSION_KEY: version.encode()},
            f"{group}/{new_part_name()}.parquet",
        )
        if former:
            metadata |= replacing(former)
            name = merged_name(former[0])
            while name in former:
                name = merged_name(name)
        with storage_errors(self.store):
            self.store.put(name, table_bytes(table.replace_schema_metadata(metadata)))
            delete_replaced(self.store, name, former[::-1])

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
                name = family_record(kind, family)
                found[family] = self.store.read_json(name, FAMILY_TYPES[kind], FAMILY_REMEDY, OPTIONAL_FAMILY_TYPES)
        return found

    def _folders(self, folder: str) -> list[str]:
        return check_folder_names(self.store.folders(folder), f"{self.store.url}/{folder}")

    def _part_version(self, part: str) -> str:
        return (self._part_schema(part).metadata or {}).get(VERSION_KEY, b"unknown").decode()

    def _part_schema(self, part: str) -> pa.Schema:
        with open_part(self.store, part) as file:
            return file.schema_arrow

    def _move_parts(self, parts: Sequence[str], folder: str) -> None:
        """Move all parts of one version, and their shards: a shard may belong to several parts."""
        moved = set(parts)
        for part in parts:
            source, _, name = part.rpartition("/")
            own = {name.removesuffix(PART_SUFFIX) + suffix for suffix in SHARD_SUFFIXES}
            shards = own | shards_of_part(self.store, part)
            moved.update(name for name in (in_folder(source, shard) for shard in shards) if self.store.exists(name))
        # the Parquet files last to publish parts and first to retract them: rows must never lack their payloads
        publish = SUPERSEDED not in folder.split("/")
        for name in sorted(moved, key=lambda name: (name.endswith(PART_SUFFIX) == publish, name)):
            self.store.move(name, in_folder(folder, name.rpartition("/")[2]))


def status_column(table: pa.Table, group: str) -> pa.ChunkedArray:
    """The status column of a group's table, either top-level or in the operator's struct."""
    operator = operator_of(group)
    return table.column("status") if operator is None else pc.struct_field(table.column(operator), "status")

"""Compaction: merge the small parts of a column group, which many short runs leave, into few.

Only Parquet files are rewritten. Shards stay where they are, so that rows of a merged part refer to several of them.
Row order, versions and the results of all queries stay the same. `part_listing.py` describes the commit: at any moment,
and wherever the process is killed, every row is visible exactly once.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa

from openuni.manifests.corpus.column_groups import ColumnGroups
from openuni.manifests.corpus.layout import PART_SUFFIX
from openuni.manifests.corpus.parts.part_files import open_part, read_part, table_bytes, verify_part
from openuni.manifests.corpus.parts.part_listing import (
    REPLACES_KEY,
    delete_replaced,
    finish_compactions,
    merged_name,
    replacing,
    visible_parts,
)
from openuni.manifests.corpus.writer import MAX_PART_ROWS, StorageFull, storage_errors
from openuni.manifests.errors import DamagedFile
from openuni.manifests.storage.store import Store

MAX_MERGED_BYTES = 64 * 1024**2  # uncompressed columns of the parts that become one: they are held in memory
MIN_SMALL_PARTS = 8  # fewer are left alone at the end of a phase

logger = logging.getLogger(__name__)


class Compacted(NamedTuple):
    """What a compaction did to a column group."""

    group: str
    parts_before: int
    parts_after: int
    rows_rewritten: int

    def __str__(self) -> str:
        if self.parts_before == self.parts_after:
            return f"{self.group}: {self.parts_before:,} parts, nothing to merge"
        rows = f"{self.rows_rewritten:,} rows rewritten"
        return f"{self.group}: {self.parts_before:,} parts merged into {self.parts_after:,}, {rows}"


class Merge(NamedTuple):
    """Successive parts that become one."""

    parts: tuple[str, ...]
    rows: int
    name: str  # of the merged part


class _Small(NamedTuple):
    name: str
    rows: int
    nbytes: int
    schema: pa.Schema


def compact(corpus: ColumnGroups, group: str, report: Callable[[str], None] = lambda status: None) -> Compacted:
    """Merge the small parts of a group. The caller holds the lock of the corpus, and no worker writes to it.

    Small parts have at most half of `MAX_PART_ROWS` rows and `MAX_MERGED_BYTES` bytes. Successive ones of the same
    version and columns are merged up to these limits. `report`: called with "ok" for each part that is done with.
    Raises `DamagedFile` if a part is damaged.
    """
    with storage_errors(corpus.store):
        finish_compactions(corpus.store, group)
        before = visible_parts(corpus.store, group)
        merges = _plan(corpus, group, before)[0]
        return _merge_all(corpus.store, group, before, merges, report)


def compact_if_worthwhile(corpus: ColumnGroups, groups: Sequence[str]) -> list[Compacted]:
    """Merge small parts at the end of a phase, in groups where at least half of `MIN_SMALL_PARTS` or more disappear.

    The cost is bounded: at most `MAX_PART_ROWS` rows are rewritten for each merged part. A damaged part or a full disk
    leaves the group as it is, with a warning: all results are stored already.
    """
    done = []
    for group in groups:
        try:
            before = visible_parts(corpus.store, group)
            if len(before) < MIN_SMALL_PARTS:
                continue
            with storage_errors(corpus.store):
                merges, small = _plan(corpus, group, before)
                removed = sum(len(merge.parts) - 1 for merge in merges)
                if small >= MIN_SMALL_PARTS and 2 * removed >= small:
                    done.append(_merge_all(corpus.store, group, before, merges))
                    logger.info("%s", done[-1])
        except (DamagedFile, StorageFull) as error:
            logger.warning("small parts of %s were not merged: %s", group, error)
    return done


def _plan(corpus: ColumnGroups, group: str, parts: Sequence[str]) -> tuple[list[Merge], int]:
    """The merges of a group, and the number of its small parts."""
    store, open_parts = corpus.store, set(corpus.open_parts(group))

    def look(name: str) -> _Small | None:
        if name.rpartition("/")[2].removesuffix(PART_SUFFIX) in open_parts:
            return None  # its journal is still there
        with open_part(store, name) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
            nbytes = sum(file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups))
        kept = {key: value for key, value in (schema.metadata or {}).items() if key != REPLACES_KEY}
        is_small = 2 * rows <= MAX_PART_ROWS and 2 * nbytes <= MAX_MERGED_BYTES
        return _Small(name, rows, nbytes, schema.with_metadata(kept)) if is_small else None

    with ThreadPoolExecutor(store.parallel_files) as pool:
        found = list(pool.map(look, parts))
    merges = []
    for run in _runs(found):
        name = merged_name(run[0].name)
        at = parts.index(run[0].name)
        neighbours = [*parts[max(0, at - 1) : at], name, *parts[at + len(run) : at + len(run) + 1]]
        if neighbours == sorted(neighbours) and not store.exists(name):  # the order of rows must stay
            merges.append(Merge(tuple(part.name for part in run), sum(part.rows for part in run), name))
    return merges, sum(part is not None for part in found)


def _runs(parts: Sequence[_Small | None]) -> Iterator[list[_Small]]:
    """Successive small parts that fit into one, at least two."""
    run: list[_Small] = []
    rows = nbytes = 0
    for part in (*parts, None):
        if run and (
            part is None
            or rows + part.rows > MAX_PART_ROWS
            or nbytes + part.nbytes > MAX_MERGED_BYTES
            or not part.schema.equals(run[0].schema, check_metadata=True)
        ):
            if len(run) > 1:
                yield run
            run, rows, nbytes = [], 0, 0
        if part is not None:
            run.append(part)
            rows, nbytes = rows + part.rows, nbytes + part.nbytes


def _merge_all(
    store: Store,
    group: str,
    before: Sequence[str],
    merges: Sequence[Merge],
    report: Callable[[str], None] = lambda status: None,
) -> Compacted:
    merged = {name for merge in merges for name in merge.parts}
    for name in before:
        if name not in merged:
            report("ok")
    for merge in merges:
        _merge(store, merge)
        for _ in merge.parts:
            report("ok")
    removed = sum(len(merge.parts) - 1 for merge in merges)
    return Compacted(group, len(before), len(before) - removed, sum(merge.rows for merge in merges))


def _merge(store: Store, merge: Merge) -> None:
    with ThreadPoolExecutor(store.parallel_files) as pool:
        tables = list(pool.map(lambda name: read_part(store, name), merge.parts))
    metadata = (tables[0].schema.metadata or {}) | replacing(merge.parts)
    rows = pa.concat_tables(table.replace_schema_metadata(None) for table in tables)
    rows = rows.replace_schema_metadata(metadata).combine_chunks()
    store.put(merge.name, table_bytes(rows))
    verify_part(store, merge.name)  # before anything is deleted
    delete_replaced(store, merge.name, merge.parts[::-1])

"""Indexed access to the clips of a corpus: ids in memory, all other columns read part by part on demand."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus.column_groups import ColumnGroups
from openuni.manifests.corpus.parts.checked_dataset import parts_dataset
from openuni.manifests.corpus.parts.part_files import read_columns
from openuni.manifests.corpus.parts.part_listing import MAX_LISTINGS, relisted
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.clip import Clip

MAX_ROWS = 1000  # rows converted to Python objects at a time
WITHIN = "corpus:"  # prefix of sources stored in the corpus itself, by relative name, so that a corpus can be moved


class ClipList:
    """The clips that ingest accepted, in order of ingest; a snapshot of the time of construction.

    `ids`: clip_ids (string array). `rows`: int64, index of each clip among all rows of `clips/`.
    """

    def __init__(self, corpus: ColumnGroups) -> None:
        self.corpus = corpus
        self._cached_part: tuple[str, pa.Table] | None = None  # name and rows of the last part that was read
        relisted(self._list)

    def _list(self) -> None:
        dataset = self.corpus.dataset("clips", clip_schema())
        self.parts = list(dataset.parts)
        columns = {"clip_id": ("clip_id",), "status": ("status",)}
        tables = read_columns(self.corpus.store, self.parts, columns, dataset.schema)
        ids = [chunk for table in tables for chunk in table["clip_id"].chunks]
        accepted = [pc.fill_null(pc.equal(chunk, "ok"), False) for table in tables for chunk in table["status"].chunks]
        mask = pa.chunked_array(accepted, pa.bool_())
        self.ids: pa.Array = pa.chunked_array(ids, pa.string()).filter(mask).combine_chunks()
        self.rows: np.ndarray = np.flatnonzero(mask.to_numpy())
        self.starts = np.cumsum(
            [0, *map(len, tables)], dtype=np.int64
        )  # first row of each part, then the total number of rows

    def tables(self, rows: np.ndarray) -> Iterator[pa.Table]:
        """The rows with these indices (int64, increasing), in order, in tables of at most `MAX_ROWS`."""
        done = 0
        while done < len(rows):
            part, start, end = self._part_with(int(rows[done]))
            last = int(np.searchsorted(rows, end))
            for first in range(done, last, MAX_ROWS):
                yield part.take(pa.array(rows[first : min(first + MAX_ROWS, last)] - start))
            done = last

    def clips(self) -> Iterator[Clip]:
        """All clips, in order."""
        for table in self.tables(self.rows):
            yield from map(self.clip_of_row, table.to_pylist())

    def clip(self, position: int) -> Clip:
        """The clip at a position among the accepted ones. Raises `OpenUniError` if the clip list has changed."""
        row = int(self.rows[position])
        part, start, _ = self._part_with(row)
        found = part.slice(row - start, 1).to_pylist()
        if not found or found[0]["clip_id"] != self.ids[position].as_py():
            raise self._changed()
        return self.clip_of_row(found[0])

    def clip_of_row(self, row: dict[str, Any]) -> Clip:
        """The `Clip` of a row of `clips/`; a source inside the corpus gets its current path or URL."""
        fields = {name: row[name] for name in Clip.__dataclass_fields__}
        if fields["source"].startswith(WITHIN):
            fields["source"] = self.corpus.store.location(fields["source"].removeprefix(WITHIN))
        return Clip(**fields)

    def _part_with(self, row: int) -> tuple[pa.Table, int, int]:
        """The part that holds a row, the index of its first row, and that of the next part."""
        for _ in range(MAX_LISTINGS):
            number = int(np.searchsorted(self.starts, row, side="right")) - 1
            with suppress(FileNotFoundError):
                return self._part(number), int(self.starts[number]), int(self.starts[number + 1])
            ids, rows = self.ids, self.rows  # of parts that have been merged into others
            relisted(self._list)
            if not self.ids.equals(ids) or not np.array_equal(self.rows, rows):
                raise self._changed()
        raise self._changed()

    def _part(self, number: int) -> pa.Table:
        name = self.parts[number]
        if self._cached_part is None or self._cached_part[0] != name:
            self._cached_part = name, parts_dataset(self.corpus.store, [name], clip_schema()).to_table()
        return self._cached_part[1]

    def _changed(self) -> OpenUniError:
        url = self.corpus.store.url
        return OpenUniError(f"the clip list of {url} changed after it was opened; call refresh() on the corpus")

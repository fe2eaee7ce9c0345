"""The clip list of a corpus by number: ids in memory, everything else read part by part when asked for."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus.column_groups import ColumnGroups
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.clip import Clip

MAX_ROWS = 1000  # turned into Python objects at a time
WITHIN = "corpus:"  # before a source that lies in the corpus itself, by its name there: it moves with the corpus


class ClipList:
    """The clips that ingest accepted, in order of ingest, as they were when this was made.

    `ids`: their clip_ids (string array). `rows`: int64, where each stands among all rows of `clips/`.
    """

    def __init__(self, corpus: ColumnGroups) -> None:
        self.corpus = corpus
        dataset = corpus.dataset("clips", clip_schema())
        ids, accepted, self.paths, ends = [], [], list[str](), list[int]()
        for tagged in dataset.scanner(columns=["clip_id", "status"]).scan_batches() if corpus.parts("clips") else ():
            batch, path = tagged.record_batch, tagged.fragment.path
            if path not in self.paths[-1:]:
                self.paths.append(path)
                ends.append(ends[-1] if ends else 0)
            ends[-1] += len(batch)
            ids.append(batch.column("clip_id"))
            accepted.append(pc.fill_null(pc.equal(batch.column("status"), "ok"), False))
        mask = pa.chunked_array(accepted, pa.bool_())
        self.ids: pa.Array = pa.chunked_array(ids, pa.string()).filter(mask).combine_chunks()
        self.rows: np.ndarray = np.flatnonzero(mask.to_numpy())
        self.starts = np.array([0, *ends], np.int64)  # first row of each part, and the end of the last
        self._read: tuple[int, pa.Table] | None = None  # the part read last

    def tables(self, rows: np.ndarray) -> Iterator[pa.Table]:
        """The rows with these numbers (int64, increasing), in order, in tables of at most `MAX_ROWS`."""
        for number in np.unique(np.searchsorted(self.starts, rows, side="right") - 1).tolist():
            start, end = self.starts[number : number + 2]
            part = self._part(number)
            mine = rows[(rows >= start) & (rows < end)] - start
            for first in range(0, len(mine), MAX_ROWS):
                yield part.take(pa.array(mine[first : first + MAX_ROWS]))

    def clips(self) -> Iterator[Clip]:
        """All clips, in order."""
        for table in self.tables(self.rows):
            yield from map(self.clip_of_row, table.to_pylist())

    def clip(self, position: int) -> Clip:
        """The clip at a position among the accepted ones; raises `OpenUniError` when the list has changed since."""
        row = int(self.rows[position])
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        found = self._part(number).slice(row - int(self.starts[number]), 1).to_pylist()
        if not found or found[0]["clip_id"] != self.ids[position].as_py():
            url = self.corpus.store.url
            raise OpenUniError(f"the clip list of {url} has changed since it was opened: call refresh() on the corpus")
        return self.clip_of_row(found[0])

    def clip_of_row(self, row: dict[str, Any]) -> Clip:
        """The `Clip` of a row of `clips/`; a source within the corpus gets the place where the corpus lies now."""
        fields = {name: row[name] for name in Clip.__dataclass_fields__}
        if fields["source"].startswith(WITHIN):
            fields["source"] = self.corpus.store.location(fields["source"].removeprefix(WITHIN))
        return Clip(**fields)

    def _part(self, number: int) -> pa.Table:
        if self._read is None or self._read[0] != number:
            fs = self.corpus.store.fs
            part = pads.dataset(self.paths[number], filesystem=fs, format="parquet", schema=clip_schema())
            self._read = number, part.to_table()
        return self._read[1]

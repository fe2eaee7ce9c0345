"""Where the tensors of a column group lie: arrays by clip number, read from the rows of latents and texts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from openuni.manifests.corpus.parts.part_listing import relisted
from openuni.manifests.corpus.payload_reader import Payload
from openuni.manifests.errors import OpenUniError
from openuni.training.data.clip_ids import ClipIds

if TYPE_CHECKING:
    from openuni.manifests.corpus.corpus import Corpus

DAMAGED_ROWS = "OpenUni does not write such rows: delete the group's .parquet files and rerun to recompute it."
BAD_WINDOWS = "rows without windows, or with windows without checksum"
COLUMNS = ("clip_id", "status", "shard", "offset", "nbytes", "shape", "dtype", "xxh3", "absmax")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# of each stored dtype: an integer of its size, and the bits of the exponent, all set in NaN and infinity
EXPONENTS = {
    torch.float16: (np.uint16, 0x7C00),
    torch.bfloat16: (np.uint16, 0x7F80),
    torch.float32: (np.uint32, 0x7F800000),
}
FINITE_CHECK_BYTES = 1 << 17  # at a time: stays in the cache
Allocate = Callable[[int], torch.Tensor]  # memory of a number of bytes: uint8, contiguous, in RAM


def new_bytes(count: int) -> torch.Tensor:
    """Memory that nothing else uses."""
    return torch.empty(count, dtype=torch.uint8)


class WindowTable(NamedTuple):
    """The windows in the tensors of a column group, by clip: none in groups of families without windows."""

    counts: np.ndarray  # int64 [clips]; 0 for a clip without a tensor, 1 for one without windows
    first: np.ndarray  # int64 [clips], place of the clip's first window in `xxh3`
    xxh3: np.ndarray  # uint64 [windows], of each window


@dataclass(frozen=True, eq=False)
class Extents:
    """Tensors of one column group, by sample number. Arrays have length N; a sample without a tensor has shard -1.

    They take 25 bytes per sample: of shape, dtype and size there are few, which are listed once.
    """

    group: str
    shards: list[str]
    dtypes: list[str]
    shard: np.ndarray  # int32 [N], index into `shards`
    offset: np.ndarray  # int64 [N], bytes from the start of the shard
    xxh3: np.ndarray  # uint64 [N]
    kind: np.ndarray  # int32 [N], row of `kinds`
    kinds: np.ndarray  # int64 [K, dimensions + 2]: shape, index into `dtypes`, number of bytes
    finite: np.ndarray  # bool [N], whether their largest value was recorded as finite when they were written
    windows: WindowTable | None = None  # of tensors with several windows, before `expanded`

    def expanded(self, clip: np.ndarray, window: np.ndarray) -> "Extents":
        """The tensors of samples: window number `window` (int [N]) of clip number `clip` (int [N])."""
        arrays = {name: getattr(self, name)[clip] for name in ("shard", "offset", "xxh3", "kind", "finite")}
        kinds = self.kinds
        if self.windows is not None:
            counts = self.windows.counts[clip]
            several = counts > 0
            rows = kinds[arrays["kind"]]
            rows[:, -1] //= np.maximum(counts, 1)
            arrays["offset"] = arrays["offset"] + window * rows[:, -1]
            arrays["xxh3"][several] = self.windows.xxh3[(self.windows.first[clip] + window)[several]]
            kinds, arrays["kind"] = distinct_rows(rows)
        return Extents(self.group, self.shards, self.dtypes, kinds=kinds, **arrays)

    @property
    def shape(self) -> np.ndarray:
        """int64 [N, dimensions], computed; zeros without a tensor."""
        return self.kinds[self.kind, :-2]

    @cached_property
    def present(self) -> np.ndarray:
        """bool [N]."""
        return self.shard >= 0

    def payload(self, clip: int) -> Payload:
        """Where the tensor of a clip lies."""
        *_, nbytes = self.kinds[self.kind[clip]].tolist()
        offset, xxh3 = int(self.offset[clip]), int(self.xxh3[clip])
        return Payload(self.group, self.shards[self.shard[clip]], offset, nbytes, xxh3)

    def place(self, clips: Sequence[int], allocate: Allocate) -> torch.Tensor:
        """Memory for the tensors of clips of one shape and dtype, as they are stored: [B, *shape].

        Raises `OpenUniError` if they differ.
        """
        kinds = {tuple(self.kinds[self.kind[clip], :-1].tolist()) for clip in clips}
        if len(kinds) != 1:
            raise OpenUniError(f"{self.group}: tensors of different shapes or dtypes: {sorted(kinds)}")
        ((*shape, number),) = kinds
        dtype = DTYPES[self.dtypes[number]]
        return allocate(len(clips) * math.prod(shape) * dtype.itemsize).view(dtype).reshape(len(clips), *shape)


class _Rows:
    """The arrays of `Extents`, filled from some rows of its column group at a time."""

    def __init__(self, group: str, count: int, dimensions: int) -> None:
        self.group, self.dimensions = group, dimensions
        self.names: dict[str, dict[str, int]] = {"shard": {}, "dtype": {}}  # name -> number
        self.kinds = np.zeros((1, dimensions + 2), np.int64)  # the first: of samples without a tensor
        self.arrays = {
            "shard": np.full(count, -1, np.int32),
            "offset": np.zeros(count, np.int64),
            "xxh3": np.zeros(count, np.uint64),
            "kind": np.zeros(count, np.int32),
            "finite": np.zeros(count, bool),
        }
        self.window_counts: np.ndarray | None = None
        self.window_first = np.zeros(count, np.int64)
        self.window_xxh3: list[np.ndarray] = []
        self.has_plain = False  # rows without windows

    def add(self, table: pa.Table, ids: ClipIds) -> None:
        """Add rows; those of other clips, and failed ones, are left out."""
        if missing := [name for name in COLUMNS if name not in table.column_names]:
            raise OpenUniError(f"{self.group}: column {', '.join(missing)} is missing. {DAMAGED_ROWS}")
        table = table.filter(pc.equal(table["status"], "ok"))
        where = ids.positions(_one(table["clip_id"]))
        if (where < 0).any():
            table, where = table.filter(pa.array(where >= 0)), where[where >= 0]
        if not len(table):
            return
        codes = {name: self._codes(table[name], name) for name in ("shard", "dtype")}
        per_row = self._windows(table, where) if "windows" in table.column_names else None
        own = self.dimensions + (per_row is not None)
        if (pc.list_value_length(table["shape"]).to_numpy() != own).any():
            raise OpenUniError(f"{self.group}: tensors must have {own} dimensions, but the manifest differs")
        shapes = _one(table["shape"]).flatten().to_numpy().reshape(-1, own)
        if per_row is not None and (shapes[:, 0] != per_row).any():
            raise OpenUniError(
                f"{self.group}: tensors have another number of windows than the manifest says. {DAMAGED_ROWS}"
            )
        kinds, kind = distinct_rows(
            np.column_stack([shapes[:, own - self.dimensions :], codes["dtype"], table["nbytes"].to_numpy()])
        )
        self.arrays["shard"][where] = codes["shard"]
        for name in ("offset", "xxh3"):
            self.arrays[name][where] = table[name].to_numpy()
        self.arrays["kind"][where] = kind + len(self.kinds)
        self.arrays["finite"][where] = pc.fill_null(pc.is_finite(table["absmax"]), False).to_numpy()
        self.kinds = np.concatenate([self.kinds, kinds])

    def extents(self) -> Extents:
        """What was added."""
        if odd := set(self.names["dtype"]) - set(DTYPES):
            raise OpenUniError(f"{self.group}: dtype must be one of {', '.join(DTYPES)}, got {', '.join(sorted(odd))}")
        windows = None
        if self.window_counts is not None:
            if self.has_plain:
                raise OpenUniError(f"{self.group}: {BAD_WINDOWS}. {DAMAGED_ROWS}")
            windows = WindowTable(self.window_counts, self.window_first, np.concatenate(self.window_xxh3))
        kinds, renumbered = distinct_rows(self.kinds)
        self.arrays["kind"] = renumbered[self.arrays["kind"]]
        shards, dtypes = ([*self.names[name]] for name in ("shard", "dtype"))
        return Extents(self.group, shards, dtypes, kinds=kinds, windows=windows, **self.arrays)

    def _codes(self, column: pa.ChunkedArray, name: str) -> np.ndarray:
        """Numbers of the names in a column, which get new ones as they appear."""
        coded, known = _one(column).dictionary_encode(), self.names[name]
        numbers = [known.setdefault(text, len(known)) for text in coded.dictionary.to_pylist()]
        return np.array(numbers, np.int32)[coded.indices.to_numpy()]

    def _windows(self, table: pa.Table, where: np.ndarray) -> np.ndarray | None:
        """Number of windows per row; None if no row has windows."""
        listed = _one(table["windows"])
        if listed.null_count == len(listed):
            self.has_plain = True
            return None
        per_row = pc.fill_null(pc.list_value_length(listed), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        xxh3 = pc.struct_field(listed.flatten(), "xxh3")
        if (per_row < 1).any() or xxh3.null_count or (table["nbytes"].to_numpy() % per_row).any():
            raise OpenUniError(f"{self.group}: {BAD_WINDOWS}. {DAMAGED_ROWS}")
        if self.window_counts is None:
            self.window_counts = np.zeros(len(self.window_first), np.int64)
        before = sum(map(len, self.window_xxh3))
        self.window_counts[where], self.window_first[where] = per_row, before + np.cumsum(per_row) - per_row
        self.window_xxh3.append(xxh3.to_numpy())
        return per_row


def read_extents(corpus: "Corpus", group: str, ids: ClipIds, dimensions: int) -> Extents:
    """The tensors of a column group by clip. `ids`: of the N clips. Raises `OpenUniError` for damaged rows."""
    corpus.require_shards([group])

    def read() -> Extents:
        rows = _Rows(group, len(ids), dimensions)
        for table in corpus.checked_tables(group, [*COLUMNS, "windows"]):
            rows.add(table, ids)
        return rows.extents()

    return relisted(read)


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def distinct_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of int64 [N, D], in the order of their first appearance, and the number of each row's one."""
    if (rows == rows[:1]).all():
        return rows[:1], np.zeros(len(rows), np.int32)
    # equal rows are neighbours after sorting by all columns
    order = np.lexsort(rows.T[::-1])
    starts = np.concatenate([[True], (rows[order][1:] != rows[order][:-1]).any(axis=1)])
    first = np.minimum.reduceat(order, np.flatnonzero(starts))
    rank = np.argsort(np.argsort(first))
    numbers = np.empty(len(rows), np.int32)
    numbers[order] = rank[np.cumsum(starts) - 1]
    return rows[np.sort(first)], numbers


def all_finite(data: memoryview, dtype: torch.dtype) -> bool:
    """Whether stored values have neither NaN nor infinity; many times as fast as `torch.isfinite` of 16-bit values."""
    kind, exponent = EXPONENTS[dtype]
    values = np.frombuffer(data, kind)
    step = FINITE_CHECK_BYTES // values.itemsize
    scratch = np.empty(min(step, len(values)), kind)
    for start in range(0, len(values), step):
        part = values[start : start + step]
        if np.bitwise_and(part, exponent, out=scratch[: len(part)]).max() == exponent:
            return False
    return True

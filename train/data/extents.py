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

from openuni.manifests.corpus.payload_reader import Payload
from openuni.manifests.errors import OpenUniError

if TYPE_CHECKING:
    from openuni.manifests.corpus.corpus import Corpus

DAMAGED_ROWS = "OpenUni does not write such rows: delete the group's .parquet files and rerun to recompute it."
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
    """Tensors of one column group, by sample number. Arrays have length N; a sample without a tensor has shard -1."""

    group: str
    shards: list[str]
    dtypes: list[str]
    shard: np.ndarray  # int32 [N], index into `shards`
    offset: np.ndarray  # int64 [N], bytes from the start of the shard
    nbytes: np.ndarray  # int64 [N]
    xxh3: np.ndarray  # uint64 [N]
    dtype: np.ndarray  # int8 [N], index into `dtypes`
    shape: np.ndarray  # int32 [N, dimensions]
    finite: np.ndarray  # bool [N], whether their largest value was recorded as finite when they were written
    windows: WindowTable | None = None  # of tensors with several windows, before `expanded`

    def expanded(self, clip: np.ndarray, window: np.ndarray) -> "Extents":
        """The tensors of samples: window number `window` (int [N]) of clip number `clip` (int [N])."""
        arrays = {
            name: getattr(self, name)[clip]
            for name in ("shard", "offset", "nbytes", "xxh3", "dtype", "shape", "finite")
        }
        if self.windows is not None:
            counts = self.windows.counts[clip]
            several = counts > 0
            arrays["nbytes"] = arrays["nbytes"] // np.maximum(counts, 1)
            arrays["offset"] = arrays["offset"] + window * arrays["nbytes"]
            arrays["xxh3"][several] = self.windows.xxh3[(self.windows.first[clip] + window)[several]]
        return Extents(self.group, self.shards, self.dtypes, **arrays)

    @cached_property
    def present(self) -> np.ndarray:
        """bool [N]."""
        return self.shard >= 0

    def payload(self, clip: int) -> Payload:
        """Where the tensor of a clip lies."""
        numbers = (int(values[clip]) for values in (self.offset, self.nbytes, self.xxh3))
        return Payload(self.group, self.shards[self.shard[clip]], *numbers)

    def place(self, clips: Sequence[int], allocate: Allocate) -> torch.Tensor:
        """Memory for the tensors of clips of one shape and dtype, as they are stored: [B, *shape].

        Raises `OpenUniError` if they differ.
        """
        kinds = {(tuple(self.shape[clip].tolist()), int(self.dtype[clip])) for clip in clips}
        if len(kinds) != 1:
            raise OpenUniError(f"{self.group}: tensors of different shapes or dtypes: {sorted(kinds)}")
        (shape, number), *_ = kinds
        dtype = DTYPES[self.dtypes[number]]
        return allocate(len(clips) * math.prod(shape) * dtype.itemsize).view(dtype).reshape(len(clips), *shape)


def read_extents(corpus: "Corpus", group: str, kept: pa.Array, dimensions: int) -> Extents:
    """The tensors of a column group by clip. `kept`: ids of the N clips. Raises `OpenUniError` for damaged rows."""
    count = len(kept)
    empty = {"shard": np.full(count, -1, np.int32), "shape": np.zeros((count, dimensions), np.int32)}
    arrays: dict[str, np.ndarray] = empty | {
        name: np.zeros(count, kind)
        for name, kind in {
            "offset": np.int64,
            "nbytes": np.int64,
            "xxh3": np.uint64,
            "dtype": np.int8,
            "finite": bool,
        }.items()
    }
    corpus.require_shards([group])
    if not corpus.parts(group):
        return Extents(group=group, shards=[], dtypes=[], windows=None, **arrays)
    has_windows = "windows" in corpus.dataset(group).schema.names
    table = corpus.table(group, [*COLUMNS, "windows"] if has_windows else COLUMNS)
    table = table.filter(pc.equal(table["status"], "ok"))
    where = pc.index_in(table["clip_id"].combine_chunks(), value_set=kept)
    table = table.filter(pc.is_valid(where))
    where = where.drop_null().to_numpy()
    named = {name: table[name].combine_chunks().dictionary_encode() for name in ("shard", "dtype")}
    for name, codes in named.items():
        arrays[name][where] = codes.indices.to_numpy(zero_copy_only=False)
    for name in ("offset", "nbytes", "xxh3"):
        arrays[name][where] = table[name].to_numpy()
    arrays["finite"][where] = pc.fill_null(pc.is_finite(table["absmax"]), False).to_numpy()
    windows, per_window = _windows_of_rows(table, where, count, group) if has_windows else (None, None)
    own = dimensions + (per_window is not None)
    sizes = table["shape"].combine_chunks().flatten().to_numpy()
    if (pc.list_value_length(table["shape"]).to_numpy() != own).any():
        raise OpenUniError(f"{group}: tensors must have {own} dimensions, but the manifest differs")
    shapes = sizes.reshape(-1, own)
    arrays["shape"][where] = shapes[:, own - dimensions :]
    if per_window is not None and (shapes[:, 0] != per_window).any():
        raise OpenUniError(f"{group}: tensors have another number of windows than the manifest says. {DAMAGED_ROWS}")
    shards, dtypes = (named[name].dictionary.to_pylist() for name in ("shard", "dtype"))
    if odd := set(dtypes) - set(DTYPES):
        raise OpenUniError(f"{group}: dtype must be one of {', '.join(DTYPES)}, got {', '.join(sorted(odd))}")
    return Extents(group=group, shards=shards, dtypes=dtypes, **arrays, windows=windows)


def _windows_of_rows(
    table: pa.Table, where: np.ndarray, count: int, group: str
) -> tuple[WindowTable | None, np.ndarray | None]:
    """The windows in the tensors of a group, and their number per row; None and None if no row has windows.

    `table`: its rows; `where`: their clip numbers, of `count` clips.
    """
    listed = table["windows"].combine_chunks()
    if listed.null_count == len(listed):
        return None, None
    per_row = pc.fill_null(pc.list_value_length(listed), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    xxh3 = pc.struct_field(listed.flatten(), "xxh3")
    if (per_row < 1).any() or xxh3.null_count or (table["nbytes"].to_numpy() % per_row).any():
        raise OpenUniError(f"{group}: rows without windows, or with windows without checksum. {DAMAGED_ROWS}")
    counts, first = np.zeros(count, np.int64), np.zeros(count, np.int64)
    counts[where], first[where] = per_row, np.cumsum(per_row) - per_row
    return WindowTable(counts, first, xxh3.to_numpy()), per_row


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

"""Ids of clips, millions of them, in Arrow memory: a Python string takes three times as much."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

ROWS_AT_A_TIME = 50_000  # converted to Python strings
ID_BYTES = 32  # of the ids that OpenUni makes; others are looked up by Arrow
WORDS = ID_BYTES // 8


class ClipIds(Sequence[str]):
    """A sequence of ids that looks like a list of strings. `array`: pa.string [N]."""

    def __init__(self, array: pa.Array) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> "ClipIds": ...
    def __getitem__(self, key: int | slice) -> "str | ClipIds":
        return ClipIds(self.array[key]) if isinstance(key, slice) else self.array[int(key)].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self.array), ROWS_AT_A_TIME):
            yield from self.array.slice(start, ROWS_AT_A_TIME).to_pylist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ClipIds):
            return bool(self.array.equals(other.array))
        return isinstance(other, list) and list(self) == other

    __hash__ = None  # type: ignore[assignment]  # as lists

    def __arrow_array__(self, type: Any = None) -> pa.Array:  # pyarrow's name
        """See pyarrow's extension protocols."""
        return self.array if type is None else self.array.cast(type)

    def positions(self, ids: pa.Array) -> np.ndarray:
        """Number in this sequence, whose ids all differ, of each of `ids`; -1 if it is not there. int64 [len(ids)]."""
        if self._table is None or (words := _words(ids)) is None or not len(self):
            found = pc.index_in(ids, value_set=self.array)
            return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        digest = xxhash.xxh3_128_digest(words.data)
        if digest not in self._known:
            self._known[digest] = self._look_up(words, *self._table).astype(np.int32)
        return self._known[digest].astype(np.int64)

    @staticmethod
    def _look_up(words: np.ndarray, own: np.ndarray, keys: np.ndarray, order: np.ndarray) -> np.ndarray:
        wanted = _mixed(words)
        in_order = np.argsort(wanted)  # neighbours are then found in the same cache lines
        places = np.empty(len(wanted), np.int64)
        places[in_order] = np.searchsorted(keys, wanted[in_order])
        candidates = order[np.minimum(places, len(order) - 1)]
        return np.where((own[candidates] == words).all(axis=1), candidates, -1)

    @cached_property
    def _known(self) -> dict[bytes, np.ndarray]:
        """Results by digest: all modalities of a clip are encoded together, so their rows have the same order."""
        return {}

    def forget(self) -> None:
        """Free the memory of `positions`."""
        for name in ("_known", "_table"):
            self.__dict__.pop(name, None)

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """The ids as words, their sorted keys, and the positions in that order; None for ids of another form."""
        words = _words(self.array)
        if words is None:
            return None
        keys = _mixed(words)
        order = np.argsort(keys)
        keys = keys[order]
        return None if (keys[1:] == keys[:-1]).any() else (words, keys, order)


def _words(ids: pa.Array) -> np.ndarray | None:
    """The bytes of ids as uint64 [N, 4], without a copy; None unless all have 32 bytes."""
    if ids.null_count or not pa.types.is_string(ids.type):
        return None
    _, offsets, data = ids.buffers()
    ends = np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1]
    if not len(ids) or data is None or (np.diff(ends) != ID_BYTES).any():
        return None
    return np.frombuffer(data, np.uint8)[ends[0] : ends[-1]].view(np.uint64).reshape(-1, WORDS)


def _mixed(words: np.ndarray) -> np.ndarray:
    """A key of each id, uint64 [N]; different ids rarely have the same."""
    keys = words[:, 0] * np.uint64(0x9E3779B97F4A7C15)
    for number in range(1, WORDS):
        keys = ((keys ^ (keys >> np.uint64(29))) + words[:, number]) * np.uint64(0xBF58476D1CE4E5B9)
    return keys ^ (keys >> np.uint64(32))

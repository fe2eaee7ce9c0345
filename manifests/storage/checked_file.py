"""A Parquet part whose bytes are verified as they are read, and what is kept of the parts of an object store."""

import io
import os
from collections.abc import Sequence

from openuni.manifests.errors import DamagedFile
from openuni.manifests.storage.checksums import (
    BLOCK_BYTES,
    END_BYTES,
    PARQUET,
    TAIL_BYTES,
    BlockTable,
    block_table,
    wanted_tail_bytes,
)
from openuni.manifests.storage.store import Store

MAX_GAP_BYTES = 512 * 1024  # bytes that may be read in vain to save a request
MAX_CACHED_BYTES = 1024**2  # the last read is kept if it is at most this long


class CheckedFile(io.RawIOBase):
    """A Parquet part, open for reading; what is returned has been verified block by block.

    Raises `DamagedFile` that names the part. `table` is None for parts without checksums.
    """

    def __init__(self, store: Store, name: str) -> None:
        super().__init__()
        self.where = store.location(name)
        self._store, self._name = store, name
        # an open file: a part that is replaced meanwhile stays the same for this reader
        self._descriptor = os.open(store.path(name), os.O_RDONLY) if store.is_local else None
        self._position = 0
        self._cached: tuple[int, bytes] = (0, b"")
        self._tail = b""
        self._loaded: list[tuple[int, bytes]] = []  # position and bytes of what `load` has read
        kept = store.tails.get(name) if self._descriptor is None else None
        self._nbytes, tail = kept or (self._size(), b"")
        if kept is None:
            tail = self._read_raw(max(0, self._nbytes - TAIL_BYTES), self._nbytes)
            while len(tail) < (wanted := wanted_tail_bytes(tail, self._nbytes) if len(tail) >= 8 else 0):
                tail = self._read_raw(self._nbytes - wanted, self._nbytes)
        self.table: BlockTable | None = block_table(tail, self._nbytes, self.where)
        self._tail = tail
        if kept is None and self._descriptor is None:
            needed = max(wanted_tail_bytes(tail, self._nbytes), _footer_bytes(tail))
            store.tails.put(name, self._nbytes, tail if len(tail) == self._nbytes else tail[-needed:])

    def _size(self) -> int:
        if self._descriptor is not None:
            return os.fstat(self._descriptor).st_size
        listed = self._store.tails.size(self._name)
        return self._store.nbytes(self._name) if listed is None else listed

    def readable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._position

    def size(self) -> int:
        """Size of the file, bytes."""
        return self._nbytes

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.IOBase`."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._nbytes}[whence]
        self._position = base + offset
        return self._position

    def read(self, nbytes: int | None = -1) -> bytes:
        """Up to `nbytes` bytes from the current position. Raises `DamagedFile` for a wrong checksum."""
        start = self._position
        end = self._nbytes if nbytes is None or nbytes < 0 else min(start + nbytes, self._nbytes)
        data = self._read_verified(start, end) if end > start else b""
        self._position = start + len(data)
        return data

    def footer(self) -> bytes:
        """A Parquet file of the footer alone; readers that read it from this one would read what is before it, too."""
        return PARQUET + self._tail[-_footer_bytes(self._tail) :]

    def load(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Read these ranges (start, end) now, close ones together, in as few requests as is reasonable."""
        merged: list[list[int]] = []
        for start, end in sorted(ranges):
            start, end = start // BLOCK_BYTES * BLOCK_BYTES, -(-end // BLOCK_BYTES) * BLOCK_BYTES
            if merged and start <= merged[-1][1] + MAX_GAP_BYTES:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        self._loaded = [(start, self._read_raw(start, min(end, self._nbytes))) for start, end in merged]

    def close(self) -> None:
        """See `io.IOBase`."""
        descriptor, self._descriptor = getattr(self, "_descriptor", None), None
        if descriptor is not None:
            os.close(descriptor)
        super().close()

    def _read_verified(self, start: int, end: int) -> bytes:
        tail_start = self._nbytes - len(self._tail)
        if start >= tail_start and (self.table is None or start >= self.table.body_bytes):
            return self._tail[start - tail_start : end - tail_start]
        if self.table is None:
            return self._read_raw(start, end)
        body_end = min(end, self.table.body_bytes)
        data = self._blocks(start, body_end)
        return data if end == body_end else data + self._tail[body_end - tail_start : end - tail_start]

    def _blocks(self, start: int, end: int) -> bytes:
        """Bytes of the body; whole blocks are read and verified."""
        assert self.table is not None
        cached_start, cached = self._cached
        if cached_start <= start and end <= cached_start + len(cached):
            return cached[start - cached_start : end - cached_start]
        block_bytes = self.table.block_bytes
        first, last = start // block_bytes, -(-end // block_bytes)
        read_start, read_end = first * block_bytes, min(last * block_bytes, self.table.body_bytes)
        data = self._read_raw(read_start, read_end)
        view = memoryview(data)
        for number in range(first, last):
            at = number * block_bytes - read_start
            if not self.table.verify(number, view[at : at + block_bytes]):
                raise DamagedFile(self.where, f"checksum mismatch of the 64 KiB from byte {number * block_bytes:,}")
        if len(data) <= MAX_CACHED_BYTES:
            self._cached = read_start, data
        return data[start - read_start : end - read_start]

    def _read_raw(self, start: int, end: int) -> bytes:
        tail_start = self._nbytes - len(self._tail)
        if start >= tail_start:
            return self._tail[start - tail_start : end - tail_start]
        for first, loaded in self._loaded:
            if first <= start and end <= first + len(loaded):
                return loaded[start - first : end - first]
        if self._descriptor is not None:
            data = os.pread(self._descriptor, end - start, start)
            while data and len(data) < end - start:  # a read is limited to 2 GiB
                more = os.pread(self._descriptor, end - start - len(data), start + len(data))
                if not more:
                    break
                data += more
        else:
            data = self._store.read_range(self._name, start, end - start) if end > start else b""
        if len(data) != end - start:
            raise DamagedFile(self.where, f"{len(data):,} bytes at {start:,}, expected {end - start:,}: truncated")
        return data


def _footer_bytes(tail: bytes) -> int:
    return END_BYTES + int.from_bytes(tail[-END_BYTES:-4], "little")

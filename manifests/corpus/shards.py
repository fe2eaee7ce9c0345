"""Shards: tar or safetensors files with the payloads of many clips, addressed by byte offset, with checksums."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import xxhash

from openuni.manifests.errors import OpenUniError

BLOCK_BYTES = 1 << 20  # in which files are copied
SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class ShardEntry(NamedTuple):
    """One payload in a shard."""

    key: str  # tar member or tensor name
    offset: int  # position of the payload's first byte in the file
    nbytes: int
    xxh3: int  # unsigned 64-bit xxh3 of the payload
    dtype: str = ""  # tensors only: "float32", "float16" or "bfloat16"
    shape: tuple[int, ...] = ()  # tensors only

    @classmethod
    def from_json(cls, values: list[Any]) -> "ShardEntry":
        """Restore an entry from its JSON values."""
        key, offset, nbytes, xxh3, dtype, shape = values
        return cls(key, offset, nbytes, xxh3, dtype, tuple(shape))


def checksum(data: bytes | memoryview) -> int:
    """xxh3-64 of a payload; at 13 GB/s per core, fast enough to check every read."""
    return xxhash.xxh3_64_intdigest(data)


class Shard:
    """A shard open for appending. After a kill, `reopen` restores the committed entries and truncates the rest."""

    suffix: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[ShardEntry] = []
        self.file: BinaryIO = path.open("r+b" if path.exists() else "w+b")

    def reopen(self, entries: list[ShardEntry]) -> None:
        """Continue a file after these entries and truncate everything behind them."""
        self.entries = list(entries)
        self.file.seek(self._end_of(entries))
        self.file.truncate()

    def put(self, key: str, data: bytes, dtype: str = "", shape: tuple[int, ...] = ()) -> ShardEntry:
        """Append one payload and flush it to the operating system."""
        offset = self._begin(key, len(data))
        self.file.write(data)
        self._pad(len(data))
        self.file.flush()
        entry = ShardEntry(key, offset, len(data), checksum(data), dtype, shape)
        self.entries.append(entry)
        return entry

    def put_file(self, key: str, source: BinaryIO) -> ShardEntry:
        """Append the contents of an open file as one payload, in bounded memory."""
        nbytes = source.seek(0, io.SEEK_END)
        source.seek(0)
        offset, digest = self._begin(key, nbytes), xxhash.xxh3_64()
        while block := source.read(BLOCK_BYTES):
            self.file.write(block)
            digest.update(block)
        self._pad(nbytes)
        self.file.flush()
        entry = ShardEntry(key, offset, nbytes, digest.intdigest())
        self.entries.append(entry)
        return entry

    def is_intact(self, entry: ShardEntry) -> bool:
        """Whether the entry's bytes are complete and match their checksum."""
        self.file.seek(entry.offset)
        digest, remaining = xxhash.xxh3_64(), entry.nbytes
        while block := self.file.read(min(remaining, BLOCK_BYTES)):
            digest.update(block)
            remaining -= len(block)
        return not remaining and digest.intdigest() == entry.xxh3

    @property
    def nbytes(self) -> int:
        """Bytes written so far."""
        return self._end_of(self.entries)

    @property
    def is_full(self) -> bool:
        """Whether this kind of file might not hold another entry."""
        return False

    def close(self, *, finish: bool) -> None:
        """Close the file; `finish`: write its header or end marker first, which completes it."""
        if finish:
            self._finish()
        self.file.close()

    def _begin(self, key: str, nbytes: int) -> int:
        raise NotImplementedError

    def _pad(self, nbytes: int) -> None:
        raise NotImplementedError

    def _end_of(self, entries: list[ShardEntry]) -> int:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError


class TarShard(Shard):
    """A POSIX tar file, readable by `tar`, WebDataset and Python's tarfile. Members: `CLIP_ID.MODALITY.SUFFIX`."""

    suffix = ".tar"

    def _begin(self, key: str, nbytes: int) -> int:
        start = self._end_of(self.entries)
        self.file.seek(start)
        info = tarfile.TarInfo(key)  # fixed time, owner and mode: equal contents give equal bytes
        info.size = nbytes
        header = info.tobuf(tarfile.PAX_FORMAT)
        self.file.write(header)
        return start + len(header)

    def _pad(self, nbytes: int) -> None:
        self.file.write(b"\0" * (-nbytes % tarfile.BLOCKSIZE))

    def _end_of(self, entries: list[ShardEntry]) -> int:
        if not entries:
            return 0
        last = entries[-1]
        return last.offset + last.nbytes + (-last.nbytes % tarfile.BLOCKSIZE)

    def _finish(self) -> None:
        self.file.seek(self._end_of(self.entries))
        self.file.truncate()
        self.file.write(b"\0" * (2 * tarfile.BLOCKSIZE))


class SafetensorsShard(Shard):
    """A safetensors file with reserved header space, so that offsets are known before the file is complete."""

    suffix = ".safetensors"
    header_bytes: ClassVar[int] = 256 * 1024  # room for about 2,000 entries; the format allows trailing spaces
    entry_bytes: ClassVar[int] = 256  # upper bound of the header text of one entry

    @property
    def is_full(self) -> bool:
        """Whether the reserved header might not hold another entry."""
        return (len(self.entries) + 2) * self.entry_bytes > self.header_bytes

    def _begin(self, key: str, nbytes: int) -> int:
        start = self._end_of(self.entries)
        if not self.entries:
            self.file.write((self.header_bytes).to_bytes(8, "little") + b"{}".ljust(self.header_bytes))
        self.file.seek(start)
        return start

    def _pad(self, nbytes: int) -> None:
        pass  # the format allows no holes between tensors

    def _end_of(self, entries: list[ShardEntry]) -> int:
        return entries[-1].offset + entries[-1].nbytes if entries else 8 + self.header_bytes

    def _finish(self) -> None:
        base = 8 + self.header_bytes
        header: dict[str, Any] = {
            entry.key: {
                "dtype": SAFETENSORS_DTYPES[entry.dtype],
                "shape": list(entry.shape),
                "data_offsets": [entry.offset - base, entry.offset - base + entry.nbytes],
            }
            for entry in self.entries
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) > self.header_bytes:
            raise OpenUniError(
                f"internal error: header of {self.path.name} has {len(text)} bytes, at most {self.header_bytes} are "
                "reserved. Please report it with this message and the run's log (runs/*.log)."
            )
        self.file.seek(0, io.SEEK_SET)
        self.file.write(self.header_bytes.to_bytes(8, "little") + text.ljust(self.header_bytes))

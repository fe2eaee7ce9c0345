"""Checksums inside the files of a corpus: block checksums of Parquet parts, one checksum per JSON record.

Parquet's own page checksums leave page headers and the footer (schema, statistics, offsets) uncovered: a flipped bit
there can change or hide rows. A part therefore has a table of xxh3-64 checksums between its last page and its footer,
where Parquet readers look at nothing:

    body | MARK | checksum of each 64 KiB block of the body | block size, number of blocks | digest | MARK | footer

`digest` covers everything after the body except itself. Numbers are unsigned 32-bit little-endian, checksums 8 bytes
big-endian. A file without `MARK` at this place was written by an earlier version or another program.
"""

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from openuni.manifests.errors import DamagedFile

BLOCK_BYTES = 64 * 1024
TAIL_BYTES = 64 * 1024  # read first from the end of a file: holds table and footer of nearly every part
SEARCH_BYTES = 256 * 1024  # end of the file in which a misplaced table is searched
MARK = b"\x89OUXXH3\n"  # stands at both ends of the table: one damaged byte cannot make it look absent
PARQUET = b"PAR1"
END_BYTES = 8  # length of the footer, then `PARQUET`
COUNTS = struct.Struct("<II")
DIGEST_BYTES = 8
RECORD_KEY = "checksum"
RECORD_CHECKSUM = re.compile(r"xxh3:[0-9a-f]{16}")
HASH_BYTES = 16 * 1024**2  # bytes of a file hashed at a time


class BlockTable(NamedTuple):
    """The checksums of a part, verified by their own digest."""

    body_bytes: int  # end of what the blocks cover
    block_bytes: int
    checksums: bytes  # 8 bytes per block

    def verify(self, number: int, block: memoryview) -> bool:
        """Whether a block of the body has its checksum."""
        return xxhash.xxh3_64_digest(block) == self.checksums[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]


def add_block_checksums(data: bytes) -> bytes:
    """A Parquet file with its table of checksums inserted before the footer."""
    footer_start = len(data) - END_BYTES - int.from_bytes(data[-8:-4], "little")
    view = memoryview(data)[:footer_start]
    digests = [xxhash.xxh3_64_digest(view[at : at + BLOCK_BYTES]) for at in range(0, footer_start, BLOCK_BYTES)]
    table = MARK + b"".join(digests) + COUNTS.pack(BLOCK_BYTES, len(digests))
    footer = data[footer_start:]
    return b"".join([view, table, xxhash.xxh3_64_digest(table + footer), MARK, footer])


def wanted_tail_bytes(tail: bytes, size: int) -> int:
    """How many bytes from the end of a file `block_table` needs; `tail`: at least its last 8 bytes."""
    footer_bytes = END_BYTES + int.from_bytes(tail[-8:-4], "little")
    fixed = footer_bytes + len(MARK) + DIGEST_BYTES + COUNTS.size
    counts = tail[len(tail) - fixed : len(tail) - fixed + COUNTS.size]
    marked = tail[: len(tail) - footer_bytes].endswith(MARK) if footer_bytes <= len(tail) else False
    if marked and len(counts) == COUNTS.size and fixed <= len(tail):
        fixed += COUNTS.unpack(counts)[1] * DIGEST_BYTES + len(MARK)
    elif not marked and len(tail) >= min(fixed, size):
        fixed = SEARCH_BYTES  # no table where it should be: search further before the file counts as unprotected
    return min(fixed, size)


def block_table(tail: bytes, size: int, where: str) -> BlockTable | None:
    """The table of a part of `size` bytes; None if it has none. `tail`: its end, see `wanted_tail_bytes`.

    Raises `DamagedFile` if the file is not Parquet, or table or footer do not match their digest.
    """
    if size < 2 * END_BYTES or not tail.endswith(PARQUET):
        raise DamagedFile(where, "no Parquet footer at its end: truncated or overwritten")
    footer_start = len(tail) - END_BYTES - int.from_bytes(tail[-8:-4], "little")
    digest_at = footer_start - len(MARK) - DIGEST_BYTES
    counts_at = digest_at - COUNTS.size
    if counts_at < 0 or tail[digest_at + DIGEST_BYTES : footer_start] != MARK:
        if MARK in tail:
            raise DamagedFile(where, "the table of checksums or the length of the footer is damaged")
        return None
    block_bytes, count = COUNTS.unpack(tail[counts_at:digest_at])
    table_at = counts_at - count * DIGEST_BYTES - len(MARK)
    digest = tail[digest_at : digest_at + DIGEST_BYTES]
    covered = tail[max(table_at, 0) : digest_at] + tail[footer_start:]
    if table_at < 0 or xxhash.xxh3_64_digest(covered) != digest:
        raise DamagedFile(where, "checksum mismatch of the footer")
    body_bytes = size - len(tail) + table_at
    if not block_bytes or count != -(-body_bytes // block_bytes):  # of another program, since the digest is right
        raise DamagedFile(where, f"{count:,} checksums of {block_bytes:,} bytes each for {body_bytes:,} bytes")
    return BlockTable(body_bytes, block_bytes, tail[table_at + len(MARK) : counts_at])


def record_bytes(record: Mapping[str, Any], indent: int | None = 2) -> bytes:
    """A JSON record with its checksum as the last key. Values that JSON lacks are written as text.

    `indent`: None writes one line.
    """
    plain = json.loads(json.dumps(record, default=str))
    plain.pop(RECORD_KEY, None)
    return json.dumps(plain | {RECORD_KEY: _record_checksum(plain)}, indent=indent).encode()


def parse_record(data: bytes, where: str) -> dict[str, Any]:
    """The record in the bytes of a JSON file, without its checksum. Records without one are not verified.

    Raises `DamagedFile` if it is not a JSON object or its checksum differs. `where`: path or URL for the message.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:  # invalid JSON or UTF-8
        raise DamagedFile(where, f"not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise DamagedFile(where, f"a JSON object is required, found {type(record).__name__}")
    # a damaged key must not pass as a record without checksum
    checksums = [key for key, value in record.items() if RECORD_CHECKSUM.fullmatch(str(value)) or key == RECORD_KEY]
    found = [record.pop(key) for key in checksums]
    if found and (checksums != [RECORD_KEY] or found != [_record_checksum(record)]):
        hint = f'if you edited the file, remove its line "{RECORD_KEY}" and the comma before it'
        raise DamagedFile(where, f"checksum mismatch ({hint})")
    return record


def _record_checksum(record: Mapping[str, Any]) -> str:
    """The checksum of a record's values; formatting and the order of keys do not matter."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return f"xxh3:{xxhash.xxh3_64_hexdigest(text.encode())}"


def file_checksum(path: Path) -> str:
    """xxh3-64 of a file's bytes, 16 hex digits."""
    total = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(HASH_BYTES):
            total.update(block)
    return total.hexdigest()

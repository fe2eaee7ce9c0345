"""Stored payloads as open files, for those that are too large for the memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, cast

import xxhash

from openuni.manifests.corpus.column_groups import ColumnGroups
from openuni.manifests.corpus.names import is_shard, shown
from openuni.manifests.errors import DamagedFile, OpenUniError
from openuni.manifests.video.source_file import ByteRangeFile
from openuni.manifests.video.video_errors import CorruptVideo

READ_BYTES = 1 << 20


@contextmanager
def open_payload(
    corpus: ColumnGroups, group: str, shard: str, offset: int, nbytes: int, xxh3: int
) -> Iterator[BinaryIO]:
    """Context with one payload as an open file. Its checksum is verified first, in one pass over it.

    Raises `DamagedFile`, or `OpenUniError` if the shard is missing, as `ColumnGroups.read`.
    """
    if not is_shard(shard) or offset < 0 or nbytes < 1:
        raise OpenUniError(f"{group}/{shown(shard)}: {nbytes} bytes at offset {offset}; the Parquet file is damaged")
    name = f"{group}/{shard}"
    where = corpus.store.location(name)
    if not corpus.store.exists(name):
        corpus.read(group, shard, offset, 1, xxh3)  # raises, and says what to do
    with ExitStack() as stack:
        try:
            file = stack.enter_context(corpus.store.fs.open(corpus.store.path(name), "rb"))
            part = ByteRangeFile(where, file, offset, offset + nbytes - 1)
        except CorruptVideo as error:
            raise DamagedFile(where, f"no {nbytes} bytes at offset {offset}") from error
        digest = xxhash.xxh3_64()
        while block := part.read(READ_BYTES):
            digest.update(block)
        if digest.intdigest() != xxh3:
            text = f"checksum mismatch of {nbytes} bytes at offset {offset}; it changed after it was written"
            raise DamagedFile(where, text)
        part.seek(0)
        yield cast(BinaryIO, part)

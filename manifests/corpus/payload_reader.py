"""Reading many payloads of a corpus into memory that is there: the read path of training.

On disks files stay open, so that a payload costs one `preadv` and nothing is copied. From object stores the ranges of
one call are fetched concurrently.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from openuni.manifests.corpus.column_groups import ColumnGroups
from openuni.manifests.corpus.names import is_shard, shown
from openuni.manifests.corpus.shards import checksum
from openuni.manifests.errors import DamagedFile, OpenUniError

MAX_OPEN = 128  # files that stay open


class Payload(NamedTuple):
    """Where one payload lies."""

    group: str
    shard: str
    offset: int
    nbytes: int
    xxh3: int

    @property
    def name(self) -> str:
        """The name of its file in the corpus."""
        return f"{self.group}/{self.shard}"


class PayloadReader:
    """Reads payloads of one corpus; threads may share it."""

    def __init__(self, corpus: ColumnGroups, *, verify: bool = True) -> None:
        """`verify`: whether every payload is compared with its checksum."""
        self.corpus, self.store, self.verify = corpus, corpus.store, verify
        self.lock = Lock()
        self.files: OrderedDict[str, FileIO] = OrderedDict()  # by name, the one used last at the end

    def read_into(self, payloads: Sequence[Payload], buffers: Sequence[memoryview]) -> dict[int, Exception]:
        """Fill each buffer (writable bytes, of the payload's size) with its payload.

        Returns, by position, the errors of those that could not be read: `OpenUniError` or `OSError`. Their buffers
        hold anything.
        """
        errors: dict[int, Exception] = {}
        if self.store.is_local:
            for position, (payload, buffer) in enumerate(zip(payloads, buffers, strict=True)):
                try:
                    self._check_place(payload, buffer)
                    self._read_local(payload, buffer)
                except (OpenUniError, OSError) as error:
                    errors[position] = error
        else:
            self._fetch(payloads, buffers, errors)
        if self.verify:
            for position, (payload, buffer) in enumerate(zip(payloads, buffers, strict=True)):
                if position not in errors and checksum(buffer) != payload.xxh3:
                    errors[position] = self._damaged(payload)
        with self.lock:
            for position in errors:  # it may be restored
                self.files.pop(payloads[position].name, None)
        return errors

    def close(self) -> None:
        """Close the files. A read afterwards opens them again."""
        with self.lock:
            self.files.clear()

    def _check_place(self, payload: Payload, buffer: memoryview) -> None:
        if not is_shard(payload.shard):
            raise OpenUniError(
                f"{payload.group}: shard {shown(payload.shard)} must be a plain file name; the Parquet file is damaged"
            )
        if payload.offset < 0 or payload.nbytes != buffer.nbytes:
            raise OpenUniError(
                f"{payload.name}: {payload.nbytes} bytes at offset {payload.offset} for {buffer.nbytes} bytes; the "
                "Parquet file is damaged"
            )

    def _read_local(self, payload: Payload, buffer: memoryview) -> None:
        file, done = self._file(payload), 0  # held here: it stays open though another thread drops it
        while done < payload.nbytes:
            count = os.preadv(file.fileno(), [buffer[done:]], payload.offset + done)
            if not count:
                raise self._damaged(payload)
            done += count

    def _file(self, payload: Payload) -> FileIO:
        """The open file; it is closed when nobody uses it any more."""
        name = payload.name
        with self.lock:
            file = self.files.get(name)
            if file is not None:
                self.files.move_to_end(name)
                return file
        try:
            file = Path(self.store.path(name)).open("rb", buffering=0)  # noqa: SIM115  # it stays open
        except FileNotFoundError as error:
            raise OpenUniError(self.corpus.missing_shard_message(name)) from error
        with self.lock:
            self.files[name] = file
            while len(self.files) > MAX_OPEN:
                self.files.popitem(last=False)
        return file

    def _fetch(self, payloads: Sequence[Payload], buffers: Sequence[memoryview], errors: dict[int, Exception]) -> None:
        """All ranges at once, from an object store."""
        paths, asked = [], []
        for position, (payload, buffer) in enumerate(zip(payloads, buffers, strict=True)):
            try:
                self._check_place(payload, buffer)
                paths.append(self.store.path(payload.name))
                asked.append(position)
            except OpenUniError as error:
                errors[position] = error
        starts = [payloads[position].offset for position in asked]
        ends = [payloads[position].offset + payloads[position].nbytes for position in asked]
        found = self.store.fs.cat_ranges(paths, starts, ends, on_error="return")
        for position, data in zip(asked, found, strict=True):
            payload = payloads[position]
            if isinstance(data, FileNotFoundError):
                errors[position] = OpenUniError(self.corpus.missing_shard_message(payload.name))
                errors[position].__cause__ = data
            elif isinstance(data, Exception):
                errors[position] = data if isinstance(data, OSError | OpenUniError) else OSError(str(data))
            elif len(data) != payload.nbytes:
                errors[position] = self._damaged(payload)
            else:
                buffers[position][:] = data

    def _damaged(self, payload: Payload) -> DamagedFile:
        return DamagedFile(
            self.store.location(payload.name),
            f"checksum mismatch of {payload.nbytes} bytes at offset {payload.offset}; it changed after it was written",
        )

"""Opening the file of a source: a local path, a URL of an allowed protocol, or a byte range of either."""

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openuni.manifests.storage.address import file_system, is_chained
from openuni.manifests.video.http_file import HttpFile, ReadOnlyFile
from openuni.manifests.video.video_errors import CorruptVideo, NotAVideo, UnsafeSource, VideoError

# suffix of a source: an inclusive byte range, as in HTTP, and optionally its xxh3-64
BYTE_RANGE = re.compile(r"#bytes=(\d{1,18})-(\d{1,18})(?:&xxh3=([0-9a-f]{16}))?$")
HTTP_PROTOCOLS = ("http", "https")
URL_PROTOCOLS = (*HTTP_PROTOCOLS, "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
ALLOWED_ADDRESSES = f"Allowed: a local path, or a URL of {', '.join(URL_PROTOCOLS)}."
_ESCAPED_BYTE = r"\udc"  # marks file names that are not UTF-8


def open_file(source: str, stack: contextlib.ExitStack, timeout_s: float) -> Any:
    """An absolute local path, or a seekable file object for URLs and byte ranges.

    `timeout_s`: of HTTP requests, see `HttpFile`. Raises a `VideoError` or the errors of the underlying libraries.
    """
    name = source.encode("utf-8", "backslashreplace").decode()
    if name != source or (_ESCAPED_BYTE in name and not Path(name).exists()):
        raise VideoError(f"{name}: file names must be UTF-8, because they are stored in tables. Rename the file.")
    byte_range = BYTE_RANGE.search(source)
    if byte_range:
        file = open_file(source[: byte_range.start()], stack, timeout_s)
        if isinstance(file, str):
            from fsspec.implementations.local import LocalFileSystem

            file = stack.enter_context(LocalFileSystem().open(file, "rb"))
        part = ByteRangeFile(source, file, int(byte_range[1]), int(byte_range[2]))
        return part if byte_range[3] is None else _verified(source, part, byte_range[3])
    protocol, separator, _ = source.partition("://")
    if separator and "/" not in protocol and protocol != "file":
        return _open_url(source, protocol, stack, timeout_s)
    local = Path(source.removeprefix("file://")).absolute()
    if local.is_file() and local.stat().st_size == 0:
        raise NotAVideo(f"{source} is empty (0 bytes). Download or copy it again.")
    if local.exists() and not local.is_file():
        raise NotAVideo(f"{source} is not a regular file")
    return str(local)  # absolute, so that a name with a colon is not parsed as a protocol


def _open_url(source: str, protocol: str, stack: contextlib.ExitStack, timeout_s: float) -> Any:
    if protocol not in URL_PROTOCOLS or is_chained(source):
        raise UnsafeSource(f"{source}: URL protocol is not allowed. {ALLOWED_ADDRESSES}")
    if protocol in HTTP_PROTOCOLS:
        return HttpFile(source, timeout_s)
    fs, path = file_system(source)
    file = stack.enter_context(fs.open(path, "rb", block_size=2**20))
    if not file.seekable():
        raise VideoError(f"{source} does not support range requests. Copy it to a local disk.")
    return file


def limit_requests(file: Any) -> None:
    """Limit the time of each HTTP request from now on, not that of all together."""
    inner = file.file if isinstance(file, ByteRangeFile) else file
    if isinstance(inner, HttpFile):
        inner.limit_requests()


class ByteRangeFile(ReadOnlyFile):
    """A byte range of an open file as a read-only file, for videos inside tar shards."""

    def __init__(self, source: str, file: Any, first: int, last: int) -> None:
        end = file.seek(0, io.SEEK_END)
        if not first <= last < end:
            raise CorruptVideo(f"{source}: the file has only {end} bytes. Download it again, or rerun the import.")
        super().__init__(last + 1 - first)
        self.file, self.first = file, first

    def read(self, count: int = -1) -> bytes:
        """Up to `count` bytes; all that remain if it is negative."""
        remaining = max(0, self.size - self.position)
        self.file.seek(self.first + self.position)
        data = bytes(self.file.read(remaining if count < 0 else min(count, remaining)))
        self.position += len(data)
        return data


class CalledFile(ReadOnlyFile):
    """A read-only file whose contents a function returns: (position, number of bytes) -> bytes."""

    def __init__(self, read_at: Callable[[int, int], bytes], nbytes: int) -> None:
        super().__init__(nbytes)
        self.read_at = read_at

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`."""
        wanted = min(len(buffer), max(0, self.size - self.position))
        data = self.read_at(self.position, wanted) if wanted else b""
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def _verified(source: str, file: ByteRangeFile, xxh3: str) -> ByteRangeFile:
    """The same file in memory. Raises `CorruptVideo` if their checksum (16 hex digits) differs."""
    import xxhash

    data = file.read()
    if xxhash.xxh3_64_hexdigest(data) != xxh3:
        raise CorruptVideo(f"{source}: checksum mismatch; the file changed after it was written. Rerun the import.")
    return ByteRangeFile(source, io.BytesIO(data), 0, len(data) - 1)

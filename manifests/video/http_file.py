"""Reading of HTTP sources in byte ranges: bounded in time and memory, retried if the server is overloaded."""

import io
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from openuni.manifests.video.decoder.progress import allowing
from openuni.manifests.video.video_errors import LimitExceeded, VideoError

BLOCK_BYTES = 2**20  # of one request
CACHED_BLOCKS = 8
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
RETRY_DELAYS_S = (0.5, 1.0, 2.0)  # before the second, third and last attempt
MAX_RETRY_AFTER_S = 10.0  # longest wait that a server may ask for
NOT_FOUND = frozenset({404, 410})
CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})$")


class HttpError(OSError):
    """An HTTP request failed; the message has the status."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class _Answer(NamedTuple):
    status: int
    reason: str
    headers: Mapping[str, str]
    data: bytes  # at most the number of bytes that was asked for


class ReadOnlyFile(io.RawIOBase):
    """A seekable file of known size; `read` is up to the subclass."""

    def __init__(self, size: int) -> None:
        self.size, self.position = size, 0

    def seekable(self) -> bool:
        """Always."""
        return True

    def readable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position of the next byte to read."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position; nothing is requested."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, base + offset)
        return self.position


class HttpFile(ReadOnlyFile):
    """A file on a web server as a read-only, seekable file.

    Opening reads its first block. Until `limit_requests` is called, all requests together may take `timeout_s`; after
    that, each of them. A read raises `LimitExceeded` after that time, `FileNotFoundError` for the statuses 404 and 410,
    `HttpError` for others, and errors of aiohttp. Nothing is read after an error.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        super().__init__(size=-1)
        self.url, self.timeout_s = url, timeout_s
        self.deadline: float | None = time.monotonic() + timeout_s
        self.blocks: OrderedDict[int, bytes] = OrderedDict()
        self.failure: Exception | None = None
        self.etag = ""
        self._block(0)

    def limit_requests(self) -> None:
        """From now on, limit the time of each request instead of that of all together."""
        self.deadline = None

    def read(self, count: int = -1) -> bytes:
        """Up to `count` bytes; all that remain if it is negative."""
        end = self.size if count < 0 else min(self.size, self.position + count)
        parts = []
        while self.position < end:
            number, offset = divmod(self.position, BLOCK_BYTES)
            parts.append(self._block(number)[offset : offset + end - self.position])
            self.position += len(parts[-1])
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        if self.failure is not None:
            raise self.failure
        if number not in self.blocks:
            try:
                with allowing(self.timeout_s):
                    self.blocks[number] = self._download(number * BLOCK_BYTES)
            except Exception as error:
                self.failure = error
                self.blocks.clear()  # error and file refer to each other: they stay until garbage is collected
                raise
            if len(self.blocks) > CACHED_BLOCKS:
                self.blocks.popitem(last=False)
        self.blocks.move_to_end(number)
        return self.blocks[number]

    def _download(self, first: int) -> bytes:
        """The block that begins at `first`; sets `size` and `etag` if it is the first request."""
        deadline = time.monotonic() + self.timeout_s if self.deadline is None else self.deadline
        answer = _request(self.url, first, BLOCK_BYTES, deadline, self.timeout_s)
        if self.size < 0 and (answer.status == 416 or answer.headers.get("Content-Length") == "0"):
            self.size = 0
            return b""
        size = self._total(answer, first)
        etag = answer.headers.get("ETag", self.etag)
        if self.size >= 0 and (size, etag) != (self.size, self.etag or etag):
            raise HttpError("the file changed while it was read")
        self.size, self.etag = size, etag
        if len(answer.data) < min(BLOCK_BYTES, size - first):
            raise HttpError(f"the answer ended after {len(answer.data)} bytes of a block", answer.status)
        return answer.data[: size - first]

    def _total(self, answer: _Answer, first: int) -> int:
        """Size of the whole file. Raises unless the answer has the bytes that were asked for."""
        if answer.status == 206:
            found = CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
            if not found or int(found[1]) != first:
                raise HttpError("the answer to a range request has no valid Content-Range with the size", 206)
            return int(found[3])
        length = answer.headers.get("Content-Length", "")
        if first == 0 and length.isascii() and length.isdigit():  # some servers ignore a range from the beginning
            return int(length)
        if first == 0 and len(answer.data) < BLOCK_BYTES:
            return len(answer.data)  # the whole file
        raise VideoError(f"{self.url} does not support range requests. Copy it to a local disk.")


def read_http(url: str, max_bytes: int, timeout_s: float) -> bytes | None:
    """Contents of a small file; None if the server has none, denies it (401, 403, 404, 410) or sends a web page.

    Reads at most `max_bytes + 1` bytes, in `timeout_s`. Raises `LimitExceeded`, `HttpError`, or an error of aiohttp.
    """
    try:
        answer = _request(url, None, max_bytes + 1, time.monotonic() + timeout_s, timeout_s)
    except FileNotFoundError:
        return None
    except HttpError as error:
        if error.status in (401, 403):
            return None
        raise
    # a server's page for what it does not have
    return None if answer.headers.get("Content-Type", "").startswith("text/html") else answer.data


def _request(url: str, first: int | None, count: int, deadline: float, timeout_s: float) -> _Answer:
    """Get `count` bytes from `first` on (None: without a range). Overload and lost connections are retried."""
    import aiohttp

    lost = (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, aiohttp.ClientConnectionResetError)
    for delay_s in (*RETRY_DELAYS_S, None):
        answer: _Answer | None = None
        try:
            answer = _attempt(url, first, count, deadline)
        except TimeoutError as error:
            raise _too_slow(url, timeout_s) from error
        except lost:
            if delay_s is None:
                raise
        if answer is not None and answer.status not in RETRIED_STATUSES:
            break
        if delay_s is not None:
            wait_s = delay_s if answer is None else max(delay_s, _retry_after_s(answer))
            if time.monotonic() + wait_s >= deadline:
                told = f"; the last status was {answer.status} {answer.reason}" if answer is not None else ""
                raise _too_slow(url, timeout_s, told)
            time.sleep(wait_s)
    assert answer is not None  # else the last attempt raised
    if answer.status in (200, 206) or (answer.status == 416 and first is not None):
        return answer
    text = f"HTTP {answer.status} {answer.reason}"
    if answer.status in NOT_FOUND:
        raise FileNotFoundError(text)
    retried = f", {1 + len(RETRY_DELAYS_S)} times" if answer.status in RETRIED_STATUSES else ""
    raise HttpError(text + retried, answer.status)


def _too_slow(url: str, timeout_s: float, told: str = "") -> LimitExceeded:
    text = f"reading {url} took longer than {timeout_s:g} s{told}"
    return LimitExceeded(f"{text}. Raise [ingest] probe_timeout_s (Limits.max_probe_s), or copy it to a local disk.")


def _retry_after_s(answer: _Answer) -> float:
    """Seconds that the server asks to wait, at most 10."""
    asked = answer.headers.get("Retry-After", "")
    return min(float(asked), MAX_RETRY_AFTER_S) if asked.isascii() and asked.isdigit() else 0.0


def _attempt(url: str, first: int | None, count: int, deadline: float) -> _Answer:
    """One request, on fsspec's event loop and with its settings (headers, proxies, credentials)."""
    import aiohttp
    import fsspec
    from fsspec.asyn import sync

    fs = fsspec.filesystem(url.partition("://")[0])
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError
    try:
        answer: _Answer = sync(fs.loop, _get, fs, url, first, count, remaining_s, timeout=remaining_s + 5)
    except aiohttp.TooManyRedirects as error:
        raise HttpError("too many redirects") from error
    except ValueError as error:  # of yarl, aiohttp and the codec of host names
        raise VideoError(f"{url} is not a valid address: {error}. Correct it.") from error
    return answer


async def _get(fs: Any, url: str, first: int | None, count: int, timeout_s: float) -> _Answer:
    import aiohttp

    settings = dict(fs.kwargs)
    headers = dict(settings.pop("headers", {})) | {"Accept-Encoding": "identity"}
    if first is not None:
        headers["Range"] = f"bytes={first}-{first + count - 1}"
    settings["timeout"] = aiohttp.ClientTimeout(total=timeout_s)  # also of connecting and waiting for the headers
    session = await fs.set_session()
    async with session.get(fs.encode_url(url), headers=headers, **settings) as response:
        data = bytearray()
        try:
            if response.status in (200, 206):
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise HttpError("the answer is compressed", response.status)
                while len(data) < count and (chunk := await response.content.read(count - len(data))):
                    data += chunk
        finally:
            if not response.content.at_eof():
                response.close()  # the rest is not read, however long it is
        return _Answer(response.status, response.reason or "", response.headers.copy(), bytes(data))

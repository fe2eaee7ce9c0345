"""The decoder process: calls functions of a fixed table for its parent. Started by `process`, imported by nobody."""

import contextlib
import ctypes
import json
import mmap
import os
import resource
import select
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from openuni.manifests.video import encode, images, probe, reader
from openuni.manifests.video.decoder import memory, process, progress, values
from openuni.manifests.video.decoder.channel import Channel, Closed
from openuni.manifests.video.decoder.connection import PACKED
from openuni.manifests.video.decoder.lifeline import end_with_parent
from openuni.manifests.video.readers import nvdec_reader
from openuni.manifests.video.video_errors import LimitExceeded

FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        probe.probe,
        probe.matching_mp4_bytes,
        reader.decode_frames,
        reader.frame_times,
        reader.iter_frames,
        reader.iter_windows,
        reader.decode_full_depth,
        images.exr_size,
        images.read_image,
        images.read_png_indices,
        encode.decode_lossless,
        encode.iter_lossless_from,
        nvdec_reader.decoder_nvdec_problem,
    )
}
MAX_BATCH, MAX_BATCH_BYTES = 16, 2**22  # items of a generator in one message
ALIGNMENT = 64
PACKED_BYTES = 2**16  # larger arrays have a buffer of their own: whoever keeps a small one would keep them too
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT_HEAP_BYTES = 128 * 2**20
SLACK_BYTES = 2**29  # what an allocation may exceed the limit by, before the parent ends this process
RETIRE_BYTES = 512 * 2**20  # a decoder that holds more memory after a request is replaced


class _Abandoned(BaseException):
    """The parent no longer wants the result."""


class _Outbox:
    """Arrays of one answer. See `values.Outgoing`."""

    def __init__(self, buffers: memory.Buffers) -> None:
        self.buffers = buffers
        self.message: dict[str, Any] = {"new": []}  # buffers that the parent lacks
        self.fds: list[int] = []
        self.copied: list[np.ndarray] = []  # small arrays that share one buffer, `packed`
        self.nbytes = 0

    def put(self, data: np.ndarray) -> dict[str, Any]:
        """See `values.Outgoing`. An array that was allocated by `memory.empty`, and not sent before, is not copied."""
        place = self.buffers.find(data)
        if place is None and data.nbytes > PACKED_BYTES:
            copy = self.buffers.empty(data.shape, data.dtype)
            copy[...] = data
            place = self.buffers.find(copy)
        if place is not None:
            self._send(place[0])
            return {"buffer": place[0], "at": place[1]}
        at = self.nbytes
        self.copied.append(data)
        self.nbytes += -(-data.nbytes // ALIGNMENT) * ALIGNMENT
        return {"buffer": PACKED, "at": at}

    def callback(self, function: Callable[..., Any]) -> int:
        """Results hold no functions."""
        raise TypeError(f"{function!r} is not a result")

    def pack(self) -> None:
        """Copy what has no buffer of its own."""
        if not self.copied:
            return
        packed, at = self.buffers.empty((self.nbytes,), np.uint8), 0
        for array in self.copied:
            packed[at : at + array.nbytes].view(array.dtype).reshape(array.shape)[...] = array
            at += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        place = self.buffers.find(packed)
        assert place is not None
        self._send(place[0])
        self.message["packed"] = place[0]

    def _send(self, number: int) -> None:
        fd = self.buffers.take_new(number)
        if fd is not None:
            self.message["new"].append(number)
            self.fds.append(fd)


class _Inbox:
    """Arrays and functions of one request. See `values.Incoming`."""

    def __init__(self, server: "Server", fds: list[int]) -> None:
        self.server = server
        self.data: Any = b""
        if fds:
            self.data = mmap.mmap(fds[0], os.fstat(fds[0]).st_size, mmap.MAP_SHARED, mmap.PROT_READ)
        for fd in fds:
            os.close(fd)

    def get(self, place: dict[str, Any]) -> np.ndarray:
        """See `values.Incoming`."""
        return np.frombuffer(self.data, np.uint8)[int(place["at"]) :]

    def function(self, number: int) -> Callable[..., Any]:
        """See `values.Incoming`."""
        return lambda *arguments: self.server.ask(number, arguments)


class Server:
    """Answers the requests of one parent, one after the other."""

    def __init__(self, channel: Channel) -> None:
        self.channel, self.buffers = channel, memory.Buffers()
        self.credit = 0
        self.is_abandoned = False
        memory.use_buffers(self.buffers)
        self.base_bytes = memory.data_bytes()

    def run(self) -> None:
        """Answer until the parent is gone."""
        self.channel.send({"ready": True}, [])
        while True:
            message, fds = self.channel.receive()
            self._take_over(message)
            if "fsspec" in message:
                _configure(message["fsspec"])
            if "call" not in message:
                continue  # also what was sent when the request had ended already
            try:
                self._answer(message, fds)
            except _Abandoned:
                self.send("end")
            except Closed:
                raise
            except Exception as error:  # of any kind: it is raised in the parent
                if self.is_abandoned:
                    self.send("end")
                else:
                    self.channel.send({"error": _described(error, message)}, [])
            self.buffers.end_request()

    def send(self, kind: str, value: Any = None) -> None:
        """Send a value to the parent."""
        outbox = _Outbox(self.buffers)
        encoded = values.encode(value, outbox)
        outbox.pack()
        held_bytes = memory.data_bytes() - self.base_bytes - nvdec_reader.device_bytes()
        retire = kind != "items" and held_bytes > RETIRE_BYTES
        self.channel.send({kind: encoded, "retire": retire} | outbox.message, outbox.fds)
        for fd in outbox.fds:
            os.close(fd)

    def ask(self, number: int, arguments: tuple[Any, ...]) -> Any:
        """Call a function of the parent. Raises `ConnectionAbortedError` if the parent no longer wants the result.

        It may be called by FFmpeg, through which only an `Exception` passes.
        """
        try:
            self._stop_if_abandoned()
            self.send("ask", (number, arguments))
            while True:
                message, fds = self._receive()
                if "answer" in message:
                    return values.decode(message["answer"], _Inbox(self, fds))
                self.credit += int(message.get("more", 0))
        except _Abandoned as error:
            raise ConnectionAbortedError from error

    def _answer(self, message: dict[str, Any], fds: list[int]) -> None:
        self.is_abandoned = False
        _limit(message, self.base_bytes)
        inbox = _Inbox(self, fds)
        arguments = values.decode(message["arguments"], inbox)
        for path, data in values.decode(message["files"], inbox):
            _memory_file(path, data)
        function = FUNCTIONS[message["call"]]
        if not message["stream"]:
            self.send("value", function(*arguments))
            return
        self.credit = int(message["credit"])
        self._stream(function(*arguments))
        self.send("end")

    def _stream(self, items: Any) -> None:
        """Send the items of a generator, several at once if they are small."""
        batch: list[Any] = []
        nbytes, most = 0, 1
        try:
            for item in items:
                progress.tick()
                batch.append(item)
                nbytes += item.nbytes if isinstance(item, np.ndarray) else MAX_BATCH_BYTES
                if len(batch) >= most or nbytes >= MAX_BATCH_BYTES:
                    self._wait_for_credit()
                    self.send("items", batch)
                    self.credit -= 1
                    batch, nbytes, most = [], 0, min(2 * most, MAX_BATCH)
        except Exception:
            self._wait_for_credit()
            self.send("items", batch)  # the items before the error
            raise
        finally:
            items.close()
        if batch:
            self._wait_for_credit()
            self.send("items", batch)

    def _wait_for_credit(self) -> None:
        """Wait until the parent can use one more item. Raises `_Abandoned` if it wants no more."""
        self._stop_if_abandoned()
        while not self.credit or select.select([self.channel.connection], [], [], 0)[0]:
            message, _ = self._receive()
            self.credit += int(message.get("more", 0))

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        message, fds = self.channel.receive()
        self._take_over(message)
        self.is_abandoned = self.is_abandoned or bool(message.get("abandon"))
        self._stop_if_abandoned()
        return message, fds

    def _stop_if_abandoned(self) -> None:
        if self.is_abandoned:
            raise _Abandoned

    def _take_over(self, message: dict[str, Any]) -> None:
        self.buffers.release(message["release"], message["drop"])


def _limit(message: dict[str, Any], base_bytes: int) -> None:
    """Set the limits and the current folder of a request."""
    with contextlib.suppress(OSError):  # it was removed: absolute paths do not need it
        os.chdir(message["folder"])
    if sys.platform == "linux":
        allowed = base_bytes + int(message["memory_bytes"]) + SLACK_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, resource.RLIM_INFINITY))
    used_s = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(used_s + message["cpu_s"]) + 1, resource.RLIM_INFINITY))


def _described(error: BaseException, message: dict[str, Any]) -> dict[str, Any]:
    """An error as JSON: class, text and traceback."""
    chain: BaseException | None = error
    while chain is not None and not isinstance(chain, MemoryError):
        chain = chain.__cause__ or chain.__context__
    lines = traceback.format_exception(error)
    if chain is not None:
        gigabytes = message["memory_bytes"] / 1e9
        error = LimitExceeded(process.NO_MEMORY.format(where=message["where"], gigabytes=gigabytes))
    base = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in process.ERRORS)
    arguments = [one for one in error.args if isinstance(one, (str, int))] if isinstance(error, OSError) else []
    text = f"{type(error).__name__}: {error}" if base == "Exception" else str(error)
    return {"type": base, "text": text, "arguments": arguments, "traceback": "".join(lines)[-process.MAX_TRACE_CHARS :]}


def _configure(settings: dict[str, Any]) -> None:
    """Take over the configuration of fsspec."""
    if settings:
        import fsspec

        fsspec.config.conf.update(settings)


def _memory_file(path: str, data: bytes) -> None:
    """Put a file of the parent's `memory://` file system into the one of this process."""
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pipe_file(path, data)


def _prefer_for_killing() -> None:
    """Where memory is short, the kernel should end this process rather than the worker."""
    with contextlib.suppress(OSError):  # not Linux, or not allowed
        Path("/proc/self/oom_score_adj").write_text("500")


def _keep_heap() -> None:
    """Let glibc keep freed memory for the next frames, rather than return and fetch the pages of each of them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_HEAP_BYTES // 4)
        mallopt(M_TRIM_THRESHOLD, KEPT_HEAP_BYTES)


def main() -> None:
    """Serve the parent that started this process."""
    import faulthandler

    import av.video.reformatter  # loaded before the first request

    del av
    options = json.loads(sys.argv[1])
    faulthandler.enable(sys.stderr)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # shared memory counts as a file
    _prefer_for_killing()
    _keep_heap()
    end_with_parent(options["lifeline"])
    page = mmap.mmap(options["page"], progress.PAGE_BYTES)
    progress.use_page(memoryview(page).cast("Q"))
    process.serve_here()
    with contextlib.suppress(Closed):
        Server(Channel(socket.socket(fileno=options["connection"]))).run()

"""The connection between a process and its decoder: messages of JSON, with file descriptors of shared memory."""

import json
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from openuni.manifests.video.decoder.memory import memory_file

MAX_MESSAGE_BYTES = 2**30
_HEADER = struct.Struct("<QI")  # bytes of the message, number of file descriptors
MAX_FDS = 200  # the kernel allows 253


class Closed(Exception):
    """The other side has closed the connection, or ended."""


class Channel:
    """Messages over a stream socket, each with file descriptors of its own."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def send(self, message: dict[str, Any], fds: list[int]) -> None:
        """Send a message. Raises `Closed`, `TimeoutError`."""
        body = json.dumps(message).encode()
        try:
            socket.send_fds(self.connection, [_HEADER.pack(len(body), len(fds))], fds)
            self.connection.sendall(body)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """The next message; the caller closes its file descriptors. Raises `Closed`, `TimeoutError`, `ValueError`."""
        try:
            header, fds, _, _ = socket.recv_fds(self.connection, _HEADER.size, MAX_FDS)
            if not header:
                raise Closed
            header += self._read(_HEADER.size - len(header))
            nbytes, count = _HEADER.unpack(header)
            if nbytes > MAX_MESSAGE_BYTES or count != len(fds):
                raise ValueError("malformed message")
            message = json.loads(self._read(nbytes))
        except (ConnectionResetError, BrokenPipeError) as error:
            raise Closed from error
        if not isinstance(message, dict):
            raise ValueError("malformed message")
        return message, fds

    def _read(self, nbytes: int) -> bytes:
        data = bytearray(nbytes)
        view, at = memoryview(data), 0
        while at < nbytes:
            count = self.connection.recv_into(view[at:])
            if not count:
                raise Closed
            at += count
        return bytes(data)


class Payload:
    """Arrays and functions of one request, on their way to the decoder. See `values.Outgoing`."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self.nbytes = 0
        self.functions: list[Callable[..., Any]] = []

    def put(self, data: np.ndarray) -> dict[str, Any]:
        """See `values.Outgoing`."""
        place = {"at": self.nbytes}
        self.arrays.append(data)
        self.nbytes += -(-data.nbytes // 64) * 64
        return place

    def callback(self, function: Callable[..., Any]) -> int:
        """See `values.Outgoing`."""
        self.functions.append(function)
        return len(self.functions) - 1

    def fds(self) -> list[int]:
        """A file that holds the arrays, if there are any. The caller closes it."""
        if not self.arrays:
            return []
        fd = memory_file(self.nbytes)
        try:
            self._write(fd)
        except OSError:
            os.close(fd)
            raise
        return [fd]

    def _write(self, fd: int) -> None:
        at = 0
        for array in self.arrays:
            data = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            written = 0
            while written < len(data):
                written += os.pwrite(fd, data[written : written + 2**30], at + written)
            at += -(-array.nbytes // 64) * 64

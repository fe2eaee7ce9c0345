"""Coding of maps in threads behind the operators: the maps of one are coded while the next one, or clip, is computed.

Video encoders and NumPy release the interpreter's lock, so that threads code at the same time.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from openuni.manifests.contracts.modality import FilePayload, Payload

MAX_CODERS = 8

Coded = Payload | FilePayload


class MapCoders:
    """Threads that code maps, and a bound on the maps that are coded at the same time."""

    def __init__(self, threads: int, max_bytes: int) -> None:
        """`threads`: 0: one per core, at most `MAX_CODERS`. `max_bytes`: of maps in coding; a larger one goes alone."""
        count = max(1, min(threads or os.cpu_count() or 1, MAX_CODERS))
        self.threads = ThreadPoolExecutor(count, thread_name_prefix="code")
        self.max_bytes, self.bytes_in_use = max_bytes, 0
        self.changed = threading.Condition()

    def submit(self, nbytes: int, code: Callable[[], Coded]) -> "Future[Coded]":
        """Start to code a map of `nbytes`. The future has the payload, or raises what `code` raises."""
        return self.threads.submit(self._code, nbytes, code)

    def close(self) -> None:
        """Wait for what is being coded; drop what is not."""
        self.threads.shutdown(cancel_futures=True)

    def _code(self, nbytes: int, code: Callable[[], Coded]) -> Coded:
        with self.changed:
            self.changed.wait_for(lambda: not self.bytes_in_use or self.bytes_in_use + nbytes <= self.max_bytes)
            self.bytes_in_use += nbytes
        try:
            return code()
        finally:
            with self.changed:
                self.bytes_in_use -= nbytes
                self.changed.notify_all()


def coded_payload(coded: "Coded | Future[Coded] | None") -> Coded | None:
    """The payload, once it is coded. Raises what coding raised."""
    return coded.result() if isinstance(coded, Future) else coded


def discard(coded: "Coded | Future[Coded]") -> None:
    """Free the disk that a coded map takes; wait for its coding, or keep it from starting."""
    if isinstance(coded, Future):
        if coded.cancel() or coded.exception() is not None:
            return
        coded = coded.result()
    if isinstance(coded, FilePayload):
        coded.file.close()

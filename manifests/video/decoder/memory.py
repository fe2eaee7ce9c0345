"""Shared memory through which arrays come back from the decoder process without being copied.

The decoder creates a buffer and sends its file descriptor once; both sides map it. When the last array on a buffer is
gone, its pages are used for the next array, or are freed.
"""

import ctypes
import fcntl
import mmap
import os
import tempfile
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MAX_POOLED_BYTES = 256 * 2**20  # of buffers that wait to be used again; larger ones are freed at once
_MADV_REMOVE = 9  # Linux: free the pages of a shared mapping, in all processes
_HUGE_PAGE_BYTES = 2**21


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    for function in (libc.munmap, libc.madvise):
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)[: 2 + (function is libc.madvise)]
    return libc


_C = _libc()


class SharedMemory:
    """A mapped buffer. Python's `mmap` would keep a file descriptor open for each."""

    def __init__(self, fd: int, nbytes: int) -> None:
        address = _C.mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "cannot map shared memory")
        self.address, self.nbytes = int(address), nbytes
        if nbytes >= _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            _C.madvise(self.address, nbytes, mmap.MADV_HUGEPAGE)  # a hint: a failure costs nothing

    def view(self) -> np.ndarray:
        """The bytes, uint8 [nbytes]; valid until `unmap`."""
        return np.frombuffer(memoryview((ctypes.c_ubyte * self.nbytes).from_address(self.address)), np.uint8)

    def unmap(self, *, discard: bool = False) -> None:
        """End the mapping; `discard`: free the memory, though the other process still maps it."""
        if self.nbytes:
            if discard:
                _C.madvise(self.address, self.nbytes, _MADV_REMOVE)
            _C.munmap(self.address, self.nbytes)
            self.nbytes = 0


def data_bytes() -> int:
    """Private writable memory of this process, what RLIMIT_DATA limits; 0 where that is not known."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * mmap.PAGESIZE
    except OSError:  # not Linux
        return 0


def memory_file(nbytes: int) -> int:
    """File descriptor of an unnamed file in memory that cannot be shortened; the caller closes it."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
            os.ftruncate(fd, nbytes)
            return fd
    fd = os.memfd_create("openuni", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, nbytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError:
        os.close(fd)
        raise
    return fd


def has_size(fd: int, nbytes: int) -> bool:
    """Whether a received file has this size and keeps it: reading past its end would kill the process."""
    is_kept = not hasattr(os, "memfd_create") or bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    return is_kept and os.fstat(fd).st_size >= nbytes


class Buffers:
    """The buffers of a decoder process, on its side."""

    def __init__(self) -> None:
        self.number = 0
        self.mapped: dict[int, SharedMemory] = {}
        self.arrays: dict[int, weakref.ref[np.ndarray]] = {}  # last handed out
        self.new: dict[int, int] = {}  # file descriptors that were not sent yet
        self.sent: set[int] = set()  # in use by the other process
        self.free: set[int] = set()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An uninitialized array on a buffer."""
        kind = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        number = self._allocate(max(1, nbytes))
        array = self.mapped[number].view()
        self.arrays[number] = weakref.ref(array)
        return array[:nbytes].view(kind).reshape(shape)

    def _allocate(self, nbytes: int) -> int:
        usable = [number for number in self.free if nbytes <= self.mapped[number].nbytes <= 2 * nbytes + 2**16]
        for number in sorted(usable, key=lambda number: self.mapped[number].nbytes):
            if self.arrays[number]() is None:  # else somebody here still reads it
                self.free.remove(number)
                return number
        size = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        fd = memory_file(size)
        try:
            memory = SharedMemory(fd, size)
        except OSError:
            os.close(fd)
            raise
        self.number += 1
        self.mapped[self.number], self.new[self.number] = memory, fd
        return self.number

    def find(self, array: np.ndarray) -> tuple[int, int] | None:
        """Buffer and offset of an array that lies in one which was not sent yet; else None."""
        if not array.flags.c_contiguous or not array.nbytes:
            return None
        address = array.ctypes.data
        for number, memory in self.mapped.items():
            if number not in self.sent and 0 <= address - memory.address <= memory.nbytes - array.nbytes:
                return number, address - memory.address
        return None

    def take_new(self, number: int) -> int | None:
        """Mark a buffer as sent; its file descriptor if the other process lacks it. The caller closes it."""
        self.sent.add(number)
        return self.new.pop(number, None)

    def release(self, numbers: list[int], dropped: list[int]) -> None:
        """The other process reads these no longer; it has unmapped those `dropped`."""
        self.sent.difference_update(numbers, dropped)
        self.free.update(number for number in numbers if number in self.mapped)
        for number in dropped:
            self._forget(number)

    def end_request(self) -> None:
        """Free what was allocated and not sent, and forget buffers that the other process frees after use."""
        for number in [number for number in self.mapped if number not in self.sent and number not in self.free]:
            if number in self.new:
                os.close(self.new.pop(number))
                self._forget(number)
            else:
                self.free.add(number)

    def _forget(self, number: int) -> None:
        memory = self.mapped.pop(number, None)
        array = self.arrays.pop(number, lambda: None)()
        self.free.discard(number)
        self.sent.discard(number)
        if memory is not None and array is None:
            memory.unmap()
        elif memory is not None and array is not None:
            weakref.finalize(array, memory.unmap)


class Mappings:
    """The buffers of a decoder process, on the side that uses the arrays. Closed with it; arrays stay valid."""

    def __init__(self) -> None:
        self.mapped: dict[int, SharedMemory] = {}
        self.pooled: dict[int, SharedMemory] = {}  # of these, those without arrays
        self.released: deque[int] = deque()  # not told yet
        self.dropped: deque[int] = deque()
        self.closed = False

    def add(self, number: int, fd: int) -> None:
        """Map a buffer that arrived."""
        nbytes = os.fstat(fd).st_size
        if not nbytes or not has_size(fd, nbytes) or number in self.mapped:
            raise ValueError("unusable buffer")
        self.mapped[number] = SharedMemory(fd, nbytes)

    def view(self, number: int) -> np.ndarray:
        """The bytes of a buffer, uint8. The buffer is released when no array on it is left."""
        self.pooled.pop(number, None)
        memory = self.mapped[number]
        array = memory.view()
        weakref.finalize(array, self._release, number, memory).atexit = False
        return array

    def told(self) -> dict[str, list[int]]:
        """Buffers released and dropped since the last call."""
        return {"release": _drain(self.released), "drop": _drain(self.dropped)}

    def close(self) -> None:
        """Free what has no arrays; the rest is freed when its arrays are gone."""
        self.closed = True
        while self.pooled:
            self.pooled.popitem()[1].unmap()
        self.mapped.clear()

    def _release(self, number: int, memory: SharedMemory) -> None:
        """Runs wherever the last array is deleted, possibly in the middle of anything: takes no lock."""
        pooled_bytes = sum(one.nbytes for one in list(self.pooled.values()))
        if self.closed or pooled_bytes + memory.nbytes > MAX_POOLED_BYTES:
            self.mapped.pop(number, None)
            memory.unmap(discard=True)
            self.dropped.append(number)
        else:
            self.pooled[number] = memory
            self.released.append(number)


def _drain(numbers: deque[int]) -> list[int]:
    return [numbers.popleft() for _ in range(len(numbers))]


_allocate: Callable[[tuple[int, ...], Any], np.ndarray] = np.empty


def use_buffers(buffers: Buffers) -> None:
    """Let `empty` allocate on these from now on."""
    global _allocate
    _allocate = buffers.empty


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """As `np.empty`. In the decoder process the array is returned to the parent without a copy."""
    return _allocate(shape, dtype)

"""How much memory calls leave behind, to the byte: resident memory also moves with what the allocator keeps."""

import ctypes
import gc
from collections.abc import Callable

import pytest

FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Figures(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]  # as ctypes reads it


def bytes_in_use() -> int:
    """Bytes that this process has allocated with malloc, also inside of libraries. Skips the test without glibc."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        pytest.skip("mallinfo2 is glibc's")
    mallinfo.restype = _Figures
    figures = mallinfo()
    return int(figures.uordblks + figures.hblkhd)


def growth_per_call(call: Callable[[int], object], calls: int = 150, warm_up: int = 50) -> float:
    """Bytes that each call leaves behind, after the first ones, while garbage is not collected.

    So neither a leak passes, nor a cycle that holds frames or buffers until the collector runs.
    """
    for number in range(warm_up):
        call(number)
    gc.collect()
    gc.disable()
    try:
        before = bytes_in_use()
        for number in range(calls):
            call(number)
        return (bytes_in_use() - before) / calls
    finally:
        gc.enable()

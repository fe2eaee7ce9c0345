"""Signs of life of a decode: a page of shared memory in the decoder process, which its parent watches.

Outside the decoder process the page is ordinary memory, which nobody reads.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

PAGE_BYTES = 4096
STEPS, DECODES, ALLOWED_MS, FALLBACKS = 0, 1, 2, 3  # positions in the page, uint64

_page = memoryview(bytearray(PAGE_BYTES)).cast("Q")


class _ThreadSafeCounter:
    """A counter shared by threads."""

    def __init__(self) -> None:
        self.lock, self.count = threading.Lock(), 0

    def add(self, number: int = 1) -> None:
        with self.lock:
            self.count += number


_decodes, _fallbacks = _ThreadSafeCounter(), _ThreadSafeCounter()
_waited = threading.local()


def use_page(page: memoryview) -> None:
    """Write signs of life to this page from now on (uint64)."""
    global _page
    _page = page


def tick() -> None:
    """Note that a packet, a frame or a block of the source was read. Takes less than 0.1 us."""
    _page[STEPS] = (_page[STEPS] + 1) & 0xFFFFFFFF


@contextmanager
def allowing(seconds: float) -> Iterator[None]:
    """Context in which nothing needs to be noted for so long: a step that has a time limit of its own."""
    before = _page[ALLOWED_MS]
    tick()
    _page[ALLOWED_MS] = max(before, min(int(seconds * 1000), 2**40))
    try:
        yield
    finally:
        tick()
        _page[ALLOWED_MS] = before


def count_decode(number: int = 1) -> None:
    """Count an opening of a clip's source for decoding."""
    _decodes.add(number)
    _page[DECODES] = _decodes.count


def decode_count() -> int:
    """Number of times that clips' sources were opened for decoding, for this process. Shows that decodes are shared."""
    return _decodes.count


def count_fallback(number: int = 1) -> None:
    """Count a decode that the CPU did because NVDEC could not."""
    _fallbacks.add(number)
    _page[FALLBACKS] = _fallbacks.count


def fallback_count() -> int:
    """Number of decodes that the CPU did because NVDEC could not, for this process."""
    return _fallbacks.count


def count_seconds(seconds: float) -> None:
    """Count time in which this thread waited for a decoder."""
    _waited.seconds = decoder_seconds() + seconds


def decoder_seconds() -> float:
    """Seconds in which this thread has waited for decoders; none while they run in this process."""
    return getattr(_waited, "seconds", 0.0)

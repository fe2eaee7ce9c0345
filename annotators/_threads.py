"""Threads for an annotator's work on the host: what numpy, OpenCV and PIL do without Python's global lock."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

R = TypeVar("R")


def thread_count() -> int:
    """Threads of this worker: its share of the cores, which the runner states; all cores without a runner."""
    return int(os.environ.get("OPENUNI_THREADS", "0")) or os.cpu_count() or 1


def in_threads(function: Callable[..., R], *items: Iterable[Any]) -> list[R]:
    """As `list(map(function, *items))`, in threads. Calls must not depend on one another.

    Items are drawn in the calling thread, as fast as they come: an iterator that drives a network goes on while threads
    process what it has yielded. Threads end with the call, so a process can fork between two calls. The first error of
    an item is raised.
    """
    with ThreadPoolExecutor(thread_count(), thread_name_prefix="annotate") as pool:
        return list(pool.map(function, *items))

"""Threads for work on single frames or pairs of frames in OpenCV and NumPy, which release the interpreter lock."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_threads(work: Callable[..., Result], *arguments: Iterable[Any]) -> list[Result]:
    """As `list(map(work, *arguments))`, in as many threads as OpenCV may use: the cores of this worker.

    Calls must not depend on one another. Threads end with the call, so a process can fork between two calls. Raises
    what the first call raised that failed.
    """
    import cv2

    threads = cv2.getNumThreads()
    if threads < 2:
        return list(map(work, *arguments))
    with ThreadPoolExecutor(threads, thread_name_prefix="frames") as pool:
        return list(pool.map(work, *arguments))

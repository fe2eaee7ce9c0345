"""The lease of a corpus: one run writes at a time, and none starts while workers of a killed run may still write."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from openuni.manifests.corpus.store import Store
from openuni.manifests.corpus.writer import spool_dir
from openuni.manifests.errors import OpenUniError


@contextmanager
def lock(store: Store, wait_s: float = 30.0) -> Iterator[None]:
    """Hold the lease of a corpus for one run.

    `wait_s`: maximum time to wait for workers of a killed run to exit. Raises `OpenUniError` if another run holds it.
    """
    with _exclusive_lock(_lock_path(store, "driver"), 0.0, store.url):
        with _exclusive_lock(_lock_path(store, "workers"), wait_s, store.url):
            store.delete_temp_files()  # safe: all workers have exited
        yield


def worker_lock(store: Store) -> TextIO:
    """Acquire a worker's shared lock, released when its process ends: no other run starts while it may still write."""
    file = _lock_path(store, "workers").open("a")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def _lock_path(store: Store, name: str) -> Any:
    folder = store.local("") if store.is_local else spool_dir(store)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f".{name}.lock"


@contextmanager
def _exclusive_lock(path: Any, wait_s: float, url: str) -> Iterator[None]:
    deadline = time.monotonic() + wait_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OpenUniError(
                        f"corpus {url} is locked by another run. Wait for it to finish, or stop it."
                    ) from None
                time.sleep(0.1)
        yield

"""The lease of a corpus: one run writes at a time, and none starts while workers of a killed run may still write."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from openuni.manifests.corpus.store import Store
from openuni.manifests.corpus.writer import spool_dir
from openuni.manifests.errors import OpenUniError


@contextmanager
def lock(store: Store, wait_s: float = 30.0) -> Iterator[None]:
    """Hold the lease of a corpus for one run.

    `wait_s`: maximum time to wait for workers of a killed run to exit. Raises `OpenUniError` if another run holds it.
    """
    busy = f"corpus {store.url} is locked by another run. Wait for it to finish, or stop it."
    with exclusive_lock(_lock_path(store, "driver"), busy):
        with exclusive_lock(_lock_path(store, "workers"), busy, wait_s):
            store.delete_temp_files()  # safe: all workers have exited
        yield


def worker_lock(store: Store) -> TextIO:
    """Acquire a worker's shared lock, released when its process ends: no other run starts while it may still write."""
    file = _lock_path(store, "workers").open("a")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def _lock_path(store: Store, name: str) -> Path:
    folder = store.local("") if store.is_local else spool_dir(store)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f".{name}.lock"


@contextmanager
def exclusive_lock(path: Path, busy: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file, created if missing, between all processes of a machine.

    It is released when the process ends, however it ends. `wait_s`: maximum time to wait for another holder. Raises
    `OpenUniError` with the message `busy`.
    """
    deadline = time.monotonic() + wait_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OpenUniError(busy) from None
                time.sleep(0.1)
        yield

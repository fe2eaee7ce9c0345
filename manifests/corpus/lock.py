"""Locks of a corpus: one run writes at a time, and no run starts while a worker of a killed one might still write."""

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
    """Hold the corpus for one run. Waits for dying workers of a killed run; raises when another run is alive."""
    with _file_lock(_lock_path(store, "driver"), fcntl.LOCK_EX, 0.0, store.url):
        with _file_lock(_lock_path(store, "workers"), fcntl.LOCK_EX, wait_s, store.url):
            store.delete_temp_files()  # no worker is alive: their locks end with their processes
        yield


def worker_lock(store: Store) -> TextIO:
    """Held by a worker for as long as it lives, so that no other run starts while it might still write."""
    file = _lock_path(store, "workers").open("a")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def _lock_path(store: Store, name: str) -> Any:
    folder = store.local("") if store.is_local else spool_dir(store)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f".{name}.lock"


@contextmanager
def _file_lock(path: Any, kind: int, wait_s: float, url: str) -> Iterator[None]:
    deadline = time.monotonic() + wait_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OpenUniError(f"another run is writing to {url}. Wait for it, or stop it first.") from None
                time.sleep(0.1)
        yield

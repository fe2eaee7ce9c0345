"""The lock of a corpus: one run writes at a time, and none starts while workers of a killed run may still write.

Processes on one machine, or on a file system with reliable locks (local disks, NFS 4, Lustre with `flock`, CephFS), are
kept apart by file locks, which the operating system releases when a process dies. Object stores, and file systems that
refuse file locks, are kept apart by a lease (`lease.py`). `OPENUNI_LOCK=lease` adds the lease on file systems whose
locks hold on one machine only (Lustre with `localflock`, SMB).
"""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO
from weakref import WeakSet

from openuni.manifests.corpus.writer import spool_dir
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.lease import held_lease, worker_fence
from openuni.manifests.storage.remote_errors import remote_errors
from openuni.manifests.storage.store import Store

NO_LOCKS_ERRNOS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}

logger = logging.getLogger(__name__)
_worker_locks: dict[str, WeakSet[TextIO]] = {}  # path -> files that workers in this process hold


@contextmanager
def lock(store: Store, wait_s: float = 30.0) -> Iterator[None]:
    """Hold the corpus for one run.

    `wait_s`: maximum time to wait for workers of a killed run on this machine to exit. Raises `OpenUniError` if another
    run holds it; `store` raises `LeaseLost` on its next write if another run took over.
    """
    busy = f"corpus {store.url} is locked by another run. Wait for it to finish, or stop it."
    with remote_errors(store.url), ExitStack() as held:
        has_locks = held.enter_context(exclusive_lock(_lock_path(store, "driver"), busy))
        if _needs_lease(store) or not has_locks:
            held.enter_context(held_lease(store))
        for left in _worker_locks.pop(str(_lock_path(store, "workers")), ()):
            left.close()  # of a failed run in this process, whose exception somebody keeps: it has no workers any more
        with exclusive_lock(_lock_path(store, "workers"), busy, wait_s):
            store.delete_temp_files()  # safe: all workers have exited
        yield


def worker_lock(store: Store) -> TextIO:
    """Acquire a worker's shared lock, released when its process ends: no other run starts while it may still write."""
    path = _lock_path(store, "workers")
    file = path.open("a")
    _worker_locks.setdefault(str(path), WeakSet()).add(file)
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno not in NO_LOCKS_ERRNOS:
            raise
    worker_fence(store)
    return file


def _needs_lease(store: Store) -> bool:
    given = os.environ.get("OPENUNI_LOCK", "")
    if given not in ("", "lease"):
        raise OpenUniError(f'OPENUNI_LOCK = "{given}". Allowed: lease, or not set.')
    return not store.is_local or given == "lease"


def local_state_dir(store: Store) -> Path:
    """Local folder for the locks of a corpus and for what only this machine needs to know: created if missing."""
    folder = store.local("") if store.is_local else spool_dir(store)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _lock_path(store: Store, name: str) -> Path:
    folder = local_state_dir(store)
    return store.local(f".{name}.lock") if store.is_local else folder / f".{name}.lock"


@contextmanager
def exclusive_lock(path: Path, busy: str, wait_s: float = 0.0) -> Iterator[bool]:
    """Hold the lock of a file, created if missing, between all processes of a machine.

    It is released when the process ends, however it ends. Yields False on a file system without locks. `wait_s`:
    maximum time to wait for another holder. Raises `OpenUniError` with the message `busy`.
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
            except OSError as error:
                if error.errno not in NO_LOCKS_ERRNOS:
                    raise
                logger.info("%s: the file system has no locks (%s)", path, error.strerror)
                yield False
                return
        yield True

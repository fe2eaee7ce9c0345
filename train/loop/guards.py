"""Guards around a training run: one training per folder, and what to say when the disk is full."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openuni.manifests.corpus.writer import STORAGE_FULL_ERRNOS, StorageFull
from openuni.manifests.storage.lock import exclusive_lock
from openuni.manifests.storage.store import require_folder
from openuni.training.loop.training_checkpoint import kept_text

LOCK_FILE = ".train.lock"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is created if missing; released when the process ends, however it ends.

    Raises `OpenUniError` if another training holds it. A new folder is removed again if nothing was written to it.
    """
    require_folder(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    busy = (
        f"training run {folder} is locked by another training. Wait for it to finish, stop it, or pass another --out."
    )
    with exclusive_lock(folder / LOCK_FILE, busy):
        try:
            yield
        finally:
            if is_new and [path.name for path in folder.iterdir()] == [LOCK_FILE]:
                (folder / LOCK_FILE).unlink()
                folder.rmdir()


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Context that converts "disk full" errors of the operating system to `StorageFull`."""
    try:
        yield
    except OSError as error:
        if error.errno in STORAGE_FULL_ERRNOS:
            raise StorageFull(
                f"no space left while writing to {folder} ({error.strerror}). {kept_text(folder)} Free some space, "
                "then rerun the same command to resume."
            ) from error
        raise

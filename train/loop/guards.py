"""Guards around a training run: one training per folder, and what to say when the disk is full."""

import faulthandler
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openuni.manifests.corpus.writer import StorageFull, is_disk_full
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.lock import exclusive_lock
from openuni.manifests.storage.store import Store, require_folder
from openuni.training.run_files import LOCK_FILE, checkpoint_folders, is_written


@contextmanager
def run_lock(folder: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a run folder, which is created if missing; released when the process ends, however it ends.

    `wait_s`: maximum time to wait for another holder. Raises `OpenUniError` if another training holds it. A new folder
    is removed again if nothing was written to it.
    """
    require_folder(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    busy = (
        f"training run {folder} is locked by another training. Wait for it to finish, stop it, or pass another --out."
    )
    with exclusive_lock(folder / LOCK_FILE, busy, wait_s):
        try:
            Store(str(folder)).delete_temp_files()  # of a training that was killed while it wrote a record
            yield
        finally:
            if is_new and [path.name for path in folder.iterdir()] == [LOCK_FILE]:
                (folder / LOCK_FILE).unlink()
                folder.rmdir()


def kept_text(run: Path) -> str:
    """What a run that stops early can be resumed from, as a sentence."""
    steps = [step for step, path in checkpoint_folders(run) if is_written(path)]
    return f"The checkpoint of step {steps[-1]} is kept." if steps else "There is no checkpoint to resume from."


def diverged_text(run: Path) -> str:
    """What to do about a run that diverged."""
    advice = f"Lower optimizer.learning_rate or optimizer.max_grad_norm. {kept_text(run)}"
    if not checkpoint_folders(run):
        return f"{advice} Rerun to start again."
    return (
        f"{advice} A rerun resumes from it and repeats the same steps. To continue with other options, pass another "
        "--out and set init_from to this run."
    )


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Context that prints the stacks of all threads to stderr if it takes longer than `seconds`; 0: never.

    It prints them without the interpreter lock, so also if a library waits for ever with it.
    """
    stderr = sys.__stderr__
    if not seconds or stderr is None:
        yield
        return
    faulthandler.dump_traceback_later(seconds, repeat=True, file=stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Context that converts "disk full" errors to `StorageFull`, which says what a rerun resumes from."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OpenUniError) or not is_disk_full(error):
            raise
        raise StorageFull(
            f"no space left while writing to {folder} ({error}). {kept_text(folder)} Free some space, then rerun the "
            "same command to resume."
        ) from error

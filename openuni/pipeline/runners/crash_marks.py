"""Marks of the items in flight in this process, by which the next run knows which item a crash belongs to.

A run in one process ends with it if native code of an operator crashes. The marks are files of this machine beside the
locks of the corpus (in the spool, for object stores): which item each thread works on, and what `faulthandler` writes
when the process dies of a signal. The next run on this machine reads them:

- A crash (SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL) in a thread that was working on an item: the item fails.
- Any other death (SIGKILL by the user or for lack of memory, loss of power), and a crash in a thread of which nothing
  is known: one attempt of each item that was being worked on. Such an item then runs alone, and fails after
  `MAX_ATTEMPTS`.

Marks are not synchronized to disk: a loss of power may lose the last one, which counts one attempt less.
"""

import contextlib
import faulthandler
import itertools
import json
import platform
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import xxhash

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.writer import write_errors
from openuni.manifests.storage.lock import local_state_dir
from openuni.manifests.storage.store import Store
from openuni.pipeline.runners.resources import MAX_ATTEMPTS
from openuni.pipeline.worker import Spec

MAX_TRACE_CHARS = 4000
MAX_FILE_BYTES = 2**20
MACHINERY = "openuni/pipeline/worker.py"  # the frames below it are those of every item
SIGNALS = {
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Floating point exception": "SIGFPE",
    "Floating-point exception": "SIGFPE",
    "Illegal instruction": "SIGILL",
}
FATAL = re.compile(r"^Fatal Python error: (.*)$", re.MULTILINE)
CURRENT_THREAD = re.compile(r"^Current thread 0x([0-9a-f]+) .*\n((?:  .*\n?)*)", re.MULTILINE)


class Death(NamedTuple):
    """Why an item fails without being tried again."""

    error: str
    traceback: str


class CrashMarks:
    """The marks of one phase of one corpus on this machine. Without a corpus (`folder` None) nothing is kept."""

    def __init__(self, folder: Path | None, phase: str) -> None:
        self.phase, self.lock = phase, threading.Lock()
        machine = xxhash.xxh3_64_hexdigest(platform.node().encode())
        self.store = Store(str(folder)) if folder is not None else None  # for messages
        self.path = folder / f".in-flight-{machine}.json" if folder is not None else None
        name = f".crash-{machine}-{xxhash.xxh3_64_hexdigest(phase.encode())}.txt"  # other phases leave it alone
        self.crash_path = folder / name if folder is not None else None
        self.attempts: dict[str, int] = {}
        self.deaths: dict[str, Death] = {}
        self.in_flight: dict[str, str] = {}  # thread (hexadecimal) -> key of the item
        self.others: dict[str, Any] = {}  # marks of other phases
        self._settle()

    @classmethod
    def of(cls, spec: Spec) -> "CrashMarks":
        """The marks of a phase; those of other versions of its operators are others."""
        url = getattr(spec, "corpus_url", None)
        folder = local_state_dir(Corpus.open(url).store) if url is not None else None
        versions = sorted(dict(getattr(spec, "versions", {})).items())
        return cls(folder, f"{type(spec).__name__} {versions}")

    def is_known(self, key: str) -> bool:
        """Whether the process died while it worked on the item, so that it must run alone."""
        return key in self.attempts or key in self.deaths

    def take_death(self, key: str) -> Death | None:
        """Why the item fails now; once, so that `--retry-failed` tries it again."""
        death = self.deaths.pop(key, None)
        if death is None and self.attempts.get(key, 0) >= MAX_ATTEMPTS:
            text = f"the process died {MAX_ATTEMPTS} times while it worked on this item alone or with others"
            death = Death(f"WorkerDied: {text} (out of memory, or killed). Rerun with --retry-failed to try again.", "")
        if death is not None:
            self.attempts.pop(key, None)
            self._write()
        return death

    @contextmanager
    def working_on(self, *keys: str) -> Iterator[None]:
        """Context in which this thread works on an item, or on several together."""
        if self.path is None:
            yield
            return
        thread = f"{threading.get_ident():x}"
        # of several, a crash does not say which: no thread is called so, and it counts as one attempt of each
        names = [thread] if len(keys) == 1 else [f"{thread}/{number}" for number in range(len(keys))]
        self._mark(dict(zip(names, keys, strict=True)))
        try:
            yield
        finally:  # not reached if the process dies
            self._mark(dict.fromkeys(names))

    def finished(self, key: str) -> None:
        """The item has its rows: deaths before do not count any more."""
        if self.attempts.pop(key, None) is not None:
            self._write()

    def completed(self) -> None:
        """All items have their rows."""
        self.attempts.clear()
        self.deaths.clear()
        self._write()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Context in which a crash of this process is written down."""
        if self.crash_path is None:
            yield
            return
        was_enabled = faulthandler.is_enabled()
        with self.crash_path.open("wb") as file:
            faulthandler.enable(file, all_threads=True)
            try:
                yield
            finally:  # not reached if the process dies
                _restore(was_enabled)
                self.crash_path.unlink(missing_ok=True)

    def _mark(self, keys: Mapping[str, str | None]) -> None:
        with self.lock:
            for thread, key in keys.items():
                if key is None:
                    self.in_flight.pop(thread, None)
                else:
                    self.in_flight[thread] = key
            self._write()

    def _write(self) -> None:
        """Replace the file; remove it if there is nothing to remember."""
        if self.path is None or self.store is None:
            return
        mine = {"attempts": self.attempts, "in_flight": self.in_flight, "deaths": self.deaths}
        state = self.others | ({self.phase: mine} if any(mine.values()) else {})
        with write_errors(self.store):  # not of the item, as which it would become a failed row
            if not state:
                self.path.unlink(missing_ok=True)
                return
            temp_path = self.path.with_name(f"{self.path.name}.tmp")
            temp_path.write_text(json.dumps(state))
            temp_path.replace(self.path)

    def _settle(self) -> None:
        """Take over the marks of the last run. If it died, decide what that means for the items in flight."""
        state = _read(self.path)
        mine = state.pop(self.phase, None)
        self.others = state
        if mine is None or self.crash_path is None:
            return
        self.attempts = {str(key): int(count) for key, count in mine["attempts"].items()}
        self.deaths = {str(key): Death(*map(str, death)) for key, death in mine["deaths"].items()}
        in_flight = {str(thread): str(key) for thread, key in mine["in_flight"].items()}
        thread, death = _crash(self.crash_path)
        if death is not None and thread in in_flight:
            self.deaths[in_flight[thread]] = death
        else:
            for key in set(in_flight.values()):
                self.attempts[key] = self.attempts.get(key, 0) + 1
        self._write()
        self.crash_path.unlink(missing_ok=True)


def _read(path: Path | None) -> dict[str, Any]:
    """The marks in a file; empty if there is none, or it cannot be understood."""
    if path is None or not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        return {}
    try:
        state = json.loads(path.read_bytes())
        for mine in state.values():
            _ = [int(count) for count in mine["attempts"].values()]
            _ = [Death(*death) for death in mine["deaths"].values()], mine["in_flight"].items()
    except (ValueError, TypeError, KeyError, AttributeError, OSError):
        return {}
    return dict(state)


def _crash(path: Path) -> tuple[str, Death | None]:
    """The thread (hexadecimal) that crashed, and how; None if the process did not crash."""
    if not path.is_file():
        return "", None
    with path.open("rb") as file:
        text = file.read(MAX_FILE_BYTES).decode("utf-8", "backslashreplace")
    fatal, current = FATAL.search(text), CURRENT_THREAD.search(text)
    if fatal is None or current is None:
        return "", None
    name = SIGNALS.get(fatal[1], "")
    what = f"{name}, {fatal[1].lower()}" if name else fatal[1]
    error = f"WorkerDied: the process crashed ({what}) in native code while it worked on this item"
    frames = "".join(itertools.takewhile(lambda line: MACHINERY not in line, current[2].splitlines(keepends=True)))
    trace = f"{fatal[0]}\n\nTraceback (most recent call first):\n{frames}"[:MAX_TRACE_CHARS]
    return current[1].lstrip("0"), Death(f"{error}. Rerun with --retry-failed to try again.", trace)


def _restore(was_enabled: bool) -> None:
    faulthandler.disable()
    if was_enabled:
        with contextlib.suppress(OSError, RuntimeError, ValueError, AttributeError):
            faulthandler.enable(_standard_error())


def _standard_error() -> IO[Any]:
    return sys.__stderr__ if sys.__stderr__ is not None else sys.stderr

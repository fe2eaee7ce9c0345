"""Kill a process of ours at a chosen file operation: deterministic, and without waiting for the right moment."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

KILLED = 137
CHANGES = frozenset({"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.copyfile"})


def killed_at(number: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> bool:
    """Run `function(*arguments)` in a process that dies, as by kill -9, before its `number`-th change below `folder`.

    Changes are files opened for writing, renamed, linked and removed, and folders made, counted from 1. Returns whether
    it died; False: it ended before. Raises if it failed in another way.
    """
    process = _context().Process(target=_run, args=(number, str(folder), function, arguments))
    process.start()
    process.join(60)
    if process.exitcode not in (0, KILLED):
        raise AssertionError(f"exit code {process.exitcode}, expected 0 or {KILLED}")
    return process.exitcode == KILLED


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")  # forks a process that has imported us but started no threads
    context.set_forkserver_preload(["openuni.api", "tests.killed"])
    return context


def die_at(number: int, concerns: Callable[[str], bool], delay_s: float | None = None) -> None:
    """End this process before its `number`-th change of a file whose path `concerns`, or `delay_s` after it."""
    left = number

    def watch(event: str, details: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "open":
            path, _, flags = details
            changes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        else:
            path, changes = (details or ("",))[0], event in CHANGES
        if changes and concerns(str(path)):
            left -= 1
            if not left and delay_s is not None:
                threading.Timer(delay_s, os._exit, (KILLED,)).start()
            elif not left:
                os._exit(KILLED)

    sys.addaudithook(watch)


def _run(number: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    die_at(number, lambda path: path.startswith(folder))
    function(*arguments)

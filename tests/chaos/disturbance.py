"""Disturb a command at a chosen change to its files: kill it, send it a signal, or let the disk fail.

Changes are counted from 1: files opened for writing, renamed, linked and removed, folders made, writes and `fsync`. The
count is taken in the child process (audit events, and wrappers of `io.open` and `os.fsync`); product code has no part
in it. Libraries that write by themselves (PyAV, safetensors, Arrow) are seen when they open a file through Python only;
`file size limit` and kills at random times reach them.
"""

import builtins
import contextlib
import ctypes
import errno
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANGES = frozenset({"os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"})
FREEING = frozenset({"os.remove", "os.rmdir", "os.truncate", "os.rename"})  # what a full disk still allows
SIGNALS = {"SIGKILL": signal.SIGKILL, "torn write": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
DISKS = {"full disk": errno.ENOSPC, "disk error": errno.EIO, "read-only disk": errno.EROFS}
KILLS = ("SIGKILL", "torn write", "SIGTERM", "SIGINT", "SIGKILL at a time")
DISK_FAULTS = (*DISKS, "one disk error", "file size limit", "small disk", "slow disk")  # a small disk is a real one
SLOW_S = 0.004


@dataclass(frozen=True)
class Disturbance:
    """`number`: of the change at which it begins, of "torn write" among the writes; of a limit or disk: bytes.

    `seconds`: of "at a time".
    """

    kind: str = "none"
    number: int = 0
    seconds: float = 0.0


def possible_disk_faults() -> tuple[str, ...]:
    """Without the small disk where this process must not mount one."""
    return tuple(kind for kind in DISK_FAULTS if kind != "small disk" or _has_small_disks())


def _has_small_disks() -> bool:
    """Whether this process may mount a small disk for a child: root, or root of a container that allows it."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            _mount_small_disk(Path(tempfile.gettempdir()), 4096)
            os._exit(0)
        os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _mount_small_disk(folder: Path, nbytes: int) -> None:
    """A disk of `nbytes` at `folder`, which this process alone sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = (
        libc.unshare(0x00020000)  # CLONE_NEWNS
        or libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None)  # MS_REC | MS_PRIVATE
        or libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={nbytes}".encode())
    )
    if failed:
        raise OSError(ctypes.get_errno(), "no small disk")


@contextmanager
def small_disk(folder: Path, spare: int) -> Iterator[None]:
    """Context in which a folder is a disk with `spare` bytes left. What it holds in the end is in the folder `kept`."""
    seed, kept = folder.with_name("seed"), folder.with_name("kept")
    shutil.copytree(folder, seed)
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in seed.rglob("*") if path.is_file())
    _mount_small_disk(folder, used + spare)
    shutil.copytree(seed, folder, dirs_exist_ok=True)
    os.chdir(folder)
    try:
        yield
    finally:
        shutil.copytree(folder, kept)


class Watch:
    """Counts the changes below `folders` and lets the disturbance happen; `report` gets the place and the count."""

    def __init__(self, disturbance: Disturbance, folders: list[str], report: Path) -> None:
        self.disturbance, self.folders, self.report = disturbance, folders, report
        self.count, self.writes, self.place = 0, 0, ""
        self.watching = True

    def install(self) -> None:
        """For the rest of this process."""
        if self.disturbance.kind == "file size limit":  # also holds for libraries that write by themselves
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.disturbance.number, resource.RLIM_INFINITY))
        fsync, opened = os.fsync, io.open
        watch = self

        class WatchedFile(io.FileIO):
            """Unbuffered, as seen by the disk."""

            def write(self, data: Any) -> int:
                watch.change(
                    "write", str(self.name), lambda: super(WatchedFile, self).write(bytes(data)[: len(data) // 2])
                )
                return super().write(data)

        def watched_open(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
            names = ("encoding", "errors", "newline", "closefd", "opener")
            given = dict(zip(names, rest, strict=False)) | named
            is_written = not isinstance(file, int) and set(mode) & set("wax+") and self.concerns(os.fspath(file))
            if not is_written or given.get("opener") is not None:
                return opened(file, mode, buffering, **given)
            raw = WatchedFile(file, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            if "b" in mode:
                return buffered
            how = {name: given.get(name) for name in names[:3]}
            text = io.TextIOWrapper(buffered, **how, line_buffering=buffering == 1)
            text.mode = mode  # type: ignore[misc]
            return text

        def watched_fsync(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            self.change("fsync", str(Path(f"/proc/self/fd/{number}").readlink()))
            fsync(descriptor)

        io.open = builtins.open = watched_open  # type: ignore[assignment]
        os.fsync = watched_fsync
        sys.addaudithook(self._audit)

    def concerns(self, path: Any) -> bool:
        """Whether it lies in a watched folder."""
        text = os.fsdecode(path) if isinstance(path, str | bytes) else ""
        return any(text.startswith(folder) for folder in self.folders)

    def _audit(self, event: str, details: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = details
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in CHANGES:
            path = details[0]
        else:
            return
        if self.concerns(path):
            self.change(event, os.fsdecode(path))

    def change(self, event: str, path: str, half_done: Any = None) -> None:
        """One change is about to happen."""
        if not self.watching or not self.concerns(path):
            return
        self.count += 1
        self.place = f"{event} {path}"
        kind, number = self.disturbance.kind, self.disturbance.number
        self.writes += half_done is not None
        if kind == "slow disk":
            time.sleep(SLOW_S)
        if kind == "torn write":
            is_now = half_done is not None and self.writes == number
        else:
            is_now = kind in SIGNALS and self.count == number
        if is_now:
            if kind == "torn write":
                half_done()
            self.finish()
            os.kill(os.getpid(), SIGNALS[kind])
        frees = event in FREEING and kind == "full disk"
        if (kind in DISKS and self.count >= number and not frees) or (
            kind == "one disk error" and self.count == number
        ):
            if self.count == number:
                self.finish()
            code = DISKS.get(kind, errno.EIO)
            raise OSError(code, os.strerror(code), path)

    def finish(self) -> None:
        """Write the report."""
        self.watching = False
        if self.disturbance.kind == "file size limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        self.report.write_text(f"{self.count} {self.writes}\n{self.place}\n")
        self.watching = True


def run_child(
    arguments: list[str], folders: list[str], disturbance: Disturbance, reports: str, environment: dict[str, str]
) -> None:
    """The body of a child process: `openuni ARGUMENTS`, disturbed. Its output goes to `reports`.out and .err."""
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(f"{reports}.{name}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(folders[0])
    sys.argv = ["openuni", *arguments]
    from openuni.cli.main import main
    from openuni.manifests.storage import lease

    if "CHAOS_LEASE_S" in os.environ:  # a machine that is not heard of for a second counts as dead
        lease.LEASE_S = float(os.environ["CHAOS_LEASE_S"])
        lease.BEAT_S = lease.LEASE_S / 5
    watch = Watch(disturbance, folders, Path(f"{reports}.count"))
    is_small = disturbance.kind == "small disk"
    try:
        with small_disk(Path(folders[0]), disturbance.number) if is_small else nullcontext():
            watch.install()
            main()
    finally:
        if disturbance.kind not in SIGNALS and disturbance.kind not in DISKS:
            watch.finish()
        sys.stdout.flush()
        sys.stderr.flush()

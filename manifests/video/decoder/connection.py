"""A decoder process as its parent sees it: start, messages, end."""

import contextlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.decoder import progress
from openuni.manifests.video.decoder.channel import Channel, Closed, Payload
from openuni.manifests.video.decoder.memory import Mappings, memory_file
from openuni.manifests.video.source_file import BYTE_RANGE

START_S = 120.0  # on a machine that is busy with other work
SEND_S = 60.0
MAX_WORDS_BYTES = 6000
OURS = (signal.SIGKILL, signal.SIGTERM)  # signals by which others end a process
# prefixes of variables that clients of object stores and web servers read
VARIABLES = (
    *("AWS_", "BOTO", "S3_", "FSSPEC_", "GOOGLE_", "GCS", "GCLOUD_", "CLOUDSDK_", "AZURE_", "STORAGE_EMULATOR"),
    *("HTTP_", "HTTPS_", "ALL_", "NO_", "SSL_", "CURL_", "REQUESTS_", "NETRC", "HOME", "XDG_"),
)
START = "import sys; sys.path.append(sys.argv[2]); from openuni.manifests.video.decoder.child import main; main()"


PACKED = -1  # in place of the number of the buffer that the message names


class Words(Exception):
    """What a decoder wrote before it ended, such as the traceback of a crash."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Found:
    """Arrays of an answer. See `values.Incoming`."""

    def __init__(self, mappings: Mappings, packed: int | None) -> None:
        self.mappings, self.packed = mappings, packed
        self.views: dict[int, np.ndarray] = {}

    def get(self, place: dict[str, Any]) -> np.ndarray:
        """See `values.Incoming`."""
        number, at = int(place["buffer"]), int(place["at"])
        if number == PACKED and self.packed is not None:
            number = self.packed
        if number not in self.views:
            self.views[number] = self.mappings.view(number)
        return self.views[number][at:]

    def function(self, number: int) -> Any:
        """Answers hold no functions."""
        raise ValueError(f"function {number} in an answer")


class Connection:
    """One decoder process. Its messages are those of `child.Server`."""

    def __init__(self) -> None:
        self.environment = environment()
        self.mappings = Mappings()
        with contextlib.ExitStack() as opened:
            try:
                self._start(opened)
            except OSError as error:  # too many open files, no memory, a limit: of this machine, not of a clip
                raise _cannot_start(str(error)) from error
            opened.pop_all()
        self._wait_until_ready()

    def _start(self, opened: contextlib.ExitStack) -> None:
        """Start the process. `opened`: gets what must be closed if this fails."""
        self.words = opened.enter_context(_growing_file())
        ours, theirs = socket.socketpair()
        opened.enter_context(ours)
        with theirs, os.fdopen(memory_file(progress.PAGE_BYTES), "r+b") as page:
            lifeline, self.lifeline = os.pipe()
            opened.callback(os.close, self.lifeline)
            try:
                self.page = memoryview(mmap.mmap(page.fileno(), progress.PAGE_BYTES)).cast("Q")
                fds = {"connection": theirs.fileno(), "lifeline": lifeline, "page": page.fileno()}
                options = json.dumps(fds)
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-c", START, options, _home()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self.words,
                    pass_fds=tuple(fds.values()),
                    start_new_session=True,  # a Ctrl-C at the terminal is for the parent
                )
            finally:
                os.close(lifeline)
        self.socket = ours
        self.channel = Channel(ours)

    def _wait_until_ready(self) -> None:
        self.socket.settimeout(START_S)
        try:
            self.channel.receive()
        except (Closed, TimeoutError, ValueError) as error:
            self.kill()
            words = str(self.last_words()).strip().splitlines()
            reason = words[-1] if words else f"it took longer than {START_S:g} s"
            raise _cannot_start(reason) from error
        self.socket.settimeout(SEND_S)
        self.send({"fsspec": self.environment["fsspec"]})  # may hold credentials, which arguments would show to others
        self.base_bytes = self.memory_bytes()

    def send(self, message: dict[str, Any], payload: Payload | None = None) -> None:
        """Send a message with its arrays. Raises `Closed`, `TimeoutError`, `OpenUniError`."""
        try:
            fds = payload.fds() if payload is not None else []
        except OSError as error:
            raise _cannot_start(str(error), "could not be given its input") from error
        try:
            self.channel.send(message | self.mappings.told(), fds)
        finally:
            for fd in fds:
                os.close(fd)

    def receive(self) -> tuple[dict[str, Any], _Found]:
        """The next message, and where its arrays are. Raises `Closed`, `TimeoutError`, `ValueError`."""
        message, fds = self.channel.receive()
        try:
            for number, fd in zip(message.get("new", ()), fds, strict=True):
                self.mappings.add(int(number), fd)
        finally:
            for fd in fds:
                os.close(fd)
        return message, _Found(self.mappings, message.get("packed"))

    def memory_bytes(self) -> int:
        """Memory of the process without what is shared with this one (its results); 0 where that is unknown."""
        try:
            _, resident, shared, *_ = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        except (OSError, ValueError):
            return 0
        return (int(resident) - int(shared)) * mmap.PAGESIZE

    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def kill(self) -> None:
        """End the process now."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End the process and close what belongs to it. Arrays that came from it stay valid."""
        self.kill()
        self.mappings.close()
        self._close_files()

    def forget(self) -> None:
        """After a fork, in the child: the decoder is the parent's."""
        self.process.returncode = 0  # it is not ours to wait for
        self._close_files()

    def _close_files(self) -> None:
        self.socket.close()
        self.words.close()
        with contextlib.suppress(OSError):
            os.close(self.lifeline)
        self.lifeline = -1

    def reason(self) -> tuple[str, bool]:
        """How the process ended, and whether another process ended it."""
        code = self.process.wait()
        if code >= 0:
            return f"ended with exit code {code}", False
        number = -code
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        if number == signal.SIGXCPU:
            return "used more CPU time than Limits.max_decode_s allows", False
        return (f"was killed ({name})", True) if number in OURS else (f"crashed ({name})", False)

    def clear_words(self) -> None:
        """Forget what it wrote so far."""
        self.words.truncate(0)
        self.words.seek(0)

    def last_words(self) -> Words | None:
        """The end of what it wrote to standard error; None if it wrote nothing."""
        size = os.fstat(self.words.fileno()).st_size
        data = os.pread(self.words.fileno(), MAX_WORDS_BYTES, max(0, size - MAX_WORDS_BYTES))
        return Words(data.decode("utf-8", "backslashreplace")) if data.strip(b"\0\n ") else None


def _home() -> str:
    """The folder from which this process imports openuni: that of the decoder if openuni is not installed."""
    return str(Path(str(sys.modules["openuni"].__file__)).absolute().parent.parent)


def _cannot_start(reason: str, what: str = "did not start") -> OpenUniError:
    return OpenUniError(
        f"the decoder process {what}: {reason}. Is the machine out of memory or of open files (ulimit -a)? Try "
        "again, or decode in this process with the environment variable OPENUNI_DECODER=in-process."
    )


def _growing_file() -> IO[bytes]:
    """An unnamed file, in memory where that is possible."""
    return os.fdopen(os.memfd_create("openuni"), "r+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()


def environment() -> dict[str, Any]:
    """Settings of clients for object stores and web servers in this process; JSON."""
    variables = {name: value for name, value in os.environ.items() if name.upper().startswith(VARIABLES)}
    config = getattr(sys.modules.get("fsspec.config"), "conf", {})
    return {"variables": variables, "fsspec": json.loads(json.dumps(config, default=str))}


def memory_files(source: str) -> tuple[tuple[str, bytes], ...]:
    """The file of a `memory://` URL, which exists in this process only; empty for other sources."""
    if not source.startswith("memory://"):
        return ()
    import fsspec

    path = BYTE_RANGE.sub("", source)
    try:
        return ((path, fsspec.filesystem("memory").cat_file(path)),)
    except (OSError, ValueError):
        return ()

"""An operator in a process of its own environment, as the worker sees it: start, calls, death.

Started with the environment's Python in isolated mode (`-I`): it sees the packages of its environment, of openuni only
the package `openuni` itself, and the folders from which the recipe's own modules come. It ends with its parent.
"""

import contextlib
import dataclasses
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.discovery import local_import_roots, note_import_root
from openuni.manifests.contracts.operator import Operator
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.hosting.messages import Received, error_of, pack, result_classes, unpack
from openuni.manifests.video.decoder.channel import Channel, Closed, Payload

START_S = 300.0  # imports of the operator's module, on a machine that is busy with other work
END_S = 10.0  # for it to end by itself
LOAD_S = 3600.0  # weights of hundreds of gigabytes
POLL_S = 0.5
MAX_WORDS_BYTES = 4000
MAX_LOG_BYTES = 2**20  # of what is written during one call
MAX_LINE_CHARS = 500
HIDDEN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
# only the package openuni of this installation: the folder that holds it may hold all of its packages
START = """
import importlib.util, sys
home = sys.argv[2]
spec = importlib.util.spec_from_file_location("openuni", home + "/__init__.py", submodule_search_locations=[home])
sys.modules["openuni"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from openuni.manifests.hosting.child import main
main()
"""

logger = logging.getLogger(__name__)


class WorkerDied(ClipError):
    """The process of an operator's environment died with a clip, as often as it is tried."""


class Words(Exception):
    """What the process wrote before it ended."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Died(Exception):
    """The process ended during a call."""


class HostedModel:
    """An operator in its environment, with its model loaded there. Restarted when its process dies."""

    def __init__(self, operator: Operator, python: str, device: str, timeout_s: float, tries: int) -> None:
        """`timeout_s`: for one clip; `tries`: with a clip with which the process dies."""
        self.operator, self.python, self.device = operator, python, device
        self.timeout_s, self.tries = timeout_s, tries
        self.process: _Process | None = None
        self._ready()

    def run(self, operator: Operator, clip: DecodedClip) -> Any:
        """`operator.run` there; `operator` may differ from the one it began with in the size of its batches.

        Raises as `operator.run`; `WorkerDied` if the process dies with this clip each time, `ClipError` if the time is
        up.
        """
        return self._call("run", operator, dataclasses.replace(clip, cache={}), self.tries, 1)

    def run_batch(self, operator: Operator, excerpts: Sequence[Any]) -> list[Any]:
        """`operator.run_batch` there. Several excerpts are tried once: then the worker tries parts of them."""
        tries = self.tries if len(excerpts) == 1 else 1
        found: list[Any] = self._call("run_batch", operator, list(excerpts), tries, len(excerpts))
        return found

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.close()
            self.process = None

    def _call(self, call: str, operator: Operator, argument: Any, tries: int, clips: int) -> Any:
        name, died = operator.name(), WorkerDied()
        for attempt in range(1, tries + 1):
            try:
                return self._ready().call(call, operator, argument, self.timeout_s * clips)
            except TimeoutError as error:
                words = self._drop()
                raise ClipError(
                    f"{name} took longer than {self.timeout_s:g} s for one clip; its process was ended. Raise "
                    f"timeout_s in [{operator.kind}s.{name}], or leave the clip out."
                ) from (words or error)
            except _Died as death:
                words = self._drop()
                logger.warning("%s: the process of its environment %s (attempt %d)", name, death, attempt)
                last = str(words or "").strip().splitlines()[-1:]
                text = f"the process of its environment {death}, {attempt} times with this clip"
                died = WorkerDied(f"{text} ({last[0][:MAX_LINE_CHARS]})" if last else text)
                died.__cause__ = words
        raise died

    def _ready(self) -> "_Process":
        if self.process is None:
            process = _Process(self.operator, self.python)
            try:
                process.call("load", self.operator, self.device, LOAD_S)
            except (_Died, TimeoutError) as error:
                words = process.last_words()
                process.close()
                raise _cannot_start(self.operator, self.python, f"load: it {error}", words) from words
            except BaseException:
                process.close()
                raise
            self.process = process
        return self.process

    def _drop(self) -> Words | None:
        assert self.process is not None
        words = self.process.last_words()
        self.close()
        return words


def run_operator(operator: Operator, model: Any, clip: DecodedClip) -> Any:
    """`operator.run`, in the process of its environment if it has one of its own. Raises as that."""
    return model.run(operator, clip) if isinstance(model, HostedModel) else operator.run(model, clip)


def check_import(operator: Operator, python: str) -> None:
    """Start the operator's process in an environment and end it. Raises `OpenUniError` if it cannot be imported."""
    _Process(operator, python).close()


class _Process:
    """One child process and the connection to it."""

    def __init__(self, operator: Operator, python: str) -> None:
        kind = type(operator)
        self.name, self.find_class = operator.name(), result_classes(kind)
        self.words: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed with the process
        ours, theirs = socket.socketpair()
        lifeline, self.lifeline = os.pipe()
        if not kind.__module__.startswith("openuni.") and kind.__module__ in sys.modules:
            note_import_root(kind.__module__)  # a worker has it from its driver
        given = {
            "connection": theirs.fileno(),
            "lifeline": lifeline,
            "module": kind.__module__,
            "class": kind.__qualname__,
            "roots": local_import_roots(),
        }
        home = str(Path(str(sys.modules["openuni"].__file__)).absolute().parent)
        try:
            self.process = subprocess.Popen(
                [python, "-I", "-u", "-c", START, json.dumps(given), home],
                stdin=subprocess.DEVNULL,
                stdout=self.words,
                stderr=self.words,
                pass_fds=(theirs.fileno(), lifeline),
                env={name: value for name, value in os.environ.items() if name not in HIDDEN},
                start_new_session=True,  # a Ctrl-C at the terminal is for the parent
            )
        except OSError as error:
            ours.close()
            os.close(self.lifeline)
            self.words.close()
            raise OpenUniError(
                f"{self.name}: python = {python}: {error.strerror or error}. Give the path of the Python of an "
                "existing environment, such as ENVIRONMENT/bin/python."
            ) from error
        finally:
            theirs.close()
            os.close(lifeline)
        self.channel = Channel(ours)
        self._wait_until_ready(operator, python)

    def _wait_until_ready(self, operator: Operator, python: str) -> None:
        try:
            message, _ = self._receive(START_S)
        except (_Died, TimeoutError) as error:
            words = self.last_words()
            self.close()
            raise _cannot_start(operator, python, f"it {error}", words) from words
        if "error" in message:
            reason = error_of(message["error"])
            self.close()
            raise OpenUniError(
                f"{self.name}: its module {type(operator).__module__} cannot be imported by {python}: "
                f"{message['error']['class']}: {reason}. Install what is missing there. What only one "
                "of the two environments has must be imported inside of functions."
            ) from reason

    def call(self, call: str, operator: Operator, argument: Any, timeout_s: float) -> Any:
        """A call of the operator. Raises its error, `_Died`, `TimeoutError`."""
        payload, options = Payload(), Payload()
        given = {field.name: getattr(operator, field.name) for field in dataclasses.fields(operator)}
        message = {"call": call, "options": pack(given, options), "argument": pack(argument, payload)}
        fds = payload.fds()
        try:
            self.channel.send(message, fds)
        except (Closed, OSError) as error:
            raise self._death() from error
        finally:
            for fd in fds:
                os.close(fd)
        answer, found = self._receive(timeout_s)
        self._log()
        if "error" in answer:
            raise error_of(answer["error"])
        try:
            return unpack(answer["value"], found, self.find_class)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ClipError(f"{self.name} gave a result that cannot be read: {error}") from error

    def _receive(self, timeout_s: float) -> tuple[dict[str, Any], Received]:
        until = time.monotonic() + timeout_s
        while not select.select([self.channel.connection], [], [], POLL_S)[0]:
            if time.monotonic() > until:
                self._kill()
                raise TimeoutError(f"took longer than {timeout_s:g} s")
        try:
            message, fds = self.channel.receive()
        except (Closed, OSError, ValueError) as error:
            raise self._death() from error
        return message, Received(fds)

    def _death(self) -> _Died:
        try:
            code = self.process.wait(END_S)
        except subprocess.TimeoutExpired:  # it has closed the connection, or sent what is no message
            code = -signal.SIGKILL
        self._kill()
        if code >= 0:
            return _Died(f"ended with exit code {code}")
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return _Died(f"was killed ({name})")

    def _kill(self) -> None:
        """End the process and what is left of its group, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # it is the leader of a group of its own
        self.process.wait()

    def _log(self) -> None:
        """Hand on what the process has written, line by line."""
        size = os.fstat(self.words.fileno()).st_size
        if not size:
            return
        text = os.pread(self.words.fileno(), MAX_LOG_BYTES, max(0, size - MAX_LOG_BYTES))
        self.words.truncate(0)
        self.words.seek(0)  # also of the process: it is the same file
        for line in text.decode("utf-8", "backslashreplace").splitlines():
            level = logging.getLevelNamesMapping().get(line.partition(" ")[0], logging.INFO)
            logger.log(level, "%s: %s", self.name, line[:MAX_LINE_CHARS])

    def last_words(self) -> Words | None:
        """The end of what it wrote; None if it wrote nothing."""
        size = os.fstat(self.words.fileno()).st_size
        data = os.pread(self.words.fileno(), MAX_WORDS_BYTES, max(0, size - MAX_WORDS_BYTES))
        return Words(data.decode("utf-8", "backslashreplace")) if data.strip(b"\0\n ") else None

    def close(self) -> None:
        """End the process, with those that it has started, and close what belongs to it."""
        self.channel.connection.close()  # then it ends by itself, and engines in it end theirs
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        self._kill()
        self.words.close()
        with contextlib.suppress(OSError):
            os.close(self.lifeline)


def _cannot_start(operator: Operator, python: str, reason: str, words: Words | None) -> OpenUniError:
    last = str(words or "").strip().splitlines()[-1:]
    return OpenUniError(
        f"{operator.name()}: its process in the environment of {python} did not start: {reason}"
        f"{': ' + last[0][:MAX_LINE_CHARS] if last else ''}. It must have Python 3.11 or later, numpy and "
        "annotated-types. Check it with: openuni doctor RECIPE"
    )

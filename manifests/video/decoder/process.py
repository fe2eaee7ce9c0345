"""Running functions in a decoder process: a child that is started when it is first needed, watched, and replaced.

FFmpeg, OpenEXR, OpenCV and Pillow are native code that reads untrusted data. It may crash, hang, or allocate without
bound; in a process of its own this fails one clip. `isolated` marks the functions that run there; `child` lists them.

A process that uses decoders has one for each of its threads that decode at the same time, and keeps them. A decoder
ends when its parent ends. It gets the environment of the parent as it is at the request: it is replaced when variables
change that clients of object stores and web servers read. Files of `memory://` are read by the parent and handed over.

`OPENUNI_DECODER=in-process` calls everything in this process, for debuggers and profilers.
"""

import atexit
import functools
import inspect
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from openuni.manifests.errors import ClipError, MissingRequirement, OpenUniError, Unavailable
from openuni.manifests.video import video_errors
from openuni.manifests.video.decoder import connection, progress, values
from openuni.manifests.video.decoder.channel import Closed, Payload
from openuni.manifests.video.decoder.connection import Connection, environment
from openuni.manifests.video.decoder.limits import Limits

MODE_VARIABLE = "OPENUNI_DECODER"
ERRORS: dict[str, type[Exception]] = {  # that a decoder can raise here; others become a VideoError or their base
    cls.__name__: cls
    for cls in (
        *(one for one in vars(video_errors).values() if inspect.isclass(one) and issubclass(one, Exception)),
        *(ClipError, MissingRequirement, OpenUniError, Unavailable),
        *(TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, NotImplementedError),
        *(AssertionError, ArithmeticError, OverflowError, ZeroDivisionError, UnicodeError),
        *(OSError, FileNotFoundError, PermissionError, IsADirectoryError, TimeoutError, ConnectionError),
        Exception,
    )
}
MAX_TRACE_CHARS = 8000
TOO_MUCH_MEMORY = (
    "{where}: the decoder needed more than {gigabytes:.3g} GB of memory. Re-encode it, or raise [work] "
    "decoder_memory_gb (Limits.max_decoder_bytes)."
)
NO_MEMORY = (  # FFmpeg gives the same error for both
    "{where}: the decoder could not allocate memory: the file has over 1000 streams, or needs more than "
    "{gigabytes:.3g} GB. Remux it, or raise [work] decoder_memory_gb (Limits.max_decoder_bytes)."
)
STREAM_CREDIT = 2  # messages with items that a generator may be ahead
MAX_IDLE = max(2, os.cpu_count() or 1)
POLL_S = 0.05  # how often a decoder is looked at
GRACE_S = 10.0  # for a step with a time limit of its own to end by itself
P = ParamSpec("P")
R = TypeVar("R")

_serves_here = False  # this process is a decoder


class DecoderTraceback(Exception):
    """The traceback of an error in the decoder process, as the cause of the error raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Killed(Exception):
    """Somebody else ended the decoder, such as the kernel when memory was short."""


class _Request(NamedTuple):
    """One call of a function in a decoder."""

    call: str
    arguments: tuple[Any, ...]
    where: str  # what is decoded, for messages
    limits: Limits
    files: tuple[tuple[str, bytes], ...]  # of `memory://`

    def message(self, payload: Payload, *, stream: bool) -> dict[str, Any]:
        cpu_s = self.limits.max_decode_s * (os.cpu_count() or 1)
        return {
            "call": self.call,
            "arguments": values.encode(self.arguments, payload),
            "files": values.encode(self.files, payload),
            "where": self.where,
            "memory_bytes": self.limits.max_decoder_bytes,
            "cpu_s": min(cpu_s, 1e9),
            "folder": _current_folder(),
            "stream": stream,
            "credit": STREAM_CREDIT,
        }


def _current_folder() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # it was removed: absolute paths do not need it
        return "/"


class _Watch:
    """Whether a request still makes progress. Time that the parent takes itself does not count."""

    def __init__(self, one: Connection, request: _Request) -> None:
        self.one, self.limits, self.where = one, request.limits, request.where
        self.waited_s = 0.0

    def wait(self) -> None:
        """Wait for the next message. Ends the decoder and raises `LimitExceeded` if it takes too long."""
        steps, since, last = self.one.page[progress.STEPS], time.monotonic(), time.monotonic()
        while not select.select([self.one.socket], [], [], POLL_S)[0]:
            now = time.monotonic()
            if self.one.memory_bytes() - self.one.base_bytes > self.limits.max_decoder_bytes:
                self.one.kill()
                gigabytes = self.limits.max_decoder_bytes / 1e9
                raise video_errors.LimitExceeded(TOO_MUCH_MEMORY.format(where=self.where, gigabytes=gigabytes))
            self.waited_s += now - last
            last = now
            if self.one.page[progress.STEPS] != steps:
                steps, since = self.one.page[progress.STEPS], now
            allowed_s = self._allowed_s()
            if now - since > allowed_s:
                self.one.kill()
                text = f"{self.where}: no packet or frame for {allowed_s:g} s; the decoder was stopped"
                raise video_errors.LimitExceeded(
                    f"{text}. Re-encode it, or raise [work] decoder_timeout_s (Limits.max_stall_s)."
                ) from self.one.last_words()
            self._check_total()
        self.waited_s += time.monotonic() - last
        self._check_total()

    def _check_total(self) -> None:
        if self.waited_s > self.limits.max_decode_s:
            self.one.kill()
            text = f"{self.where}: decoding took longer than {self.limits.max_decode_s:g} s and was stopped"
            raise video_errors.LimitExceeded(f"{text}. Cut it, or raise Limits.max_decode_s.")

    def _allowed_s(self) -> float:
        own_limit_s = min(self.one.page[progress.ALLOWED_MS] / 1000, self.limits.max_probe_s)
        return max(self.limits.max_stall_s, own_limit_s + GRACE_S if own_limit_s else 0.0)


class Decoder:
    """One decoder process, used for one request at a time."""

    def __init__(self) -> None:
        self.connection = Connection()
        self.is_idle = True

    def call(self, request: _Request) -> Any:
        """Call a function. Raises its error, or a `VideoError` if the decoder does not survive."""
        with self._requested(request, stream=False) as (watch, payload):
            while True:
                kind, value = self._next(watch)
                if kind == "value":
                    return value
                self._answer(value, payload, watch)

    def stream(self, request: _Request) -> Iterator[Any]:
        """Call a generator function and yield its items; the decoder is a few items ahead."""
        with self._requested(request, stream=True) as (watch, payload):
            try:
                while True:
                    kind, value = self._next(watch)
                    if kind == "end":
                        return
                    if kind == "ask":
                        self._answer(value, payload, watch)
                        continue
                    value.reverse()
                    while value:
                        yield value.pop()  # no reference stays, so that its memory can be used again
                    self.connection.send({"more": 1})
            except GeneratorExit:
                self._abandon(watch)
                raise

    @contextmanager
    def _requested(self, request: _Request, *, stream: bool) -> Iterator[tuple[_Watch, Payload]]:
        one, payload = self.connection, Payload()
        decodes, fallbacks = one.page[progress.DECODES], one.page[progress.FALLBACKS]
        message = request.message(payload, stream=stream)
        self.is_idle = False
        watch = _Watch(one, request)
        try:
            one.clear_words()
            one.send(message, payload)
            yield watch, payload
        except Closed as error:
            raise self._death(request) from (one.last_words() or error)
        except TimeoutError as error:
            if self.is_idle:
                raise  # of the function
            one.kill()
            text = (
                f"{request.where}: the decoder stopped reading its requests and was ended. Rerun with --retry-failed."
            )
            raise video_errors.LimitExceeded(text) from error
        finally:
            progress.count_decode((one.page[progress.DECODES] - decodes) & 0xFFFFFFFF)
            progress.count_fallback((one.page[progress.FALLBACKS] - fallbacks) & 0xFFFFFFFF)
            progress.count_seconds(watch.waited_s)

    def _next(self, watch: _Watch) -> tuple[str, Any]:
        """Kind and value of the next message of a request. Raises the error that it holds."""
        watch.wait()
        error: Exception | None = None
        kind, value = "", None
        try:
            message, found = self.connection.receive()
            if "error" in message:
                error = _error_of(message["error"])
            else:
                kind = next(iter(message))
                value = values.decode(message[kind], found)
            is_last = error is not None or kind in ("value", "end")
            self.is_idle = is_last and not message.get("retire")
        except (OSError, LookupError, TypeError, ValueError, ArithmeticError) as fault:
            self.connection.kill()
            raise video_errors.VideoError(f"{watch.where}: the decoder gave an invalid answer: {fault}") from fault
        if error is not None:
            raise error
        return kind, value

    def _answer(self, asked: tuple[int, tuple[Any, ...]], payload: Payload, watch: _Watch) -> None:
        """Call the function that the decoder asks for. Its error ends the request."""
        number, arguments = asked
        reply = Payload()
        try:
            answer = values.encode(payload.functions[number](*arguments), reply)
        except BaseException:
            self._abandon(watch)
            raise
        self.connection.send({"answer": answer}, reply)

    def _abandon(self, watch: _Watch) -> None:
        """Let the decoder end the request; if it cannot, it is not used again."""
        try:
            self.connection.send({"abandon": True})
            while self._next(watch)[0] != "end":
                pass
        except (ClipError, OSError, Closed):
            self.is_idle = self.is_idle and self.connection.is_alive()

    def _death(self, request: _Request) -> Exception:
        """The error for a decoder that ended by itself."""
        reason, is_killed = self.connection.reason()
        if is_killed:
            return _Killed(reason)
        text = f"{request.where}: the decoder {reason}. The file is damaged or hostile: re-encode it, or leave it out."
        return video_errors.VideoError(text)


class _Pool:
    """The decoders of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[Decoder] = []
        self.all: weakref.WeakSet[Decoder] = weakref.WeakSet()

    @contextmanager
    def decoder(self) -> Iterator[Decoder]:
        """A decoder for one request; a new one if all are in use."""
        one = self._take() or Decoder()
        self.all.add(one)
        try:
            yield one
        finally:
            with self.lock:
                is_kept = one.is_idle and len(self.idle) < MAX_IDLE
                if is_kept:
                    self.idle.append(one)
            if not is_kept:
                one.connection.close()

    def _take(self) -> Decoder | None:
        now = environment()
        while True:
            with self.lock:
                one = self.idle.pop() if self.idle else None
            if one is None or (one.connection.environment == now and one.connection.is_alive()):
                return one
            one.connection.close()

    def close(self) -> None:
        """End all idle decoders."""
        with self.lock:
            idle, self.idle = self.idle, []
        for one in idle:
            one.connection.close()

    def forget(self) -> None:
        """After a fork: these are the decoders of the parent."""
        for one in list(self.all):
            one.connection.forget()
        self.__init__()  # type: ignore[misc]  # the lock may have been held by another thread


_pool = _Pool()
atexit.register(_pool.close)
os.register_at_fork(after_in_child=_pool.forget)


def serve_here() -> None:
    """This process is a decoder: isolated functions run in it."""
    global _serves_here
    _serves_here = True


def close_decoders() -> None:
    """End the decoders of this process that are not in use; new ones start when they are needed."""
    _pool.close()


def isolated(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: run a function, or a generator function, in a decoder process. It must be in `child.FUNCTIONS`.

    Arguments and results must be values that `values.encode` takes; functions as arguments are called in this process.
    The arguments `limits` (else the default) and `clip`, `source` or `where` are limits and name of what is decoded.
    A generator runs a few items ahead; it must not change an array that it has yielded.
    """
    signature = inspect.signature(function)

    def request(*args: Any, **kwargs: Any) -> _Request:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        named = given["clip"].source if "clip" in given else given.get("source", given.get("where", "the map"))
        files = connection.memory_files(named) if given.get("data") is None else ()
        return _Request(function.__name__, bound.args, str(named), given.get("limits") or Limits(), files)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Any:
        if _runs_here():
            return function(*args, **kwargs)
        return _call(request(*args, **kwargs))

    @functools.wraps(function)
    def generate(*args: P.args, **kwargs: P.kwargs) -> Any:
        if _runs_here():
            yield from function(*args, **kwargs)  # type: ignore[misc]
            return
        with _pool.decoder() as decoder:
            try:
                yield from decoder.stream(request(*args, **kwargs))
            except _Killed as killed:
                raise _killed_error(decoder, request(*args, **kwargs).where, killed) from killed

    return generate if inspect.isgeneratorfunction(function) else call


def _call(request: _Request) -> Any:
    for attempt in (1, 2):
        with _pool.decoder() as decoder:
            try:
                return decoder.call(request)
            except _Killed as killed:
                if attempt == 2:
                    raise _killed_error(decoder, request.where, killed) from killed
    raise AssertionError("unreachable")


def _killed_error(decoder: Decoder, where: str, killed: _Killed) -> Exception:
    return video_errors.VideoError(
        f"{where}: the decoder {killed}, perhaps because the machine ran out of memory. Use fewer --workers or a "
        "smaller [work] decoder_memory_gb, and rerun with --retry-failed."
    )


def _runs_here() -> bool:
    mode = os.environ.get(MODE_VARIABLE, "")
    if mode not in ("", "in-process"):
        raise OpenUniError(f'{MODE_VARIABLE} = "{mode}". Allowed: in-process, or not set.')
    return _serves_here or mode == "in-process"


def _error_of(described: dict[str, Any]) -> Exception:
    """The error that a decoder describes; of a class of the fixed table."""
    cls = ERRORS[described["type"]]
    text, arguments = str(described["text"]), described["arguments"]
    error = video_errors.VideoError(text) if cls is Exception else cls(*(arguments or [text]))
    error.__cause__ = DecoderTraceback(str(described["traceback"]))
    return error

"""Faults of an object store, drawn with a seed: errors, lost and truncated answers, slowness."""

import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.wsgi import get_input_stream

from tests.s3_server import Application

ERRORS = {
    "403": ("403 Forbidden", "AccessDenied"),
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Service Unavailable", "SlowDown"),
}
KINDS = (*ERRORS, "slow", "truncated", "lost answer", "no answer")
REMOTE_KILLS = ("SIGKILL before a request", "SIGKILL after a request")
KILLED_BEFORE = ("SIGKILL before a request", "machine returns", "machine is suspended")
SLOW_S = 0.2


def consume(environ: dict[str, Any]) -> None:
    """Read the request to its end, as the server would: clients do not expect an answer before."""
    get_input_stream(environ).read()


class StorageFaults:
    """Stands between clients and the server. `share`: of the requests, how many meet a fault while `on` is true.

    A fault that hits one request may hit its retries too: `burst` is how many requests in a row, so that clients
    that retry give up now and then.
    """

    def __init__(self, seed: int, share: float = 0.01, burst: int = 4, kinds: tuple[str, ...] = KINDS) -> None:
        self.random, self.share, self.burst, self.kinds = random.Random(seed), share, burst, kinds
        self.on = False
        self.seen: Counter[str] = Counter()
        self.left: tuple[str, int] = ("", 0)
        self.guard = threading.Lock()

    def __call__(self, app: Application) -> Application:
        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            kind = self._next(environ) if self.on else ""
            if kind in ERRORS:
                status, code = ERRORS[kind]
                consume(environ)
                body = f"<Error><Code>{code}</Code><Message>of the chaos test</Message></Error>".encode()
                body = b"" if environ["REQUEST_METHOD"] == "HEAD" else body
                start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
                return [body]
            if kind in ("slow", *KILLED_BEFORE):
                self._before(kind)
            if kind == "no answer":
                return self._hang_up(environ)
            if kind not in ("truncated", "lost answer", "SIGKILL after a request"):
                return app(environ, start_response)
            told: list[Any] = []
            body = b"".join(app(environ, lambda *args, **_: told.extend(args)))
            if kind == "SIGKILL after a request":
                self._before(kind)
            if kind != "truncated":  # the server has done what was asked
                return self._hang_up(environ)
            start_response(*told)
            return [body[: len(body) // 2]]

        return answer

    def _before(self, kind: str) -> None:
        time.sleep(SLOW_S)

    def _next(self, environ: dict[str, Any]) -> str:
        with self.guard:
            kind, left = self.left
            if not left and self.random.random() < self.share:
                kind, left = self.random.choice(self.kinds), self.random.randint(1, self.burst)
            if not left:
                return ""
            self.left = (kind, left - 1)
            self.seen[kind] += 1
            return kind

    @staticmethod
    def _hang_up(environ: dict[str, Any]) -> Iterable[bytes]:
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError


class FaultAt(StorageFaults):
    """One fault at a chosen request: `burst` requests in a row from the `number`-th, counted from `arm`."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.count, self.place = 0, ""
        self.arm("none", 0, 0)

    def arm(self, kind: str, number: int, burst: int) -> None:
        """Count from here. For kinds that kill, `target` is to be called with the process."""
        self.kind, self.number, self.burst, self.count, self.place = kind, number, burst, 0, ""
        self.pid, self.known, self.hit = 0, threading.Event(), threading.Event()
        self.on = True

    def target(self, pid: int) -> None:
        """The process to kill."""
        self.pid = pid
        self.known.set()

    def _before(self, kind: str) -> None:
        if kind == "slow":
            super()._before(kind)
            return
        assert self.known.wait(30)
        os.kill(self.pid, signal.SIGSTOP if kind == "machine is suspended" else signal.SIGKILL)
        self.hit.set()

    def wait_for_hit(self, process: Any) -> None:
        """Wait until the process was killed or stopped, or has ended."""
        while not self.hit.wait(0.02) and process.is_alive():
            pass

    def _next(self, environ: dict[str, Any]) -> str:
        with self.guard:
            self.count += 1
            is_hit = self.number <= self.count < self.number + self.burst
            if is_hit and not self.place:
                self.place = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
            return self.kind if is_hit else ""

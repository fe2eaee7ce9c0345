"""A web server on loopback that serves bytes, with ranges or without, and can be slow, overloaded or endless."""

import hashlib
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Served:
    """What is served, and what was asked for."""

    files: dict[str, bytes]
    url: str = ""
    ranges: bool = True
    cut_at: int | None = None  # bytes after which the next answer ends
    statuses: list[int] = field(default_factory=list)  # of the next answers; then the files
    headers: dict[str, str] = field(default_factory=dict)  # more headers of every answer
    wait_s: float = 0.0  # before the answer begins
    header_s: float = 0.0  # between the bytes of a header line that is sent first
    body_s: float = 0.0  # between pieces of 100 bytes of a body
    endless: bool = False  # bodies never end, and their length is not told
    sent: int = 0  # bytes of bodies
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range


class Handler(BaseHTTPRequestHandler):
    served: Served

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        served, path, wanted = self.served, urlsplit(self.path).path, self.headers.get("Range", "")
        served.asked.append((self.command, path, wanted))
        time.sleep(served.wait_s)
        if served.statuses:
            self.head(served.statuses.pop(0), {"Content-Length": "0"})
            self.end_headers()
        elif path not in served.files:
            self.send_error(404)
        else:
            self.send_file(path, wanted if served.ranges else "", with_body)

    def send_file(self, path: str, wanted: str, with_body: bool) -> None:
        served, data = self.served, self.served.files[path]
        asked = re.match(r"bytes=(\d+)-(\d*)$", wanted)
        first = int(asked[1]) if asked else 0
        end = min(len(data), int(asked[2]) + 1) if asked and asked[2] else len(data)
        if asked and first >= len(data):
            self.send_error(416)
            return
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "0" * 40}
        headers |= {"Content-Range": f"bytes {first}-{end - 1}/{len(data)}"} if asked else {}
        headers |= {} if served.endless else {"Content-Length": str(end - first)}
        headers |= {"Content-Type": "application/json"} if path.endswith(".json") or "/api/" in path else {}
        self.head(206 if asked else 200, headers)
        with suppress(OSError):  # the other side has had enough
            self.send_slow_header()
            self.end_headers()
            if with_body:
                cut, served.cut_at = served.cut_at, None
                self.send_body(data[first : min(end, cut) if cut is not None else end])

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | self.served.headers).items():
            self.send_header(name, value)

    def send_slow_header(self) -> None:
        if self.served.header_s:
            self.flush_headers()
            for letter in b"X-Slow: " + 1000 * b"x" + b"\r\n":
                self.wfile.write(bytes([letter]))
                time.sleep(self.served.header_s)

    def send_body(self, data: bytes) -> None:
        served = self.served
        pieces = [data] if not served.body_s else [data[at : at + 100] for at in range(0, len(data), 100)]
        for piece in itertools.chain(pieces, itertools.repeat(bytes(2**16)) if served.endless else ()):
            self.wfile.write(piece)
            served.sent += len(piece)
            time.sleep(served.body_s)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def file_server(files: dict[str, bytes], handler: type[Handler] = Handler) -> Iterator[Served]:
    """`files`: path with its leading slash -> bytes."""
    served = Served(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"served": served}))
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def hub_files(name: str, files: dict[str, bytes]) -> dict[str, bytes]:
    """The answers of a Hugging Face hub that holds one repository."""
    info = {"id": name, "sha": "0" * 40, "siblings": [{"rfilename": file} for file in files], "private": False}
    tree = [{"type": "file", "path": file, "size": len(data), "oid": "1" * 40} for file, data in files.items()]
    found = {f"/api/models/{name}/revision/{revision}": info for revision in ("main", "0" * 40)}
    found |= {f"/api/models/{name}/tree/{'0' * 40}": tree}
    answers = {path: json.dumps(answer).encode() for path, answer in found.items()}
    return answers | {f"/{name}/resolve/{'0' * 40}/{file}": data for file, data in files.items()}

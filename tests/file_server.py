"""A web server on loopback that serves bytes, with ranges or without, and can cut a connection short."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range


@contextmanager
def file_server(files: dict[str, bytes]) -> Iterator[Served]:
    """`files`: path with its leading slash -> bytes."""
    served = Served(files)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            path, wanted = urlsplit(self.path).path, self.headers.get("Range", "")
            served.asked.append((self.command, path, wanted))
            if path not in served.files:
                self.send_error(404)
                return
            data = served.files[path]
            first = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted and served.ranges else 0
            if first >= len(data) > 0:
                self.send_error(416)
                return
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(data) - first))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            if path.endswith(".json") or "/api/" in path:
                self.send_header("Content-Type", "application/json")
            self.end_headers()
            if with_body:
                end, served.cut_at = served.cut_at, None
                self.wfile.write(data[first:end])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
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

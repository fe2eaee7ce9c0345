"""A Hugging Face hub on loopback that takes the commits of `huggingface_hub` and serves what they hold."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.file_server import Handler, Served, file_server, hub_files

REVISION = "0" * 40


@dataclass
class Hub:
    """What clients have done."""

    served: Served
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)  # files by repository
    private: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    denied: bool = False  # all writes


class _HubHandler(Handler):
    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        if self.hub.denied:
            self.send_error(403)
            return
        answer = json.dumps(self.answered(self.path.partition("?")[0], body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def answered(self, path: str, body: bytes) -> dict[str, Any]:
        hub = self.hub
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            hub.repositories.setdefault(name, {})
            hub.private |= {name} if asked.get("private") or asked.get("visibility") == "private" else set()
            return {"url": f"{hub.served.url}/{name}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        name, _, action = path.removeprefix("/api/models/").partition("/preupload/")
        if action:
            files = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        name, _, revision = name.partition("/commit/")
        assert revision == "main", path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                assert line["value"]["encoding"] == "base64"
                hub.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        hub.served.files |= hub_files(name, hub.repositories[name])
        return {"success": True, "commitOid": REVISION, "commitUrl": f"{hub.served.url}/{name}/commit/{REVISION}"}


@contextmanager
def hub_server(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A hub that `huggingface_hub` in this process uses, with an empty cache."""
    from huggingface_hub import constants

    hub = Hub(Served({}))
    with file_server({}, type("Handler", (_HubHandler,), {"hub": hub})) as hub.served:
        monkeypatch.setattr(constants, "ENDPOINT", hub.served.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub

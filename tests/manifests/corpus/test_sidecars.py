"""The files beside a video, wherever it lies: found by the path of its address, never by the query."""

import http.server
import threading
from functools import partial
from urllib.parse import urlsplit

import pytest

import openuni
from openuni.annotators.supplied import Supplied
from openuni.console.progress import Reporter
from openuni.manifests.corpus.sidecars import read_bounded, sidecar_path
from openuni.manifests.errors import ClipError
from openuni.world.write import write_clips as write_world
from tests.raw_clips import write_clips

SIGNED = "X-Amz-Credential=AKIA/20261128/eu-west-1/s3&X-Amz-Signature=0a.1b"
WORLD_CLIP = "scene.mp4"


@pytest.mark.parametrize(
    ("source", "sidecar"),
    [
        ("a/b.mp4", "a/b.txt"),
        ("/raw/b.v2.mp4", "/raw/b.v2.txt"),
        ("/raw/no suffix", "/raw/no suffix.txt"),
        ("/raw/take #1?v=1.2.mp4", "/raw/take #1?v=1.2.txt"),  # a local name
        ("http://host/small.mp4?v=1.2", "http://host/small.txt"),
        (f"https://host/a/b.mp4?{SIGNED}", "https://host/a/b.txt"),
        ("https://host/film.mp4#t=1.5", "https://host/film.txt"),
        ("s3://bucket/take #1.mp4", "s3://bucket/take #1.txt"),  # object stores allow it in names
        ("s3://bucket/b.mp4?versionId=a.b", "s3://bucket/b.txt"),
        ("https://host/watch?v=1.mp4", None),
        ("https://host", None),
        ("https://host/clip.txt", None),  # the video itself
        ("/data/shard.tar#bytes=512-900", None),  # one of many videos in the file
    ],
)
def test_names(source, sidecar):
    assert sidecar_path(source, ".txt") == sidecar


class _Handler(http.server.SimpleHTTPRequestHandler):
    """`signed/` needs a signature that is valid for videos only; `pages/` answers everything it lacks with a page."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = urlsplit(self.path)
        if parts.path.startswith("/busy/") and not parts.path.endswith(".mp4"):
            self.send_error(503)
        elif parts.path.startswith("/signed/") and not (parts.path.endswith(".mp4") and parts.query == SIGNED):
            self.send_error(403)
        elif parts.path.startswith("/pages/") and not parts.path.endswith(".mp4"):
            page = b"<!DOCTYPE html><p>nothing here"
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)
        else:
            super().do_GET() if self.command == "GET" else super().do_HEAD()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    for name in ("open", "signed", "pages", "busy"):
        write_clips(folder / name, 1)
    (video,) = write_world(folder / "world", range(1), frames=5, height_px=48, width_px=64, modalities=["depth"])
    video.rename(video.with_name(WORLD_CLIP))
    video.with_suffix(".json").rename(video.with_name("scene.json"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_captions_of_addresses_with_queries(served, tmp_path):
    sources = {
        f"{served}/open/clip-000.mp4?v=1.2": "texture 0 pans by 1 px",
        f"{served}/open/clip-000.mp4?token=a/b.txt": "texture 0 pans by 1 px",
        f"{served}/signed/clip-000.mp4?{SIGNED}": None,
        f"{served}/pages/clip-000.mp4?x=.": None,
    }
    corpus = openuni.run({}, list(sources), out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    rows = {row["source"]: row for row in corpus.table("clips").to_pylist()}
    assert {source: (row["caption"], row["error"]) for source, row in rows.items()} == {
        source: (caption, None) for source, caption in sources.items()
    }


def test_a_server_that_fails_is_no_missing_caption(served):
    with pytest.raises(ClipError, match=r"clip-000\.txt .*503"):
        read_bounded(f"{served}/busy/clip-000.txt", 1000)
    assert read_bounded(f"{served}/open/missing.txt", 1000) is None


def test_maps_of_an_address_with_a_query(served, tmp_path):
    corpus = openuni.run(
        {"annotators": {"supplied": {}}, "work": {"short_side_px": 0}},
        f"{served}/world/{WORLD_CLIP}?X-Amz-Credential=A/b.c/d&v=1.2",
        out=tmp_path / "corpus",
        reporter=Reporter(quiet=True),
    )
    assert corpus.summary().ok == 1 and corpus[0].depth.shape == (5, 48, 64, 1)


def test_supplied_maps_need_a_name():
    from tests.annotators.test_supplied import clip_beside

    clip = clip_beside("https://host/watch?v=1", name="x/y")
    with pytest.raises(ClipError, match="a sidecar file cannot be named for this source"):
        Supplied().run(None, clip)

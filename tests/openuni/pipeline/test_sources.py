"""What users name becomes sources: files, folders, patterns, lists, web addresses."""

import http.server
import threading
from functools import partial
from pathlib import Path

import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.sources import find_sources
from tests.raw_clips import write_clips


@pytest.fixture
def raw(tmp_path, monkeypatch):
    folder = tmp_path / "raw"
    (folder / "deep" / "er").mkdir(parents=True)
    for name in ("b.mp4", "a.MKV", "deep/er/c.webm", "notes.txt", ".hidden.mp4", "deep/photo.jpg"):
        (folder / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return folder


def names(found: list[str], folder: Path) -> list[str]:
    return [Path(source).relative_to(folder).as_posix() for source in found]


def test_a_folder_is_searched_through(raw):
    assert names(find_sources("raw"), raw) == ["a.MKV", "b.mp4", "deep/er/c.webm"]


def test_a_pattern_is_expanded_and_nothing_comes_twice(raw):
    assert names(find_sources(["raw/*.mp4", "raw/b.mp4", "raw/**/*.webm"]), raw) == ["b.mp4", "deep/er/c.webm"]


def test_any_file_may_be_named(raw):
    assert names(find_sources("raw/deep/photo.jpg"), raw) == ["deep/photo.jpg"]


def test_a_list_is_relative_to_itself(raw):
    (raw / "list.txt").write_text("b.mp4   # the second\n\n# nothing\ndeep\nhttps://example.org/film.mp4#t=10\n")
    assert find_sources("raw/list.txt") == [
        str(raw / "b.mp4"),
        str(raw / "deep/er/c.webm"),
        "https://example.org/film.mp4#t=10",
    ]


def test_links_lead_to_one_source(raw):
    (raw / "link.mp4").symlink_to(raw / "b.mp4")
    (raw / "broken.mp4").symlink_to(raw / "gone.mp4")
    (raw.parent / "other").symlink_to(raw / "deep", target_is_directory=True)
    (raw.parent / "list.txt").write_text("raw/deep/../link.mp4\nother/er/c.webm\nraw/b.mp4\n")
    (raw / "folder.mp4").symlink_to(raw / "deep", target_is_directory=True)
    assert names(find_sources("raw"), raw) == ["a.MKV", "b.mp4", "broken.mp4", "deep/er/c.webm"]
    assert names(find_sources("list.txt"), raw) == ["b.mp4", "deep/er/c.webm"]
    assert names(find_sources("other/er/c.webm"), raw) == ["deep/er/c.webm"]


def test_addresses_of_videos_in_a_list_are_taken_at_their_word(raw):
    addresses = [f"s3://no-such-bucket/{number}.mp4" for number in range(3)]
    (raw.parent / "list.txt").write_text("\n".join(addresses))
    assert find_sources("list.txt") == addresses


def test_an_empty_list_is_an_error(raw):
    (raw / "list.txt").write_text("# all taken out\n")
    with pytest.raises(OpenUniError, match=r'list "raw/list.txt" contains no video'):
        find_sources("raw/list.txt")


@pytest.fixture
def web(tmp_path):
    """A web server on loopback that serves a folder."""
    write_clips(tmp_path / "served", 1)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_web_addresses_are_read(web, tmp_path):
    recipe = {"filters": {"luminance": {}}, "annotators": {"dis": {"preset": "ultrafast"}}}
    sources = [f"{web}/clip-000.mp4", f"{web}/missing.mp4"]
    corpus = openuni.run(recipe, sources, out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    assert corpus.summary().ok == 1
    assert corpus[0].flow.shape == (6, 48, 64, 2)
    assert corpus[0].caption == "texture 0 pans by 1 px"
    (failure,) = corpus.summary().failed
    assert failure.operator == "ingest"


def test_maps_beside_a_video_are_no_sources(tmp_path):
    for name in ("a.mp4", "a.depth.mkv", "a.flow.mkv", "depth.mkv", "b.v2.mkv"):
        (tmp_path / name).touch()
    assert [Path(source).name for source in find_sources(tmp_path)] == ["a.mp4", "b.v2.mkv", "depth.mkv"]
    assert len(find_sources(str(tmp_path / "a.depth.mkv"))) == 1  # named outright, it is one


def test_links_that_lead_nowhere_are_sources_so_that_they_have_a_row(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    (tmp_path / "gone.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    assert find_sources(tmp_path) == [str(tmp_path / name) for name in ("a.mp4", "gone.mp4", "loop.mp4")]


def test_a_name_that_is_no_text_is_a_failed_row(tmp_path):
    import openuni
    from openuni.console.progress import Reporter
    from tests.coded_clips import encode

    encode(tmp_path / "good.mp4")
    encode(tmp_path / "é.mp4")
    with open(bytes(tmp_path) + b"/bad\xff.mp4", "wb") as file:  # noqa: PTH123
        file.write((tmp_path / "good.mp4").read_bytes())
    corpus = openuni.run({}, tmp_path, out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    assert (corpus.summary().clips, corpus.summary().ok) == (3, 2)
    (error,) = (row["error"] for row in corpus.table("clips").to_pylist() if row["status"] == "failed")
    assert r"bad\udcff.mp4: file names must be UTF-8" in error and "Rename" in error
    again = openuni.run({}, tmp_path, out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    assert again.clips.equals(corpus.clips)

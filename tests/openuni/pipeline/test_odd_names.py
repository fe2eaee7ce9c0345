"""Names that a file system allows, through folders, patterns, lists and URIs into a corpus: each file is one row."""

import glob
import os
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.failures import format_error
from openuni.pipeline.sources import find_sources
from openuni.report.explain import explain
from tests.odd_inputs import BYTES, LARGER, file_names, settings, twins
from tests.raw_clips import write_clips

QUIET = Reporter(quiet=True)
NAMES = st.lists(file_names(".mp4"), min_size=12, max_size=12, unique=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("made"), 1, frames=4, height_px=16, width_px=16)[0]


def escaped(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def check(clip: Path, names: list[str]) -> None:
    """One folder of links to the clip with these names and their twins: found in every form, ingested, explained."""
    raw, out = clip.parent / "raw", clip.parent / "corpus"
    raw.mkdir()
    try:
        names = [form for name in names for form in twins(name)]
        for name in dict.fromkeys(names):
            os.link(clip, raw / name)
        videos = [name for name in dict.fromkeys(names) if not name.startswith(".") and not name.endswith(".depth.mp4")]
        check_forms(raw, videos)
        corpus = openuni.run({}, raw, out=out, reporter=QUIET)
        rows = {row["source"]: row for row in corpus.table("clips").to_pylist()}
        assert rows.keys() == {escaped(f"{raw}/{name}") for name in videos}
        for name in videos:
            row = rows[escaped(f"{raw}/{name}")]
            assert row["status"] == ("failed" if BYTES.search(name) else "ok"), row
            if row["status"] == "failed":
                assert "file names must be UTF-8" in row["error"] and "\n" not in row["error"]
            assert explain(corpus, row["source"]).startswith(f"clip {row['clip_id']}\n")
        assert openuni.run({}, raw, out=out, reporter=QUIET).clips.equals(corpus.clips)  # resumed: nothing is new
    finally:
        shutil.rmtree(raw)
        shutil.rmtree(out, ignore_errors=True)


def check_forms(raw: Path, videos: list[str]) -> None:
    """A folder, a path, an escaped pattern, a URI and a line of a list name the same file."""
    assert sorted(find_sources(raw)) == sorted(escaped(f"{raw}/{name}") for name in videos)
    for name in videos:
        for form in (f"{raw}/{name}", glob.escape(f"{raw}/{name}"), f"file://{raw}/{name}", (raw / name).as_uri()):
            assert find_sources(form) == [escaped(f"{raw}/{name}")], ascii(form)
    listed = [name for name in videos if not re.search("[\r\n]", name) and not BYTES.search(name)]
    for prefix in ("", "./", f"{raw}/", f"file://{raw}/"):
        # the first line: a mark in front of a name would be that of the file
        (raw / "list.txt").write_bytes("\n".join(["# names", *(prefix + name for name in listed)]).encode())
        found = find_sources(raw / "list.txt") if listed else []
        assert found == [f"{raw}/{name}" for name in listed]
    (raw / "list.txt").unlink(missing_ok=True)


@settings(2)
@given(NAMES)
def test_every_name_is_one_row(clip: Path, names: list[str]) -> None:
    check(clip, names)


@pytest.mark.slow
@settings(2 * LARGER)
@given(NAMES)
def test_every_name_is_one_row_of_many(clip: Path, names: list[str]) -> None:
    check(clip, names)


# ---------------------------------------------------------------- what these found


@pytest.mark.parametrize(
    "name", [" padded.mp4", "\ttabbed.mp4", "~.mp4", "~root.mp4", " # not a comment.mp4", "end.mp4 "]
)
def test_blanks_and_tildes_in_a_list_belong_to_names_that_exist(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "list.txt").write_text(name)
    assert find_sources(tmp_path / "list.txt") == [f"{tmp_path}/{name}"]
    (tmp_path / name).rename(tmp_path / "elsewhere")
    (tmp_path / name.strip()).write_bytes(b"x")
    if not name.strip().startswith("#"):
        assert find_sources(tmp_path / "list.txt") == [f"{tmp_path}/{name.strip()}"]


def test_a_uri_with_escapes_is_the_file_unless_a_file_has_that_name(tmp_path):
    (tmp_path / "a b%.mp4").write_bytes(b"x")
    assert find_sources(f"file://{tmp_path}/a%20b%25.mp4") == [f"{tmp_path}/a b%.mp4"]
    (tmp_path / "a%20b%25.mp4").write_bytes(b"x")
    assert find_sources(f"file://{tmp_path}/a%20b%25.mp4") == [f"{tmp_path}/a%20b%25.mp4"]
    with pytest.raises(OpenUniError, match=r"gone%20\.mp4"):
        find_sources(f"file://{tmp_path}/gone%20.mp4")


def test_two_files_that_are_shown_alike_are_one_source(tmp_path):
    (tmp_path / "\udcff.mp4").write_bytes(b"x")
    (tmp_path / "\\udcff.mp4").write_bytes(b"x")
    assert find_sources(tmp_path) == [f"{tmp_path}/\\udcff.mp4"]


@pytest.mark.parametrize("sign", ["\n", "\r", "\x1c", "\x85", "\u2028"])
def test_the_reason_follows_a_name_with_a_line_end_and_a_long_one(sign, tmp_path):
    path = tmp_path / f"one{sign}two.mp4"
    path.write_bytes(b"no video")
    corpus = openuni.run({}, tmp_path, out=tmp_path / "corpus", reporter=QUIET)
    (row,) = corpus.table("clips").to_pylist()
    assert row["error"].startswith("NotAVideo: ") and "two.mp4" in row["error"] and len(row["error"].splitlines()) == 1
    error = format_error(OpenUniError(f"{'x' * 4000}{sign}: must be short"))
    assert len(error) == 500 and error.endswith(": must be short") and error.startswith("OpenUniError: xxx")
    assert format_error(ValueError("one\ntwo")) == "ValueError: one"

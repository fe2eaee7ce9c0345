"""Collections and splits that somebody sets are of a stated alphabet: they are shown in cards, tables and terminals."""

import json

import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.exchange.import_job import ImportOptions
from openuni.manifests.corpus.splits import assign
from openuni.manifests.errors import OpenUniError
from tests.bare_corpora import bare_corpus
from tests.command_line import cli
from tests.raw_clips import write_clips

HOSTILE = ("<script>", "../../x", "a/../b", "/x", "a\nb", "\x1b[2J", "=cmd()", "[x](http://y)", "x" * 101, "a ")


@pytest.mark.parametrize("name", HOSTILE)
def test_such_a_name_is_refused_where_it_is_set(tmp_path, name):
    corpus = bare_corpus(tmp_path / "corpus", [{"clip_id": "a"}])
    with pytest.raises(OpenUniError, match=r"split .*: must be 1 to 100 letters"):
        assign(corpus, {name: 0.1})
    with pytest.raises(OpenUniError, match=r"\[ingest\] collection = .*: must be 1 to 100 letters"):
        openuni.run({"ingest": {"collection": name}}, tmp_path, out=tmp_path / "out")
    (tmp_path / "set").mkdir()
    with pytest.raises(OpenUniError, match=r"--collection .*: must be 1 to 100 letters"):
        openuni.import_set("folder", tmp_path / "set", out=tmp_path / "out", import_options=ImportOptions(name))


def test_a_clip_with_such_a_split_is_a_failed_row(tmp_path):
    for name in ("good", "bad"):
        (video,) = write_clips(tmp_path / "set" / name, 1)
        video.rename(video.with_name("rgb.mp4"))
        (video.parent / "clip.json").write_text(json.dumps({"split": {"good": "test", "bad": "a/../b"}[name]}))
    quiet = Reporter(quiet=True)
    corpus = openuni.import_set("folder", tmp_path / "set", out=tmp_path / "out", reporter=quiet)
    assert [clip.clip.split for clip in corpus] == ["test"]
    (error,) = (row["error"] for row in corpus.table("clips").to_pylist() if row["status"] == "failed")
    assert error.startswith('ClipError: split "a/../b": must be 1 to 100 letters')


def test_the_command_line_says_so_and_ends_with_2(tmp_path):
    bare_corpus(tmp_path / "corpus", [{"clip_id": "a"}])
    done = cli("split", tmp_path / "corpus", "--fraction", "<script>=0.5")
    assert done.returncode == 2 and '"<script>": must be' in done.stderr


def test_a_folder_whose_name_hides_something_needs_another_name(tmp_path):
    (tmp_path / "a\x1b[2Jb").mkdir()
    done = cli("import", "folder", tmp_path / "a\x1b[2Jb", "--out", tmp_path / "out", "--workers", 0)
    assert done.returncode == 2 and "Name it with --collection" in done.stderr

"""Caption files that are edited after ingest are said to be, whatever becomes of them."""

import pytest

import openuni
from openuni.console.progress import Reporter
from tests.command_line import cli
from tests.raw_clips import write_clips


def run(raw, out, **ingest):
    said: list[str] = []
    reporter = Reporter(quiet=True)
    reporter.print_line = said.append
    corpus = openuni.run({"ingest": ingest}, raw, out=out, reporter=reporter)
    return corpus, [line for line in said if "caption" in line]


@pytest.fixture
def raw(tmp_path):
    write_clips(tmp_path / "raw", 3)
    (tmp_path / "raw/clip-002.txt").unlink()
    return tmp_path / "raw"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("clip-000", b"another text"),
        ("clip-000", b""),
        ("clip-002", b"a caption that came later"),
        ("clip-001", "café".encode("latin-1")),
    ],
)
def test_a_changed_file_is_named_and_the_corpus_stays(raw, tmp_path, name, data):
    before, said = run(raw, tmp_path / "corpus")
    assert said == []
    assert run(raw, tmp_path / "corpus")[1] == []
    (raw / f"{name}.txt").write_bytes(data)
    after, (line,) = run(raw, tmp_path / "corpus")
    assert line.startswith(
        f"1 caption files changed after ingest, such as {raw}/{name}.txt: the corpus keeps the former"
    )
    assert "new --out" in line and after.clips.equals(before.clips)


def test_what_is_no_change(raw, tmp_path):
    run(raw, tmp_path / "corpus")
    (raw / "clip-000.txt").write_bytes(b"\xef\xbb\xbf  texture 0 pans by 1 px\r\n")  # saved again by an editor
    (raw / "clip-001.txt").unlink()
    assert run(raw, tmp_path / "corpus")[1] == []
    (raw / "clip-000.txt").write_text("other")
    assert run(raw, tmp_path / "corpus", captions=False)[1] == []


def test_captions_of_several_clips(raw, tmp_path):
    options = {"shots": "fixed", "fixed": {"window_s": 0.1}}
    run(raw, tmp_path / "alone", **options)
    run(raw, tmp_path / "copied", **options, copy_caption_to_clips=True)
    (raw / "clip-000.txt").write_text("other")
    assert run(raw, tmp_path / "alone", **options)[1] == []  # no clip has the caption
    assert len(run(raw, tmp_path / "copied", **options, copy_caption_to_clips=True)[1]) == 1


def test_the_command_says_so(raw, tmp_path):
    (tmp_path / "r.toml").write_text("")
    command = ("run", "r.toml", "raw", "--out", "corpus", "--workers", 0)
    assert cli(*command, cwd=tmp_path).returncode == 0
    (raw / "clip-000.txt").write_text("other")
    done = cli(*command, cwd=tmp_path)
    assert done.returncode == 0 and "1 caption files changed after ingest" in done.stdout + done.stderr

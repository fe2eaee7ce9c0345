"""Caption files that are edited after ingest are said to be, whatever becomes of them."""

import pyarrow.compute as pc
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.pipeline.scope import RunScope
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
    assert "--update-captions" in line and after.clips.equals(before.clips)


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


# ---------------------------------------------------------------- --update-captions

UPDATED = RunScope(update_captions=True)
RECIPE = {
    "work": {"short_side_px": 32},
    "filters": {"luminance": {}},
    "encode": {"modalities": ["rgb"], "size_px": [16, 16], "frames": 5},
}


def update(raw, out, recipe=RECIPE):
    return openuni.run(recipe, raw, out=out, scope=UPDATED, reporter=Reporter(quiet=True))


def rows_of(corpus, group):
    """The rows of a group by the name of their clip."""
    ids = {row["clip_id"]: row["source"].rpartition("/")[2][:8] for row in corpus.clips.to_pylist()}
    return dict(sorted((ids[row.pop("clip_id")], row) for row in corpus.table(group).to_pylist()))


def test_what_depends_on_captions_is_recomputed_and_nothing_else(raw, tmp_path):
    before = openuni.run(RECIPE, raw, out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    found = {group: rows_of(before, group) for group in before.groups()}
    (text,) = (group for group in before.groups() if group.startswith("text/"))
    (raw / "clip-000.txt").write_text("another text")
    (raw / "clip-002.txt").write_text("a caption that came later")
    after = update(raw, tmp_path / "corpus")
    for group in found:
        now = rows_of(after, group)
        changed = [name for name, row in now.items() if row != found[group][name]]
        assert changed == (["clip-000", "clip-002"] if group in ("clips", text) else []), group
    assert [row["caption"] for row in rows_of(after, "clips").values()] == [
        "another text",
        "texture 1 pans by 2 px",
        "a caption that came later",
    ]
    fresh = openuni.run(RECIPE, raw, out=tmp_path / "fresh", reporter=Reporter(quiet=True))
    for group in after.groups():
        assert [row.get("xxh3") for row in rows_of(after, group).values()] == [
            row.get("xxh3") for row in rows_of(fresh, group).values()
        ]
    assert openuni.verify(tmp_path / "corpus", workers=1, reporter=Reporter(quiet=True)).is_sound
    parts = after.parts(text)
    assert update(raw, tmp_path / "corpus").parts(text) == parts  # nothing has changed since
    assert run(raw, tmp_path / "corpus")[1] == []


def letters(corpus):
    name = "tests.operators.caption_length"
    return [row[name]["letters"] for row in rows_of(corpus, f"filters/{name}").values()]


def test_a_filter_that_reads_captions_is_recomputed_in_all_versions(raw, tmp_path):
    recipe, other = ({"filters": {"tests.operators.caption_length": {"scale": scale}}} for scale in (1.0, 2.0))
    openuni.run(recipe, raw, out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    openuni.run(other, raw, out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    (raw / "clip-000.txt").write_text("five!")
    assert letters(update(raw, tmp_path / "corpus", other)) == [10.0, 44.0, 0.0]
    corpus = openuni.run(recipe, raw, out=tmp_path / "corpus", reporter=Reporter(quiet=True))  # restored
    assert letters(corpus) == [5.0, 22.0, 0.0]


def test_a_caption_that_cannot_be_read_changes_nothing(raw, tmp_path):
    before, _ = run(raw, tmp_path / "corpus")
    (raw / "clip-000.txt").write_text("another text")
    (raw / "clip-001.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "r.toml").write_text("")
    done = cli("run", "r.toml", "raw", "--out", "corpus", "--workers", 0, "--update-captions", cwd=tmp_path)
    assert done.returncode == 2 and "clip-001.txt, line 1: byte 0xe9 is not UTF-8" in done.stderr
    assert Corpus.open(str(tmp_path / "corpus")).clips.equals(before.clips)
    (raw / "clip-001.txt").unlink()
    done = cli("run", "r.toml", "raw", "--out", "corpus", "--workers", 0, "--update-captions", cwd=tmp_path)
    assert done.returncode == 0 and "updated the captions of 1 sources" in done.stdout + done.stderr
    done = cli("run", "r.toml", "--out", "corpus", "--workers", 0, "--update-captions", cwd=tmp_path)
    assert done.returncode == 2 and "requires sources" in done.stderr
    captions = Corpus.open(str(tmp_path / "corpus")).clips.column("caption")
    assert pc.index(captions, "another text").as_py() >= 0

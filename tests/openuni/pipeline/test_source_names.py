"""Links, lists, names with special characters: every form finds the same sources, with their captions and maps."""

import logging
import subprocess
from pathlib import Path

import fsspec
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.sources import find_sources
from tests.command_line import cli
from tests.raw_clips import write_clips

QUIET = Reporter(quiet=True)


def names(found: list[str], folder: Path) -> list[str]:
    return [Path(source).relative_to(folder).as_posix() for source in found]


def touch(folder: Path, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"x")
    return folder


# ---------------------------------------------------------------- links


@pytest.fixture
def snapshot(tmp_path):
    """A folder of the Hugging Face cache: all files are links to blobs, whose names say nothing."""
    folder = tmp_path / "hub/snapshots/1a2b"
    write_clips(tmp_path / "made", 2)
    (tmp_path / "hub/blobs").mkdir(parents=True)
    (folder / "part").mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "made").iterdir())):
        blob = tmp_path / f"hub/blobs/{number:040}"
        path.rename(blob)
        (folder / "part" / path.name).symlink_to(f"../../../blobs/{blob.name}")
    return folder


@pytest.mark.parametrize("form", ["folder", "file", "list", "pattern"])
def test_a_snapshot_keeps_its_names_and_captions_in_every_form(snapshot, form, tmp_path):
    (tmp_path / "list.txt").write_text("hub/snapshots/1a2b/part/clip-000.mp4\nhub/snapshots/1a2b/part/clip-001.mp4\n")
    given = {
        "folder": snapshot,
        "file": [snapshot / "part/clip-000.mp4", snapshot / "part/clip-001.mp4"],
        "list": tmp_path / "list.txt",
        "pattern": f"{snapshot}/*/*.mp4",
    }[form]
    corpus = openuni.run({}, given, out=tmp_path / "corpus", reporter=QUIET)
    found = {row["source"]: row["caption"] for row in corpus.table("clips").to_pylist()}
    assert found == {
        f"{snapshot}/part/clip-000.mp4": "texture 0 pans by 1 px",
        f"{snapshot}/part/clip-001.mp4": "texture 1 pans by 2 px",
    }


def test_a_corpus_of_targets_is_resumed_not_ingested_again(snapshot, tmp_path):
    """Version 0.1 recorded where a link leads to."""
    targets = sorted({str(path.resolve()) for path in snapshot.rglob("*.mp4")})
    before = openuni.run({}, targets, out=tmp_path / "corpus", reporter=QUIET)
    after = openuni.run({}, snapshot, out=tmp_path / "corpus", reporter=QUIET)
    assert after.clips.equals(before.clips) and len(after) == 2


def test_linked_folders_are_searched_once(tmp_path):
    raw = touch(tmp_path / "raw", "a.mp4", "deep/b.mp4")
    elsewhere = touch(tmp_path / "elsewhere", "c.mp4", "in/d.mp4")
    (raw / "aaa").symlink_to(raw / "deep")  # met before the folder itself
    (raw / "one").symlink_to(elsewhere)
    (raw / "two").symlink_to(elsewhere)
    (elsewhere / "in/up").symlink_to("..")
    (raw / "loop").symlink_to("loop")
    (raw / "self").symlink_to(".")
    (raw / "parent").symlink_to(tmp_path)  # contains `raw`: a loop
    found = [f"{raw}/a.mp4", f"{raw}/deep/b.mp4", f"{elsewhere}/c.mp4", f"{elsewhere}/in/d.mp4"]
    assert find_sources(raw) == sorted(found)
    links_only = tmp_path / "links"
    links_only.mkdir()
    (links_only / "one").symlink_to(elsewhere)
    assert find_sources(links_only) == [f"{elsewhere}/c.mp4", f"{elsewhere}/in/d.mp4"]


def test_two_links_to_one_file_are_two_names(tmp_path):
    touch(tmp_path, "blobs/0", "a/x.txt")
    for name in ("one.mp4", "two.mp4"):
        (tmp_path / "a" / name).symlink_to("../blobs/0")
    assert names(find_sources(tmp_path / "a"), tmp_path) == ["a/one.mp4", "a/two.mp4"]


def test_folders_of_any_depth(tmp_path):
    deepest = str(tmp_path / "top" / "/".join(["d"] * 1100))
    Path(deepest).parents[1099].mkdir()
    for depth in range(1, 1101):
        Path(f"{tmp_path}/top/{'/'.join(['d'] * depth)}").mkdir()
    Path(f"{deepest}/a.mp4").write_bytes(b"x")
    try:
        assert find_sources(tmp_path) == [f"{deepest}/a.mp4"]
    finally:  # pytest's own removal of old folders is recursive
        subprocess.run(["rm", "-r", str(tmp_path / "top")], check=True)


# ---------------------------------------------------------------- what a scan passes over


def test_other_suffixes_are_taken_or_counted(tmp_path, caplog):
    touch(tmp_path, "a.mp4", "a.txt", "a.json", "a.depth.mkv", "b.3gp", "c.MXF", "d.vob")
    touch(tmp_path, "sub/x.jpg", "sub/y.JPG", "sub/z.r3d", "sub/noise", ".hidden.avi", "lost.flow.mkv")
    with caplog.at_level(logging.INFO, logger="openuni"):
        assert names(find_sources(tmp_path), tmp_path) == ["a.mp4", "b.3gp", "c.MXF", "d.vob"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    counted = record.getMessage().partition("passed over ")[2].partition(". A file")[0]
    assert set(counted.split(", ")) == {"2 .jpg", "1 .r3d", "1 without a suffix", "1 .flow.mkv"}


def test_documents_alone_are_no_warning(tmp_path, caplog):
    touch(tmp_path, "a.mp4", "README.md", "recipe.toml")
    with caplog.at_level(logging.INFO, logger="openuni"):
        find_sources(tmp_path)
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_a_3gp_is_a_video_of_a_folder(tmp_path):
    (video,) = write_clips(tmp_path / "raw", 1)
    video.rename(video.with_suffix(".3gp"))
    corpus = openuni.run({}, tmp_path / "raw", out=tmp_path / "corpus", reporter=QUIET)
    assert [clip.caption for clip in corpus] == ["texture 0 pans by 1 px"]


# ---------------------------------------------------------------- lists


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_lists_with_a_byte_order_mark(encoding, tmp_path):
    touch(tmp_path, "ok.mp4", "über.mp4")
    (tmp_path / "list.txt").write_text("ok.mp4\r\nüber.mp4\r\n", encoding=encoding)
    assert names(find_sources(tmp_path / "list.txt"), tmp_path) == ["ok.mp4", "über.mp4"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("ok.mp4\nüber.mp4\n".encode("latin-1"), 'list.txt", line 2: byte 0xfc is not UTF-8'),
        ("映画.mp4\n".encode("shift-jis"), 'list.txt", line 1: byte 0x89 is not UTF-8'),
        (b"ok.mp4\n\0\n", 'list.txt", line 2: contains a NUL character'),
        (b"ok.mp4\n\ngone.mp4\n", 'list.txt", line 3: "./gone.mp4" not found'),
        (b"ok.mp4\n# list\nlist.txt\n", 'list.txt", line 3: list "./list.txt" contains itself'),
        (b"ok.mp4\n~no-such-user/a.mp4\n", 'list.txt", line 2: "~no-such-user/a.mp4" not found'),
        (b"ok.mp4\n" + b"a" * 5000, 'list.txt", line 2: "./aaa'),
    ],
)
def test_lists_that_cannot_be_read_are_wrong_input(data, message, tmp_path):
    touch(tmp_path, "ok.mp4", "r.toml")
    (tmp_path / "r.toml").write_text("")
    (tmp_path / "list.txt").write_bytes(data)
    done = cli("run", "r.toml", "list.txt", "--out", "corpus", cwd=tmp_path)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_a_name_may_contain_the_sign_of_comments(tmp_path):
    files = ["take #1.mp4", "take #2 # cut.mp4", "plain.mp4", "a#b.mp4", "#first.mp4", "page\x0bbreak\u2028.mp4"]
    touch(tmp_path, *files)
    lines = ["take #1.mp4", "take #2 # cut.mp4   # the second", "plain.mp4# no blank", "a#b.mp4", "# a comment"]
    (tmp_path / "list.txt").write_text("\n".join([*lines, "#first.mp4", "pl*n.mp4 # again", files[-1]]))
    assert names(find_sources(tmp_path / "list.txt"), tmp_path) == [
        "take #1.mp4",
        "take #2 # cut.mp4",
        "plain.mp4",
        "a#b.mp4",
        "#first.mp4",
        "page\x0bbreak\u2028.mp4",
    ]


def test_urls_in_lists(tmp_path):
    (tmp_path / "list.txt").write_text(
        "https://host/a.mp4?sig=b.c#t=1   # signed\ns3://bkt/take #1.mp4\ns3://bkt/b.mp4  # the second\n"
    )
    assert find_sources(tmp_path / "list.txt") == [
        "https://host/a.mp4?sig=b.c#t=1",
        "s3://bkt/take #1.mp4",
        "s3://bkt/b.mp4",
    ]


# ---------------------------------------------------------------- names with the characters of patterns

NAMES = ["br[1].mp4", "what?.mp4", "all*.mp4", "set[2]/one.mp4", "set[2]/two.mp4"]


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_name_that_exists_is_no_pattern(place, tmp_path):
    folder = str(touch(tmp_path, *NAMES)) if place == "local" else f"memory://{tmp_path.name}"
    for name in NAMES if place == "memory" else ():
        fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/{name}", b"x")

    def found(given: str) -> list[str]:
        return [source.partition(f"{tmp_path.name}/")[2] for source in find_sources(given)]

    for name in NAMES:
        assert found(f"{folder}/{name}") == [name]
    assert found(f"{folder}/set[2]") == ["set[2]/one.mp4", "set[2]/two.mp4"]
    assert found(f"{folder}/set[2]/t*.mp4") == ["set[2]/two.mp4"]
    assert found(f"{folder}/br[[]1].mp4") == ["br[1].mp4"]  # still a pattern
    assert found(f"{folder}/s*/o*.mp4") == ["set[2]/one.mp4"]
    (tmp_path / "list.txt").write_text(f"{folder}/br[1].mp4\n{folder}/set[2]/*.mp4\n")
    assert found(str(tmp_path / "list.txt")) == ["br[1].mp4", "set[2]/one.mp4", "set[2]/two.mp4"]
    with pytest.raises(OpenUniError, match="contains no video"):
        find_sources(f"{folder}/none[1].mp4")


def test_patterns_of_a_list_in_a_folder_with_such_a_name(tmp_path):
    touch(tmp_path, "set[2]/one.mp4")
    (tmp_path / "set[2]/list.txt").write_text("*.mp4\n")
    assert names(find_sources(tmp_path / "set[2]/list.txt"), tmp_path) == ["set[2]/one.mp4"]


def test_a_nul_is_wrong_input():
    with pytest.raises(OpenUniError, match="cannot contain a NUL"):
        find_sources("a\0.mp4")

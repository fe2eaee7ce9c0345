"""Clips of other projects with any name that a file system, a CSV or a tar allows: each is the row of its own key."""

import csv
import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openuni.manifests.video.clip import clip_id
from tests.odd_inputs import BYTES, LARGER, settings, stems, twins
from tests.openuni.exchange.importers.made_sets import bring_in
from tests.raw_clips import write_clips

NAMES = st.lists(stems(max_bytes=240), min_size=8, max_size=8, unique=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("made"), 1, frames=4, height_px=16, width_px=16)[0]


def write_tar(path: Path, names: list[str], data: bytes, style: int = tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=style) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_csv(path: Path, names: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["video", "prompt"], *([name, "a"] for name in names)])


def check_keys(importer: str, folder: Path, keys: list[str]) -> None:
    """An import of `folder` has one row per key: a clip, or the reason that its name is not UTF-8."""
    corpus = bring_in(importer, folder, folder.with_name(f"{importer}-corpus"))
    found = {row["clip_id"]: row for row in corpus.table("clips").to_pylist()}
    wanted = {clip_id(f"{importer}:set:{key}", 0, 0, ""): key for key in keys}
    assert found.keys() == wanted.keys()
    for name, row in found.items():
        assert row["status"] == ("failed" if BYTES.search(wanted[name]) else "ok"), (wanted[name], row["error"])
        if row["status"] == "failed":
            assert "is not valid UTF-8" in row["error"]


def check(clip: Path, names: list[str]) -> None:
    work, names = clip.parent / "work", list(dict.fromkeys(form for name in names for form in twins(name)))
    try:
        for name in names:
            (work / "folder" / name).mkdir(parents=True)
            os.link(clip, work / "folder" / name / "rgb.mp4")
            (work / "csv").mkdir(exist_ok=True)
            os.link(clip, work / "csv" / f"{name}.mp4")
        check_keys("folder", work / "folder", [name for name in names if not name.startswith(".")])
        videos = [f"{name}.mp4" for name in names if not BYTES.search(name)]
        write_csv(work / "csv/metadata.csv", videos)
        check_keys("openuni_csv", work / "csv", videos)
        keys = {name.partition(".")[0]: name for name in names if not name.startswith(".")}
        for number, style in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
            shards = work / f"tars{number}/set"
            write_tar(shards / "a.tar", [f"{key}.mp4" for key in keys], clip.read_bytes(), style)
            check_keys("webdataset", shards, [f"a/{key}" for key in keys])
    finally:
        shutil.rmtree(work)


@settings(1)
@given(NAMES)
def test_every_name_is_the_key_of_its_clip(clip: Path, names: list[str]) -> None:
    check(clip, names)


@pytest.mark.slow
@settings(2 * LARGER)
@given(NAMES)
def test_every_name_of_many_is_the_key_of_its_clip(clip: Path, names: list[str]) -> None:
    check(clip, names)


# ---------------------------------------------------------------- what these found


@pytest.mark.parametrize("blank", [" ", "\t", "\r\n", "\x85", "\u3000"])
def test_blanks_in_a_csv_belong_to_names_that_exist(clip: Path, tmp_path: Path, blank: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in (f"{blank}a.mp4", "a.mp4", "b.mp4"):
        os.link(clip, folder / name)
    write_csv(folder / "metadata.csv", [f"{blank}a.mp4", "a.mp4", f"{blank}b.mp4"])
    check_keys("openuni_csv", folder, [f"{blank}a.mp4", "a.mp4", "b.mp4"])


def test_hidden_members_and_those_without_a_suffix_are_no_clips(clip: Path, tmp_path: Path) -> None:
    names = ["._a.mp4", "a.mp4", ".DS_Store", "README", "in/._b.mp4", "in/b.mp4", "in/LICENSE"]
    write_tar(tmp_path / "set/s.tar", names, clip.read_bytes())
    check_keys("webdataset", tmp_path / "set", ["s/a", "s/in/b"])

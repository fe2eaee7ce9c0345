"""Captions, recipes and CSVs in encodings that come: read exactly or refused by name, never with wrong letters."""

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import openuni
from openuni.config.recipe import CorpusRecipe
from openuni.console.progress import Reporter
from openuni.exchange.importers._csv_tables import CsvColumns, header, joined
from openuni.exchange.importers._dataset_layout import read_text
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.text_files import decode_text
from openuni.training.recipe import TrainingRecipe
from tests.odd_inputs import MARKED_ENCODINGS, OTHER_ENCODINGS, captions, settings
from tests.raw_clips import write_clips

TEXT = "café, it’s 映画 🎬"
MARKED = {  # these say themselves what they are
    "utf-8": TEXT.encode(),
    "utf-8-sig": TEXT.encode("utf-8-sig"),
    "utf-16-le": b"\xff\xfe" + TEXT.encode("utf-16-le"),
    "utf-16-be": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "utf-32-le": b"\xff\xfe\0\0" + TEXT.encode("utf-32-le"),
    "utf-32-be": b"\0\0\xfe\xff" + TEXT.encode("utf-32-be"),
}
OTHERS = {
    "cp1252": ("one\ncafé, it’s".encode("cp1252"), "line 2: byte 0xe9 is not UTF-8"),
    "latin-1": ("naïve".encode("latin-1"), "line 1: byte 0xef is not UTF-8"),
    "shift-jis": ("映画".encode("shift-jis"), "line 1: byte 0x89 is not UTF-8"),
    "gbk": ("电影".encode("gbk"), "line 1: byte 0xb5 is not UTF-8"),
    "koi8-r": ("кино".encode("koi8-r"), "line 1: byte 0xcb is not UTF-8"),
    "utf-16 without a mark": ("a cat".encode("utf-16-le"), "line 1: contains a NUL character"),
    "half a utf-16": (b"\xff\xfea\0b", "is not UTF-16"),
    "surrogates": (b"\xed\xa0\x80", "line 1: byte 0xed is not UTF-8"),
}


@pytest.mark.parametrize("data", MARKED.values(), ids=MARKED)
def test_unicode_with_or_without_a_mark_is_read_exactly(data, tmp_path):
    assert decode_text(data, "a.txt") == TEXT
    (tmp_path / "caption.txt").write_bytes(data)
    assert read_text(tmp_path / "caption.txt", tmp_path) == TEXT


@pytest.mark.parametrize(("data", "message"), OTHERS.values(), ids=OTHERS)
def test_other_encodings_are_refused_with_file_and_line(data, message, tmp_path):
    with pytest.raises(ClipError, match=rf"a\.txt, .*{message}.*Save the file as UTF-8"):
        decode_text(data, "a.txt")


def test_captions_beside_videos(tmp_path):
    paths = write_clips(tmp_path / "raw", 4)
    for path, data in zip(paths[:3], [MARKED["utf-8-sig"], MARKED["utf-16-le"], OTHERS["cp1252"][0]], strict=True):
        path.with_suffix(".txt").write_bytes(data)
    corpus = openuni.run({}, tmp_path / "raw", out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    rows = {Path(row["source"]).stem: row for row in corpus.table("clips").to_pylist()}
    assert [rows[f"clip-{number:03}"]["caption"] for number in range(4)] == [TEXT, TEXT, None, "texture 3 pans by 1 px"]
    assert [rows[f"clip-{number:03}"]["status"] for number in range(4)] == ["ok", "ok", "failed", "ok"]
    assert "clip-002.txt, line 2: byte 0xe9 is not UTF-8" in rows["clip-002"]["error"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_csvs(encoding, tmp_path):
    path = tmp_path / "a.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([["video", "prompt"], ["a.mp4", TEXT]])
    columns = header(path)
    (row,) = joined({path: columns}, CsvColumns("video", "prompt", ()))
    assert columns == ["video", "prompt"]
    assert (row.video, row.cells, row.fault) == (f"{tmp_path}/a.mp4", {"prompt": TEXT}, "")


def test_rows_that_are_not_text_are_refused_one_by_one(tmp_path):
    path = tmp_path / "a.csv"
    lone_surrogate = b"\x00\xdc"
    rows = "video,prompt\na.mp4,x\nb.mp4,".encode("utf-16") + lone_surrogate + "\nc.mp4,z\n".encode("utf-16-le")
    path.write_bytes(rows)
    found = {row.video: row.fault for row in joined({path: header(path)}, CsvColumns("video", "prompt", ()))}
    assert found == {f"{tmp_path}/a.mp4": "", f"{tmp_path}/c.mp4": "", f"{path}:3": found[f"{path}:3"]}
    assert "a.csv, line 3: not UTF-8, or not the encoding" in found[f"{path}:3"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_recipes(encoding, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('keep = "fps > 1" # Möbel\r\n', encoding=encoding)
    assert CorpusRecipe.load(path).keep == "fps > 1"
    path.write_text('[model]\nname = "unityvideo"\n[optimizer]\nsteps = 7\n', encoding=encoding)
    assert TrainingRecipe.load(path).optimizer.steps == 7


@pytest.mark.parametrize("load", [CorpusRecipe.load, TrainingRecipe.load])
def test_recipes_that_are_not_text(load, tmp_path):
    path = tmp_path / "r.toml"
    path.write_bytes('\nkeep = "é"'.encode("cp1252"))
    with pytest.raises(OpenUniError, match=r"r\.toml, line 2: byte 0xe9 is not UTF-8"):
        load(path)
    path.write_text("a = " + "[" * 100_000)
    with pytest.raises(OpenUniError, match=r"r\.toml is not valid TOML"):
        load(path)


@settings(20)
@given(captions(), st.sampled_from([*MARKED_ENCODINGS, *OTHER_ENCODINGS]))
def test_any_text_in_any_encoding_is_itself_or_refused(text, encoding):
    """A file without a mark may be valid UTF-8 by chance: then its letters are ASCII in both."""
    try:
        data = text.encode(encoding)
    except UnicodeEncodeError:  # the encoding has no such letter
        return
    if encoding in MARKED_ENCODINGS:
        # one mark at the beginning is that of the file
        assert decode_text(data, "a.txt") == (text.removeprefix("\ufeff") if encoding == "utf-8" else text)
        return
    try:
        assert decode_text(data, "a.txt") == text or not text.isascii()
    except ClipError as error:
        assert "a.txt, line" in str(error) and "Save the file as UTF-8" in str(error)

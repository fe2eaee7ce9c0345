"""A corpus comes from anybody: names that lead out of it are refused when its rows are read."""

import pyarrow as pa
import pytest

from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.names import find_fault, is_clip_id, is_folder, is_label, is_shard, new_label_fault
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.clip import clip_id
from tests.bare_corpora import bare_corpus
from tests.hostile import CLIP_IDS, LABELS, SHARDS, rewrite, with_shard, with_value

READERS = {
    "list": lambda corpus: list(corpus),
    "length": len,
    "table": lambda corpus: corpus.table("clips"),
    "find": lambda corpus: corpus.find("clips", "b"),
    "kept": lambda corpus: corpus.kept_clip_ids(),
    "summary": lambda corpus: corpus.summary(),
    "clips": lambda corpus: corpus.clips,
}


def three(folder) -> Corpus:
    return bare_corpus(folder / "corpus", [{"clip_id": name, "has": ["depth"], "split": "train"} for name in "abc"])


@pytest.mark.parametrize("name", CLIP_IDS)
def test_a_clip_id_that_is_no_plain_name_is_refused_with_row_and_column(tmp_path, name):
    three(tmp_path)
    for group in ("clips", "annotations/supplied"):
        part = rewrite(tmp_path / "corpus", group, with_value("clip_id", 1, CLIP_IDS[name]))
        with pytest.raises(OpenUniError, match=rf"{group}/{part.name}, row 1, column clip_id: .* is not allowed; must"):
            Corpus.open(str(tmp_path / "corpus")).table(group)
        rewrite(tmp_path / "corpus", group, with_value("clip_id", 1, "b"))
    assert len(Corpus.open(str(tmp_path / "corpus"))) == 3


@pytest.mark.parametrize("reader", READERS)
def test_whatever_reads_rows_refuses_them(tmp_path, reader):
    three(tmp_path)
    rewrite(tmp_path / "corpus", "clips", with_value("clip_id", 2, "../../escaped"))
    with pytest.raises(OpenUniError, match=r'row 2, column clip_id: "../../escaped"'):
        READERS[reader](Corpus.open(str(tmp_path / "corpus")))


@pytest.mark.parametrize("shard", SHARDS)
def test_a_shard_is_a_file_of_its_folder(tmp_path, shard):
    three(tmp_path)
    rewrite(tmp_path / "corpus", "annotations/supplied", with_shard("supplied", "depth", 1, shard))
    corpus = Corpus.open(str(tmp_path / "corpus"))
    with pytest.raises(OpenUniError, match=r"row 1, column supplied\.depth\.shard: .* must be a plain file name"):
        corpus.table("annotations/supplied")
    with pytest.raises(OpenUniError, match="must be a plain file name"):
        corpus.read("annotations/supplied", shard, 0, 1, 0)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("column", ["collection", "split"])
def test_a_label_is_no_path_and_has_no_control_characters(tmp_path, column, label):
    three(tmp_path)
    rewrite(tmp_path / "corpus", "clips", with_value(column, 0, label))
    with pytest.raises(OpenUniError, match=f"row 0, column {column}: .* is not allowed") as caught:
        len(Corpus.open(str(tmp_path / "corpus")))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "folder", ["annotations/a\x1b[2Jb", "filters/a b", "annotations/a\\b", "latents/NUL", "text/-x"]
)
def test_a_folder_of_a_corpus_is_an_operator_family_or_modality(tmp_path, folder):
    corpus = three(tmp_path)
    (tmp_path / "corpus" / folder).mkdir(parents=True)
    with pytest.raises(OpenUniError, match=r"folder .* is not allowed; must be 1 to 200 letters"):
        corpus.groups()


def test_a_map_of_an_odd_name_and_a_column_of_numbers_are_refused(tmp_path):
    three(tmp_path)

    def renamed(rows: pa.Table) -> pa.Table:
        kind = pa.struct([field.with_name("../x") if field.name == "depth" else field for field in rows.schema[1].type])
        return rows.set_column(1, "supplied", pa.array([None] * len(rows), kind))

    rewrite(tmp_path / "corpus", "annotations/supplied", renamed)
    with pytest.raises(OpenUniError, match=r'column "supplied\.\.\./x\.shard" is not allowed'):
        Corpus.open(str(tmp_path / "corpus")).table("annotations/supplied")
    rewrite(tmp_path / "corpus", "clips", lambda rows: rows.set_column(0, "clip_id", pa.array([1, 2, 3])))
    with pytest.raises(OpenUniError, match=r"column clip_id: .a column of int64. is not allowed; must be text"):
        len(Corpus.open(str(tmp_path / "corpus")))


def test_extents_that_lie_are_a_message_and_take_no_memory(tmp_path):
    corpus = three(tmp_path)
    (tmp_path / "corpus/annotations/supplied/part.tar").write_bytes(b"payload")
    with pytest.raises(OpenUniError, match="checksum mismatch"):
        corpus.read("annotations/supplied", "part.tar", 3, 1 << 62, 0)
    for offset, nbytes in ((-1, 4), (0, -4)):
        with pytest.raises(OpenUniError, match="the Parquet file is damaged"):
            corpus.read("annotations/supplied", "part.tar", offset, nbytes, 0)


def test_names_that_openuni_writes_are_allowed():
    assert is_clip_id(clip_id("/raw/a.mp4", 0, 9, "")) and is_clip_id("clip-7_b")
    assert is_shard("part-000001890cd1a2b3-0a1b2c.tar") and is_folder("tests.operators.logger") and is_folder("größe")
    assert "clip_id" in clip_schema().names
    for label in ("koala36m", "nkp37/OpenVid-1M", "Räume 2024 (alt)", "背景", "set 3"):
        assert is_label(label) and new_label_fault(label) is None
    for label in ("<script>", "=cmd()", "a|b", "a`b", "*", " a", "a ", "[x](http://y)", "x" * 101, "", *LABELS):
        assert new_label_fault(label) is not None


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize(
    ("wrong", "row"),
    [("../b", 2), ("a.bcdef", 2), ("-abcde", 2), ("abcde ", 2), ("é" * 8, 2), ("b" * 129, 2), ("", 2), ("aux", 2)],
)
def test_one_bad_id_among_plain_ones_is_found_in_slices_too(kind, wrong, row):
    ids = pa.array(["x/outside", "a" * 32, "b" * 32, wrong, "c" * 128, "d_1" * 3], kind)
    assert find_fault(pa.chunked_array([ids.slice(1, 2), ids.slice(4)]), ("clip_id",)) is None
    found = find_fault(pa.chunked_array([ids.slice(1)]), ("clip_id",))
    assert found is not None and found[:2] == (row, wrong)
    with_null = pa.chunked_array([ids.slice(4), pa.array([None], kind)])
    assert find_fault(with_null, ("clip_id",))[0] == 2

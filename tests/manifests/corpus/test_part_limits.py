"""Rows without the numbers that every clip, map and tensor has are refused when they are read, by column."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

import openuni
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.parts.part_limits import CLIP_BOUNDS, MAP_BOUNDS, TENSOR_BOUNDS
from openuni.manifests.errors import DamagedFile
from tests.bare_corpora import bare_corpus
from tests.command_line import cli
from tests.hostile import rewrite
from tests.train.corpora import FAMILY, TEXT_FAMILY, random_clips, write_corpus


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "corpus"
    bare_corpus(folder, [{"clip_id": "a", "has": ["depth"]}, {"clip_id": "b", "status": "failed"}])
    write_corpus(folder.with_name("encoded"), random_clips(2))
    return folder.parent


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "work")


def column(name: str, value: object, kind: pa.DataType | None = None):
    def change(rows: pa.Table) -> pa.Table:
        found = rows.column(name).to_pylist()
        place = rows.schema.get_field_index(name)
        return rows.set_column(place, name, pa.array([value, *found[1:]], kind or rows.schema.field(name).type))

    return change


@pytest.mark.parametrize("name", CLIP_BOUNDS)
def test_an_accepted_clip_without_a_value_is_named(place: Path, name: str) -> None:
    part = rewrite(place / "corpus", "clips", column(name, None))
    done = cli("explain", place / "corpus", "a")
    assert done.returncode == 2 and f"{part} is damaged: column {name} is null in 1 accepted rows" in done.stderr


def test_verify_names_it(place: Path) -> None:
    part = rewrite(place / "corpus", "clips", column("frame_count", None))
    done = cli("verify", place / "corpus", "--workers", 1)
    assert done.returncode == 1 and f"clips/{part.name}: column frame_count is null" in done.stdout


@pytest.mark.parametrize("format", ["huggingface", "webdataset"])
def test_no_exporter_fails_on_it(place: Path, format: str) -> None:
    rewrite(place / "corpus", "clips", column("fps", None))
    shutil.rmtree(place / "corpus/annotations")  # its shard is not there, which another error names
    done = cli("export", place / "corpus", "--format", format, "--out", place / "set", "--workers", 1)
    assert done.returncode == 2 and "column fps is null" in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "kind", "text"),
    [
        ("time_base_den", 0, None, "contains 0, below the minimum 1"),
        ("frame_count", -5, None, "contains -5, below the minimum 1"),
        ("fps", float("nan"), None, "contains NaN or infinite"),
        ("fps", float("inf"), None, "contains NaN or infinite"),
        ("caption", b"\xff", pa.binary(), "has type binary, not string"),
        ("stream_index", [1], pa.list_(pa.int64()), "has type list"),
    ],
)
def test_values_out_of_bounds_and_of_other_types_are_named(place, name, value, kind, text) -> None:
    def change(rows: pa.Table) -> pa.Table:
        rows = rows.slice(0, 1)
        return column(name, value, kind)(rows)

    rewrite(place / "corpus", "clips", change)
    with pytest.raises(DamagedFile, match=f"column {name} {text}"):
        Corpus.open(str(place / "corpus")).table("clips")


def test_what_other_writers_store_alike_is_read(place: Path) -> None:
    """int32 for int64, large and dictionary-encoded texts, columns of nulls; rows of failed sources have no numbers."""

    def change(rows: pa.Table) -> pa.Table:
        for name, kind in (("frame_count", pa.int32()), ("codec", pa.large_string())):
            rows = rows.set_column(rows.schema.get_field_index(name), name, rows.column(name).cast(kind))
        rows = rows.set_column(rows.schema.get_field_index("caption"), "caption", pa.nulls(len(rows)))
        coded = rows.column("source").combine_chunks().dictionary_encode()
        return rows.set_column(rows.schema.get_field_index("source"), "source", coded)

    before = Corpus.open(str(place / "corpus")).table("clips").to_pylist()
    rewrite(place / "corpus", "clips", change)
    corpus = Corpus.open(str(place / "corpus"))
    assert corpus.table("clips").to_pylist() == before and len(corpus) == 1
    assert cli("explain", place / "corpus", "a").returncode == 0


@pytest.mark.parametrize("name", MAP_BOUNDS)
def test_a_stored_map_without_a_value_is_named(place: Path, name: str) -> None:
    def change(rows: pa.Table) -> pa.Table:
        values = [row | {"depth": row["depth"] | {name: None}} for row in rows.column("supplied").to_pylist()]
        return rows.set_column(1, "supplied", pa.array(values, rows.schema.field("supplied").type))

    rewrite(place / "corpus", "annotations/supplied", change)
    with pytest.raises(DamagedFile, match=rf"column supplied\.depth\.{name} is null in 1 accepted rows"):
        Corpus.open(str(place / "corpus")).table("annotations/supplied")


@pytest.mark.parametrize("group", [f"latents/{FAMILY}/rgb", f"text/{TEXT_FAMILY}"])
@pytest.mark.parametrize("name", TENSOR_BOUNDS)
def test_a_tensor_without_a_value_is_named(place: Path, group: str, name: str) -> None:
    rewrite(place / "encoded", group, column(name, None))
    with pytest.raises(openuni.OpenUniError, match=f"column {name} is null|column {name}: None is not allowed"):
        Corpus.open(str(place / "encoded")).table(group)

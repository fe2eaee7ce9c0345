"""Captions and labels of any Unicode through every exporter, and back by the importers of the same formats."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import openuni
from openuni.exchange.csv_cells import unguarded
from openuni.exchange.importers._supplied import caption_of
from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.names import is_label
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.probe import probe_clip
from tests.odd_inputs import LARGER, captions, settings
from tests.openuni.exchange.exporters.rooms import QUIET
from tests.raw_clips import write_clips


class Texts(NamedTuple):
    caption: str | None
    collection: str | None
    origin: str | None


TEXTS = st.builds(Texts, st.none() | captions(), st.none() | captions(3).filter(is_label), st.none() | captions(3))
ROWS = st.lists(TEXTS, min_size=8, max_size=8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return probe_clip(str(write_clips(tmp_path_factory.mktemp("raw"), 1, frames=2, height_px=16, width_px=16)[0]))


def check(clip: Clip, rows: list[Texts]) -> None:
    folder = Path(clip.source).parent / "work"
    try:
        corpus = Corpus.create(str(folder / "corpus"))
        writer = corpus.writer("clips", clip_schema(), "1")
        for number, texts in enumerate(rows):
            row = dataclasses.replace(clip, clip_id=f"{number:032x}", split="test", **texts._asdict())
            writer.commit(dataclasses.asdict(row) | {"status": "ok", "error": None})
        writer.finish()
        for name in ("openuni_csv", "diffsynth", "univid", "webdataset", "huggingface"):
            done = openuni.export(folder / "corpus", name, out=folder / name, reporter=QUIET, workers=1)
            assert done.failed == []
        check_files(folder, rows)
        for name in ("openuni_csv", "webdataset"):
            back = openuni.import_set(name, folder / name, out=folder / f"{name}-back", reporter=QUIET)
            found = [(row["error"], row["caption"], row["origin"], row["split"]) for row in back.clips.to_pylist()]
            wanted = [(None, texts.caption, texts.origin, "test") for texts in rows]
            assert sorted(found, key=ascii) == sorted(wanted, key=ascii), name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_files(folder: Path, rows: list[Texts]) -> None:
    """What other readers find: the csv module, lines of JSON by either notion of a line, YAML, Parquet."""
    for name in ("openuni_csv", "diffsynth"):
        with (folder / name / "metadata.csv").open(encoding="utf-8", newline="") as file:
            assert [unguarded(row["prompt"]) for row in csv.DictReader(file)] == [texts.caption or "" for texts in rows]
    for name in ("openuni_csv", "diffsynth", "univid"):
        text = (folder / name / "clips.jsonl").read_bytes().decode()
        assert text.splitlines() == text.split("\n")[:-1]
        lines = map(json.loads, text.splitlines())
        assert [Texts(*(line.get(field) for field in Texts._fields)) for line in lines] == rows
    header = (folder / "huggingface/README.md").read_text(encoding="utf-8").split("---\n", 2)[1]
    assert yaml.safe_load(header)["configs"][0]["data_files"][0]["split"] == "test"
    table = pq.read_table(next(iter((folder / "huggingface").rglob("*.parquet"))))
    assert [Texts(*row.values()) for row in table.select(Texts._fields).to_pylist()] == rows


@settings(1)
@given(ROWS)
def test_texts_are_whole_in_every_format_and_come_back(clip: Clip, rows: list[Texts]) -> None:
    check(clip, rows)


@pytest.mark.slow
@settings(2 * LARGER)
@given(ROWS)
def test_texts_of_many_are_whole_in_every_format_and_come_back(clip: Clip, rows: list[Texts]) -> None:
    check(clip, rows)


@pytest.mark.parametrize("exact", ["\ufeffa cat", " a cat\n", "\ufeff a cat "])
def test_the_caption_of_the_sidecar_is_exact_where_a_text_file_cannot_be(exact: str) -> None:
    text = exact.removeprefix("\ufeff").strip()  # as `decode_text` reads the file
    assert caption_of(text, {"caption": exact}, "caption", "a.json") == exact
    assert caption_of("another", {"caption": exact}, "caption", "a.json") == "another"
    assert caption_of(text, {}, "caption", "a.json") == text

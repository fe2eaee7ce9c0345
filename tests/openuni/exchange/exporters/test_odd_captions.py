"""Captions with line ends, formulas and control characters: whole in every export, and back as they were."""

import csv
import dataclasses
import json
from pathlib import Path

import pandas
import pytest
import yaml

import openuni
from openuni.exchange.csv_cells import guarded, unguarded
from openuni.exchange.export_job import write_failures
from openuni.exchange.exporter import ExportFailure
from openuni.exchange.exporters.univid import yaml_text
from openuni.manifests.contracts.schema import clip_schema
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.video.probe import probe_clip
from tests.openuni.exchange.exporters.rooms import QUIET
from tests.raw_clips import write_clips

LINE_ENDS = ["\r", "\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
CAPTIONS = [
    *(f"one{end}two" for end in LINE_ENDS),
    *('=HYPERLINK("http://host","x")', "+1+1", "-2+3", "- a list", "@SUM(A1)", "'=x", "''@y", "'quoted'", "a = b"),
    *('He said "go", twice', " padded \u2028", "\tindented", "\x7f\x80\x1b[31mred", "\ufffe\U0001f3ac", "NA"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """One video, once per caption: rows as any importer may write them."""
    folder = tmp_path_factory.mktemp("captions")
    clip = probe_clip(str(write_clips(folder / "raw", 1, frames=2)[0]))
    corpus = Corpus.create(str(folder / "corpus"))
    writer = corpus.writer("clips", clip_schema(), "1")
    for number, caption in enumerate(CAPTIONS):
        row = dataclasses.replace(clip, clip_id=f"{number:032x}", caption=caption)
        writer.commit(dataclasses.asdict(row) | {"status": "ok", "error": None})
    writer.finish()
    return Corpus.open(str(folder / "corpus"))


@pytest.fixture(scope="module")
def exported(request, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "set"
    assert openuni.export(corpus, request.param, out=out, reporter=QUIET).failed == []
    return request.param, out


@pytest.mark.parametrize("exported", ["openuni_csv", "diffsynth"], indirect=True)
def test_csvs_have_one_row_per_clip_for_every_reader(exported):
    _, out = exported
    with (out / "metadata.csv").open(encoding="utf-8", newline="") as file:
        prompts = [row["prompt"] for row in csv.DictReader(file)]
    assert [unguarded(prompt) for prompt in prompts] == CAPTIONS
    assert not any(prompt.startswith(tuple("=+-@\t\r")) for prompt in prompts)
    assert [prompt for prompt, caption in zip(prompts, CAPTIONS, strict=True) if prompt != caption] == [
        f"'{caption}" for caption in CAPTIONS if guarded(caption) != caption
    ]
    assert pandas.read_csv(out / "metadata.csv", keep_default_na=False)["prompt"].tolist() == prompts


@pytest.mark.parametrize("exported", ["openuni_csv", "diffsynth", "univid"], indirect=True)
def test_lines_have_the_captions_unchanged(exported):
    _, out = exported
    lines = (out / "clips.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["caption"] for line in lines] == CAPTIONS


@pytest.mark.parametrize("caption", CAPTIONS)
def test_yaml_has_the_caption_unchanged(caption):
    assert yaml.safe_load(yaml_text({"prompt": caption}))["prompt"] == caption


@pytest.mark.parametrize("exported", ["openuni_csv", "webdataset"], indirect=True)
def test_imports_bring_the_same_captions_back(exported, tmp_path):
    name, out = exported
    corpus = openuni.import_set(name, out, out=tmp_path / "corpus", reporter=QUIET)
    found = {Path(row["source"]).stem: row["caption"] for row in corpus.table("clips").to_pylist()}
    assert corpus.summary().ok == len(CAPTIONS)
    assert sorted(row["caption"] for row in corpus.table("clips").to_pylist()) == sorted(CAPTIONS)
    if name == "openuni_csv":
        assert found == {f"{number:032x}": caption for number, caption in enumerate(CAPTIONS)}


def test_an_edited_cell_is_the_caption_and_foreign_csvs_are_taken_as_they_are(corpus, tmp_path):
    openuni.export(corpus, "openuni_csv", out=tmp_path / "set", reporter=QUIET)
    path = tmp_path / "set/metadata.csv"
    path.write_bytes(path.read_bytes().replace(b"'+1+1", b"'+2").replace(b"a = b", b"edited"))
    for name, captions in (("ours", {"+2", "edited", "'=x"}), ("foreign", {"'+2", "edited", "''=x"})):
        if name == "foreign":
            (tmp_path / "set/clips.jsonl").unlink()
            (tmp_path / "set/export.json").unlink()
        back = openuni.import_set("openuni_csv", tmp_path / "set", out=tmp_path / name, reporter=QUIET)
        assert captions <= {row["caption"] for row in back.table("clips").to_pylist()}


def test_failures_are_one_row_each(tmp_path):
    failures = [
        ExportFailure("a", "/raw/a\rb.mp4", "=1+1"),
        ExportFailure("b", "s3://x", "two\nlines, \u2028 one cell"),
    ]
    write_failures(tmp_path / "failed.csv", failures[:1], "w")
    write_failures(tmp_path / "failed.csv", failures[1:], "a")
    with (tmp_path / "failed.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == list(ExportFailure._fields) and rows[1][2] == "'=1+1"
    assert [ExportFailure(*map(unguarded, row)) for row in rows[1:]] == failures

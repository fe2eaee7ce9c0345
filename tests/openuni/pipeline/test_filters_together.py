"""Filters of one run share one decode, and a codec without motion vectors is no failure of its clips."""

import json
from pathlib import Path

import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.contracts.operator import operator_names
from openuni.manifests.contracts.schema import OUTCOME_FIELDS
from openuni.manifests.video import probe, reader
from openuni.pipeline.runners.resources import Resources
from openuni.pipeline.scope import RunScope
from tests.coded_clips import encode
from tests.moving_pictures import panned

FILTERS = ("luminance", "motion", "motion_vectors", "ocr", "resolution", "sharpness", "still")
KEEP = "motion_vectors.length_sides > 0.001"
PICTURES = list(panned([(4 * index, 2 * index) for index in range(30)], 96, 128))
OUTCOME = {field.name for field in OUTCOME_FIELDS}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    encode(folder / "vectors.mp4", "libx264", range(30), {"crf": "12"}, pictures=PICTURES)
    encode(folder / "none.webm", "libvpx-vp9", range(30), {"crf": "15", "b": "0", "cpu-used": "8"}, pictures=PICTURES)
    return folder


def run(raw, out, keep="", **scope):
    recipe = {"keep": keep, "filters": {name: {} for name in FILTERS}}
    how = {"scope": RunScope(**scope), "reporter": Reporter(quiet=True), "resources": Resources(workers=0)}
    return openuni.run(recipe, raw, out=out, **how)


def test_every_clip_is_opened_once_for_all_filters(raw, tmp_path, monkeypatch):
    run(raw, tmp_path / "corpus", only=("ingest",))
    opened, real = [], reader.open_video

    def noted(source, *more, **named):
        opened.append(source.rpartition("/")[2])
        return real(source, *more, **named)

    monkeypatch.setenv("OPENUNI_DECODER", "in-process")
    monkeypatch.setattr(reader, "open_video", noted)
    monkeypatch.setattr(probe, "open_video", noted)
    corpus = run(raw, tmp_path / "corpus")
    assert sorted(opened) == ["none.webm", "vectors.mp4"]
    assert set(FILTERS) <= set(operator_names("filter"))
    assert all(corpus.table(f"filters/{name}").num_rows == 2 for name in FILTERS)


@pytest.fixture(scope="module")
def corpus(raw, tmp_path_factory):
    return run(raw, tmp_path_factory.mktemp("made") / "corpus", KEEP)


def rows(corpus, name):
    sources = {row["clip_id"]: row["source"].rpartition("/")[2] for row in corpus.table("clips").to_pylist()}
    return {sources[row["clip_id"]]: row[name] for row in corpus.table(f"filters/{name}").to_pylist()}


def test_a_codec_without_vectors_gives_a_row_that_says_unavailable_with_null_scores(corpus):
    found = rows(corpus, "motion_vectors")
    lacks = found["none.webm"]
    assert (lacks["status"], lacks["ms"]) == ("unavailable", None)
    assert lacks["error"] == "Unavailable: motion vectors of vp9 cannot be read; `motion` supports any codec"
    assert {value for key, value in lacks.items() if key not in OUTCOME} == {None}
    assert found["vectors.mp4"]["status"] == "ok" and found["vectors.mp4"]["length_sides"] > 0.01


def test_the_other_filters_have_scores_for_both(corpus):
    for name in set(FILTERS) - {"motion_vectors"}:
        assert {row["status"] for row in rows(corpus, name).values()} == {"ok"}, name


def test_null_never_passes_and_the_ledger_says_why(corpus):
    summary = corpus.summary()
    assert (summary.clips, summary.ok, summary.failed, summary.pending) == (2, 1, [], 0)
    assert [tuple(drop) for drop in summary.dropped] == [(KEEP, 1)]
    assert [tuple(absence) for absence in summary.unavailable] == [("motion_vectors", 1)]
    assert str(summary).endswith("motion_vectors is unavailable for 1 of 2 clips")


def test_without_a_rule_about_it_the_clip_is_ok(raw, tmp_path, corpus):
    summary = run(raw, tmp_path / "corpus").summary()
    assert (summary.ok, summary.dropped, summary.failed) == (2, [], [])
    assert summary.unavailable == corpus.summary().unavailable


def test_the_phase_has_no_failures(corpus):
    (ledger,) = (json.loads(path.read_text()) for path in (Path(corpus.store.url) / "runs").glob("*.json"))
    assert {phase["failed"] for phase in ledger["phases"]} == {0}
    assert ledger["summary"]["unavailable"] == [{"operator": "motion_vectors", "clips": 1}]


def test_it_counts_as_done_and_is_not_computed_again(corpus, raw):
    before = corpus.table("filters/motion_vectors").to_pylist()
    again = run(raw, corpus.store.url, KEEP)
    assert again.table("filters/motion_vectors").to_pylist() == before

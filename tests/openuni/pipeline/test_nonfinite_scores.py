"""Scores that are NaN or infinite: null in the row, and never a pass, also in rows that older versions wrote."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.contracts import schema
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.flow import FlowConstants
from openuni.report.explain import explain
from openuni.report.histograms import histograms
from tests.command_line import cli
from tests.raw_clips import write_clips

NAME = "tests.operators.nonfinite"
KEEP = f'"{NAME}".mean > 0.5'


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_clips(folder, 2)
    return folder


def run(raw: Path, out: Path, keep: str = "", **options: object) -> Corpus:
    tables = {"keep": keep, "filters": {NAME: options}}
    return openuni.run(tables, raw, out=out, reporter=Reporter(quiet=True))


def names(corpus: Corpus, keep: str) -> list[str]:
    sources = {row["clip_id"]: Path(row["source"]).stem for row in corpus.clips.to_pylist()}
    return [sources[clip_id] for clip_id in corpus.kept_clip_ids(keep)]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_scores_become_null_at_any_depth(raw: Path, tmp_path: Path, value: str) -> None:
    corpus = run(raw, tmp_path / "corpus", value=value)
    row = corpus[0].row(NAME)
    assert row["status"] == "ok"
    assert (row["mean"], row["single"], row["best"]) == (None, None, {"left": None, "name": "here"})
    assert (row["series"], row["places"]) == ([0.5, None], [{"left": None, "name": "here"}])
    assert row["vector"] == [1.0, 2.0]
    assert corpus[1].row(NAME)["series"] == [0.5, 1.0]
    for rule in ("mean > 0.5", "mean < 1e9", "single > 0", "best.left > 0", "best.left < 2"):
        assert names(corpus, f'"{NAME}".{rule}') == ["clip-001"], rule
    assert names(corpus, f'not "{NAME}".mean > 5') == ["clip-001"]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_vector_fails_as_a_whole(raw: Path, tmp_path: Path, value: str) -> None:
    corpus = run(raw, tmp_path / "corpus", value=value, vectors=True)
    row = corpus[0].row(NAME)
    assert (row["status"], row["vector"]) == ("failed", None)
    assert row["error"] == f"ClipError: {NAME}.vector: 1 of 2 components are NaN or infinite"
    assert corpus[1].row(NAME)["vector"] == [1.0, 2.0]
    assert [failure[:3] for failure in corpus.summary().failed] == [(NAME, "ClipError", 1)]


def test_constants_of_a_map_must_be_finite() -> None:
    assert schema.stored_constants(FlowConstants(0.5, 2.0, False), "dis.flow")["divisor_px"] == 2.0
    with pytest.raises(ClipError, match=r"dis\.flow: constant divisor_px must be finite, got inf"):
        schema.stored_constants(FlowConstants(0.5, float("inf"), False), "dis.flow")


def older(corpus: Corpus, value: float) -> Corpus:
    """The corpus as a version before would have stored it: the first clip's scores are `value` in its Parquet file."""
    (part,) = corpus.parts(f"filters/{NAME}")
    path = corpus.store.local(part)
    table = pq.read_table(path)
    rows = table.to_pylist()
    scores = rows[0][NAME]
    scores |= {"mean": value, "single": value, "best": {"left": value, "name": "here"}, "series": [value]}
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    return Corpus.open(corpus.store.url)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_of_older_corpora_never_pass_either(raw: Path, tmp_path: Path, value: float) -> None:
    corpus = older(run(raw, tmp_path / "corpus", keep=KEEP), value)
    assert np.array_equal(corpus[0].row(NAME)["mean"], value, equal_nan=True)  # the row itself is not changed
    scores = f'"{NAME}"'
    for rule in (f"{scores}.mean > 0.5", f"{scores}.mean < 1e9", f"{scores}.best.left > 0", f"{scores}.single > 0"):
        assert names(corpus, rule) == ["clip-001"], rule
    for rule in (f"list_max({scores}.series) > 0", f"struct_extract({scores}, 'mean') > 0", f"{scores}.mean * 2 > 0"):
        assert names(corpus, rule) == ["clip-001"], rule
    summary = corpus.summary()
    assert (summary.ok, [drop.clips for drop in summary.dropped]) == (1, [1])
    assert "null: fails" in explain(corpus, "clip-000.mp4")
    assert [line.split()[1:4] for line in histograms(corpus).splitlines() if ".mean " in line] == [["1", "1", "1"]]
    selected = openuni.select(corpus, KEEP, out=tmp_path / "selected")
    assert names(selected, "") == ["clip-001"]
    done = cli("export", corpus.store.url, "--format", "openuni_csv", "--out", tmp_path / "csv")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "csv" / "metadata.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1
    rerun = run(raw, tmp_path / "corpus", keep=KEEP)
    assert names(rerun, KEEP) == ["clip-001"] and rerun.summary().ok == 1


@pytest.mark.parametrize(
    ("rule", "passes"),
    [
        ("{n}.mean / 0 > 1", False),  # inf
        ("({n}.mean - 1) / 0 > 1", False),  # NaN
        ("not ({n}.mean - 1) / 0 > 1", False),
        ("sqrt(-{n}.mean) > 0", False),
        ("ln({n}.mean - 1) < 0", False),
        ("greatest(({n}.mean - 1) / 0, 2) > 1", False),
        ("({n}.mean - 1) / 0 between -1 and 1e300", False),
        ("not ({n}.mean / 0 between 0 and 1)", False),
        ("width_px between 1 and {n}.mean / 0", False),
        ("{n}.mean * 2 between 1 and 3", True),
        ("{n}.mean / 2 = 0.5", True),
        ("upper(source) like '%CLIP-001.MP4'", True),
        ("concat('n', 'an') = 'nan'", True),  # text that only looks so
    ],
)
def test_arithmetic_in_a_rule_that_has_no_result_is_null(corpus: Corpus, rule: str, passes: bool) -> None:
    found = names(corpus, f"{rule.format(n=chr(34) + NAME + chr(34))} and source like '%clip-001.mp4'")
    assert found == (["clip-001"] if passes else [])


@pytest.fixture(scope="module")
def corpus(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return run(raw, tmp_path_factory.mktemp("corpus") / "corpus")

"""Tables of what a corpus holds."""

from pathlib import Path

import openuni
from openuni.console.progress import Reporter
from openuni.console.text_table import format_columns
from openuni.manifests.corpus.coverage import StoredSize, coverage, stored_sizes
from openuni.report.coverage import format_coverage, format_sizes
from tests.bare_corpora import bare_corpus
from tests.manifests.corpus.test_coverage import CLIPS
from tests.raw_clips import write_clips


def test_columns_stand_under_one_another():
    assert format_columns([("a", "1"), ("bcd", "234")], right=(1,)) == ["a      1", "bcd  234"]
    assert format_columns([("a", "1"), ("bcd", "234")]) == ["a    1", "bcd  234"]
    assert format_columns([]) == []


def test_coverage_as_text(tmp_path):
    text = format_coverage(coverage(bare_corpus(tmp_path / "corpus", CLIPS))).splitlines()
    assert len({len(line) for line in text}) == 1
    assert text[0].split()[:3] == ["collection", "clips", "caption"]
    assert format_coverage([]) == ""


def test_sizes_are_those_of_the_files_in_the_shards(tmp_path):
    write_clips(tmp_path / "raw", 3)
    recipe = {"work": {"short_side_px": 32}, "annotators": {"dis": {"preset": "ultrafast"}}}
    corpus = openuni.run(recipe, tmp_path / "raw", out=tmp_path / "corpus", reporter=Reporter(quiet=True))
    payloads = [clip.row("dis")["flow"]["nbytes"] for clip in corpus]
    assert stored_sizes(corpus) == [StoredSize("flow", "dis", 3, sum(payloads), max(payloads))]
    assert 0 < sum(payloads) < sum(path.stat().st_size for path in Path(corpus.store.root).rglob("*.tar"))


def test_sizes_as_text():
    lines = format_sizes([StoredSize("flow", "dis", 2000, 16_000_000_000, 9_000_000)]).splitlines()
    assert lines[1].split() == ["flow", "dis", "2,000", "8.000", "9.000", "16.000", "GB"]
    assert format_sizes([]) == ""

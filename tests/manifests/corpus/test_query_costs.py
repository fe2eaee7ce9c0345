"""What queries cost: how often parts are opened, and time and memory against bare DuckDB on the same files."""

from collections import Counter

import pytest

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.coverage import coverage, stored_sizes
from openuni.manifests.corpus.parts import part_files
from openuni.manifests.corpus.parts.compaction import compact
from tests.benchmarks.manifests import SELECT, build, measure
from tests.small_parts import GROUPS, seen, small_parts

ROWS = 100_000
IMPORTS_S = 3.0  # CPU time of a process that only imports; the machine of a test is rarely idle
MAX_RATIO = 6.0  # of CPU time to bare DuckDB's
MAX_MB = 700.0


@pytest.fixture
def opened(monkeypatch) -> Counter[str]:
    """How often each part was opened."""
    counts: Counter[str] = Counter()
    original = part_files.CheckedFile

    def count(store, name):
        counts[name] += 1
        return original(store, name)

    monkeypatch.setattr(part_files, "CheckedFile", count)
    return counts


def test_small_parts_are_opened_once_for_all_queries_of_a_command(tmp_path, opened):
    url = small_parts(tmp_path / "corpus", parts=12).store.url
    opened.clear()
    corpus = Corpus.open(url)
    assert corpus.summary() and coverage(corpus) and stored_sizes(corpus) and corpus.kept_clip_ids() == []
    corpus.require_shards(corpus.groups())
    first = {corpus.parts(group)[0] for group in GROUPS}  # whose schema counts for its group
    assert len(opened) == 36 and {count for name, count in opened.items() if name not in first} == {1}


def test_rows_of_small_parts_are_read_again_once_one_was_written(tmp_path):
    corpus = small_parts(tmp_path / "corpus", parts=6)
    before = seen(corpus.store.url)
    assert corpus.table("clips").to_pylist() == before["clips"]
    other = Corpus.open(corpus.store.url)
    other.rewrite("clips", lambda rows: rows.slice(0, 1) if rows["clip_id"][0].as_py() == "clip-3-0" else rows)
    assert len(corpus.table("clips")) == 11
    compact(other, "clips")
    assert len(corpus.table("clips")) == 11 and len(corpus.parts("clips")) == 1


@pytest.mark.slow
def test_queries_of_100_000_clips_take_a_few_times_what_bare_duckdb_takes(tmp_path):
    folder = str(tmp_path / "corpus")
    build(folder, ROWS, 20_000)
    child = ("-m", "tests.benchmarks.manifests", "--child")
    cut = ("-m", "openuni", "select", folder, "--keep", SELECT, "--out", str(tmp_path / "cut"))
    for query, command in (("summary", ("-m", "openuni", "summary", folder)), ("select", cut)):
        bare = measure(query, *child, f"{query} by DuckDB", folder)
        ours = measure(query, *command)
        assert ours.cpu_s < IMPORTS_S + MAX_RATIO * bare.cpu_s and ours.peak_mb < MAX_MB, (ours, bare)
    split = measure("split", "-m", "openuni", "split", folder)
    assert split.cpu_s < IMPORTS_S + MAX_RATIO * bare.cpu_s and split.peak_mb < MAX_MB, (split, bare)

"""A run holds no more at its end than early on: memory, open files, threads, in the driver and in a Ray worker."""

import pytest

from tests.benchmarks.memory import pending_marks, run_marks

MAX_GROWTH_MB = 12.0  # from two fifths of the clips to the last: 80 or 200 KB for each of them
CLIPS = {0: 250, 1: 100}  # by workers: Ray takes its time


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_memory_does_not_grow_with_the_clips(tmp_path, workers):
    taken = run_marks(tmp_path, CLIPS[workers], workers)
    phases = {name.partition(",")[0] for name in taken}
    assert phases == {"ingest", "3 filters", "dis"}
    assert any(name.endswith("worker") for name in taken) == bool(workers)
    for name, marks in taken.items():
        assert len(marks) > 3, name
        second, last = marks[1], marks[-1]
        assert last.rss_mb - second.rss_mb < MAX_GROWTH_MB, name
        assert last.files <= second.files + 5, name
        assert last.threads <= second.threads + 5, name


def test_pending_items_are_drawn_as_they_are_needed():
    marks = pending_marks(20_000, workers=0)
    assert marks[-1].rss_mb - marks[1].rss_mb < 2  # 20,000 items are some 4 MB

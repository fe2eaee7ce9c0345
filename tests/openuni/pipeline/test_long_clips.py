"""A clip whose decoded frames would be too large is a failed row that names the option to raise."""

import openuni
from openuni.pipeline.scope import RunScope
from tests.raw_clips import contents, write_clips

CLIP_GB = 6 * 48 * 64 * 3 / 1e9


def run(tmp_path, max_decoded_gb, **scope):
    recipe = {"filters": {"motion": {}}, "annotators": {"dis": {}}, "work": {"max_decoded_gb": max_decoded_gb}}
    return openuni.run(recipe, str(tmp_path / "raw"), out=tmp_path / "out", scope=RunScope(**scope))


def test_a_clip_over_the_limit_fails_and_is_retried_with_a_larger_one(tmp_path):
    write_clips(tmp_path / "raw", 1)
    write_clips(tmp_path / "long", 2, frames=12)
    (tmp_path / "long/clip-001.mp4").rename(tmp_path / "raw/long.mp4")

    corpus = run(tmp_path, 1.5 * CLIP_GB)
    rows = [row["dis"] for row in corpus.table("annotations/dis").to_pylist()]
    errors = [row["error"] for row in rows if row["status"] == "failed"]
    assert len(rows) == 2 and len(errors) == 1
    assert "12 frames of 64x48 need" in errors[0] and "raise [work] max_decoded_gb" in errors[0]
    assert {row["motion"]["status"] for row in corpus.table("filters/motion").to_pylist()} == {"ok"}

    before = contents(corpus)["filters/motion"]
    again = run(tmp_path, 4.0, retry_failed=True)
    assert [row["dis"]["status"] for row in again.table("annotations/dis").to_pylist()] == ["ok", "ok"]
    assert contents(again)["filters/motion"] == before
    assert not list((tmp_path / "out").rglob("superseded")), "another limit is not another version"

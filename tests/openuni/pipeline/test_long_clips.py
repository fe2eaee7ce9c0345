"""A clip over the limit of decoded frames goes through operators in windows, or is a failed row with what to do."""

import json
from types import SimpleNamespace

import pytest

import openuni
from openuni.manifests.corpus.parts import spool
from openuni.pipeline.long_clips.worker import WindowedWorker
from openuni.pipeline.scope import RunScope
from tests.raw_clips import contents, write_clips

FRAME_GB = 48 * 64 * 3 / 1e9
FILTERS = {
    "motion": {"pairs_per_s": 12},
    "motion_vectors": {},
    "luminance": {},
    "sharpness": {"frames_per_s": 12},
    "still": {"pairs_per_s": 9},
    "resolution": {"frames_per_s": 25},
    "flow_score": {"step_frames": 3},
    "perceptual_hash": {"frames_per_s": 25},
}
ANNOTATORS = {"dis": {}, "template_caption": {}}
DEPTH = "tests.operators.window_maps"


def run(tmp_path, frames, out="out", *, filters=FILTERS, annotators=ANNOTATORS, work=None, **scope):
    """A run whose limit is so many frames."""
    work = {"max_decoded_gb": frames * FRAME_GB} | (work or {})
    tables = {"filters": filters, "annotators": annotators, "work": work}
    return openuni.run(tables, str(tmp_path / "raw"), out=tmp_path / out, scope=RunScope(**scope))


def rows(corpus, group):
    return [row[group.partition("/")[2]] for row in corpus.table(group).to_pylist()]


def statuses(corpus, group):
    return {row["status"] for row in rows(corpus, group)}


@pytest.fixture
def raw(tmp_path):
    write_clips(tmp_path / "raw", 2, frames=21)
    return tmp_path


@pytest.mark.parametrize("frames", [3.2, 4.5, 20.9])
def test_windows_give_the_rows_and_maps_of_the_whole_clip(raw, frames):
    whole, windows = run(raw, 1e5, "whole"), run(raw, frames, "windows")
    assert contents(windows) == contents(whole)
    groups = [*(f"filters/{name}" for name in FILTERS), *(f"annotations/{name}" for name in ANNOTATORS)]
    assert [statuses(windows, group) for group in groups] == [{"ok"}] * len(groups)
    assert not [path for path in (raw / "windows").rglob(".open/*") if path.is_file()], "nothing is left on disk"
    ledger = json.loads(max((raw / "windows/runs").glob("*.json")).read_text())
    assert [phase["decodes"] for phase in ledger["phases"][1:]] == [2, 2], "one decode serves all operators"


@pytest.mark.parametrize(
    ("frames", "annotators", "clips_in_windows"),
    [(80, ("dis",), 2), (90, ("dis",), 0), (80, ("dis", "retinex"), 0)],  # clips of 21 frames; a quarter is 20 or 22.5
)
def test_clips_above_a_quarter_of_the_limit_go_in_windows_if_all_annotators_can(
    raw, monkeypatch, frames, annotators, clips_in_windows
):
    whole, large = run(raw, 1e5, "whole", annotators={name: {} for name in annotators}), []
    compute = WindowedWorker.compute_long
    monkeypatch.setattr(WindowedWorker, "compute_long", lambda *given: large.append(given) or compute(*given))
    found = run(raw, frames, annotators={name: {} for name in annotators})
    assert (contents(found), len(large)) == (contents(whole), clips_in_windows)


def test_another_limit_is_not_another_version(raw):
    before = contents(run(raw, 1e5))
    assert contents(run(raw, 4)) == before
    assert not list((raw / "out").rglob("superseded"))


def test_an_operator_without_windows_fails_with_what_to_do_and_is_retried(raw):
    annotators = {"retinex": {}, "dis": {}}
    corpus = run(raw, 10.5, filters={}, annotators=annotators)
    assert statuses(corpus, "annotations/dis") == {"ok"}
    for row in rows(corpus, "annotations/retinex"):
        assert row["status"] == "failed"
        for text in ("retinex needs all 21 frames at once", "64x48", "max_s", "short_side_px", "max_decoded_gb"):
            assert text in row["error"]
    again = run(raw, 1e5, filters={}, annotators=annotators, retry_failed=True)
    assert statuses(again, "annotations/retinex") == {"ok"}


def test_a_filter_without_windows_gets_its_sample_if_that_is_within_the_limit(raw):
    filters = {"sharpness": {"frames_per_s": 25}, "ocr": {"max_frames": 4, "frames_per_s": 9.0}}
    whole = run(raw, 1e5, "whole", filters=filters, annotators={})
    assert contents(run(raw, 6, "windows", filters=filters, annotators={})) == contents(whole)
    failed = run(raw, 2.5, "failed", filters=filters, annotators={})
    assert statuses(failed, "filters/sharpness") == {"ok"}
    assert {"needs all 4 frames" in row["error"] for row in rows(failed, "filters/ocr")} == {True}


@pytest.mark.parametrize("frames", [1.5, 0.01])
def test_a_limit_below_two_frames_is_a_failed_row(raw, frames):
    corpus = run(raw, frames)
    for group in ("filters/motion", "annotations/dis"):
        assert {row["status"] == "failed" and "max_decoded_gb" in row["error"] for row in rows(corpus, group)} == {True}


def test_annotators_start_from_the_maps_of_others_as_they_are_stored(raw):
    annotators = {DEPTH: {}, "normals_from_depth": {"far_near_ratio": 10.0}}
    whole = run(raw, 1e5, "whole", filters={}, annotators=annotators)
    assert statuses(whole, "annotations/normals_from_depth") == {"ok"}
    assert contents(run(raw, 5, "windows", filters={}, annotators=annotators)) == contents(whole)
    run(raw, 5, "later", filters={}, annotators={DEPTH: {}})
    later = run(raw, 5, "later", filters={}, annotators=annotators)
    assert contents(later) == contents(whole), "maps that are read from the corpus are the same"


def test_a_map_that_is_damaged_in_the_corpus_makes_its_dependents_unavailable(raw):
    annotators = {DEPTH: {}, "normals_from_depth": {"far_near_ratio": 10.0}}
    run(raw, 5, filters={}, annotators={DEPTH: {}})
    (shard,) = (raw / "out").rglob("annotations/**/*.tar")
    data = bytearray(shard.read_bytes())
    data[1500:1510] = bytes(10)
    shard.write_bytes(bytes(data))
    corpus = run(raw, 5, filters={}, annotators=annotators)
    found = rows(corpus, "annotations/normals_from_depth")
    found = sorted((row["status"], "checksum mismatch" in str(row["error"])) for row in found)
    assert found == [("ok", False), ("unavailable", True)]


def test_a_failure_in_a_window_is_that_operators_alone(raw):
    annotators = {DEPTH: {"fails_at": 17}, "dis": {}, "normals_from_depth": {"far_near_ratio": 10.0}}
    corpus = run(raw, 5, filters={}, annotators=annotators)
    assert statuses(corpus, "annotations/dis") == {"ok"}
    assert {"frame 17 cannot be processed" in row["error"] for row in rows(corpus, f"annotations/{DEPTH}")} == {True}
    for row in rows(corpus, "annotations/normals_from_depth"):
        assert row["status"] == "unavailable" and "frame 17 cannot be processed" in row["error"]


def test_maps_that_are_missing_at_the_end_are_a_failed_row(raw):
    corpus = run(raw, 5, filters={}, annotators={DEPTH: {"forgets": 2}})
    assert {row["error"] for row in rows(corpus, f"annotations/{DEPTH}")} == {
        "ClipError: depth has 19 frames, the clip has 21"
    }


def test_out_of_memory_in_a_window_passes_again_with_half_the_batch(raw):
    annotators = {DEPTH: {"frames_per_batch": 4, "fits": 1}, "dis": {}}
    corpus = run(raw, 9, filters={}, annotators=annotators)
    assert {row["frames"] for row in rows(corpus, f"annotations/{DEPTH}")} == {21}
    assert statuses(corpus, "annotations/dis") == {"ok"}


def test_maps_that_need_more_than_half_of_the_free_disk_are_a_failed_row(raw, monkeypatch):
    usage = SimpleNamespace(free=2 * 21 * 48 * 64 * 9 - 1)
    monkeypatch.setattr(spool, "shutil", SimpleNamespace(disk_usage=lambda folder: usage))
    corpus = run(raw, 5, filters={}, annotators={"dis": {}, "template_caption": {}})
    assert {"Allowed: half of the" in row["error"] for row in rows(corpus, "annotations/dis")} == {True}
    assert statuses(corpus, "annotations/template_caption") == {"ok"}


def test_compact_storage_of_windows_is_that_of_the_whole_clip(raw):
    compact = {"storage": "compact"}
    annotators = {"dis": {}, DEPTH: {}}
    whole = run(raw, 1e5, "whole", filters={}, annotators=annotators, work=compact)
    assert contents(run(raw, 4, "windows", filters={}, annotators=annotators, work=compact)) == contents(whole)
    assert statuses(whole, "annotations/dis") == {"ok"}

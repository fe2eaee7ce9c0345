"""Ten minutes of video as one clip, in less memory than its decoded frames take."""

import pytest

import openuni
from tests.benchmarks.long_clips import FILTERS, measure_in_own_process, write_panning

FRAMES, FPS = 7200, 12


@pytest.mark.slow
def test_a_long_video_is_processed_in_bounded_memory(tmp_path):
    write_panning(tmp_path / "long.mp4", FRAMES, FPS)
    recipe = {
        "filters": {name: {} for name in FILTERS if name != "ocr"} | {"luminance": {}, "sharpness": {}},
        "annotators": {"dis": {"preset": "fast"}},
        "work": {"max_decoded_gb": 0.02},
    }
    measured = measure_in_own_process(tmp_path / "long.mp4", tmp_path / "corpus", recipe)
    rows = measured["rows"]
    assert {row["status"] for row in rows.values()} == {"ok"} and measured["clips"] == 1
    # libraries take 0.3 GB; the frames would take 0.27 GB, their flow 0.8 GB
    assert measured["peak_rss_gb"] < 0.55
    assert rows["dis"]["speed_diag_per_s"] == pytest.approx(1 * FPS / 160, rel=0.15)  # the preset is fast, not exact
    assert rows["motion"]["speed_diag_per_s"] == pytest.approx(1 * FPS / 160, rel=0.15)
    assert rows["still"]["frozen_share"] == 0
    clip = openuni.open_corpus(tmp_path / "corpus")[0]
    frames = 0
    for block in clip.modality_blocks("flow", frames_per_block=500):
        frames += len(block.array)
        inner = block.array[:, 16:-16, 16:-16]
        assert abs(inner[..., 0] - 1).mean() < 0.15 and abs(inner[..., 1]).mean() < 0.05
    assert frames == FRAMES

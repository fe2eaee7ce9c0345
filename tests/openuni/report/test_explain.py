"""What a corpus says of one clip, and how its scores are spread."""

from pathlib import Path

import numpy as np
import pytest

import openuni
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.report.explain import explain
from openuni.report.histograms import BARS, BINS, bars, histograms
from tests.raw_clips import write_clips

RECIPE = {
    "keep": "motion.speed_diag_per_s > 0.01 and luminance.mean > 0.05 and caption like 'texture%'",
    "filters": {"motion": {}, "luminance": {}},
    "annotators": {"dis": {}},
    "encode": {"modalities": ["rgb", "flow"], "size_px": [32, 48], "frames": 5},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("explained")
    write_clips(folder / "raw", 5)  # the last one stands still
    (folder / "raw" / "broken.mp4").write_bytes(b"no video at all")
    return openuni.run(RECIPE, folder / "raw", out=folder / "corpus")


def test_a_kept_clip_shows_scores_rules_maps_and_latents(corpus: Corpus) -> None:
    clip = next(iter(corpus))
    text = explain(corpus, clip.clip_id)
    assert f"{clip.row('motion')['speed_diag_per_s']:.6g}" in text
    assert text.count("  passes ") == 3 and "fails" not in text
    assert "6 frames of 64 x 48" in text  # the flow
    assert "ok 48 x 2 x 4 x 6" in text  # the latents
    assert "texture 0 pans by 1 px" in text
    assert explain(corpus, clip.clip.source) == explain(corpus, Path(clip.clip.source).name) == text


def test_a_dropped_clip_shows_the_rule(corpus: Corpus) -> None:
    text = explain(corpus, "clip-004.mp4")
    assert "fails        motion.speed_diag_per_s > 0.01" in text
    assert text.count("  passes ") == 2
    assert "annotator dis: no result for this clip" in text


def test_a_refused_source_shows_the_error(corpus: Corpus) -> None:
    text = explain(corpus, "broken.mp4")
    assert "failed      " in text and "broken.mp4" in text


def test_what_is_not_one_clip_is_an_error(corpus: Corpus) -> None:
    with pytest.raises(OpenUniError, match="matches 6 clips"):
        explain(corpus, "")
    with pytest.raises(OpenUniError, match=r'no clip with id or source "nothing\.mp4"'):
        explain(corpus, "nothing.mp4")
    with pytest.raises(OpenUniError, match=r'source "clip-03.mp4" in .*\. Did you mean "clip-003.mp4"\?'):
        explain(corpus, "clip-03.mp4")


def test_every_score_has_its_line(corpus: Corpus) -> None:
    lines = {line.split()[0]: line for line in histograms(corpus).splitlines()[1:]}
    assert {"motion.speed_diag_per_s", "motion.camera_share", "luminance.mean"} <= set(lines)
    assert not any("status" in name or name.endswith(".ms") for name in lines)
    values = [row["motion"]["speed_diag_per_s"] for row in corpus.table("filters/motion").to_pylist()]
    assert f"{np.median(values):.3g}" in lines["motion.speed_diag_per_s"].split()


def test_bars_have_the_shape_of_the_distribution() -> None:
    one_sided = bars(np.array([0.0] * 90 + [1.0] * 9 + [0.5]), 0.0, 1.0)
    assert len(one_sided) == BINS
    assert one_sided[0] == BARS[-1] and one_sided[-1] == BARS[1] and one_sided.strip("█ ▁") == ""
    assert one_sided.count("▁") == 2  # a single clip is seen
    assert bars(np.array([3.0, 3.0]), 3.0, 3.0)[0] == BARS[-1]  # all alike

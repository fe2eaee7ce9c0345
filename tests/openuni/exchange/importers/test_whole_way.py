"""Another project's set in, a corpus, more annotations, latents, a model trained on them: end to end."""

from pathlib import Path

import numpy as np
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from tests.openuni.exchange.importers.made_sets import bring_in, reasons, write_exr, write_png
from tests.openuni.exchange.importers.rooms import geometry, pictures, render

RECIPE = {
    "keep": "motion.speed_diag_per_s >= 0",
    "filters": {"motion": {}},
    "annotators": {"dis": {"preset": "ultrafast"}},
    "encode": {"size_px": [32, 48], "frames": 5},
}


def annotated_and_encoded(corpus: Corpus, modalities: list[str]) -> Corpus:
    """The same corpus after a run without sources: filters, an annotator, latents of its own and the imported maps."""
    recipe = RECIPE | {"encode": RECIPE["encode"] | {"modalities": modalities}}
    return openuni.run(recipe, out=corpus.store.url, reporter=Reporter(quiet=True))


def trained(corpus: Corpus, out: Path) -> int:
    return openuni.train("unityvideo_debug", corpus, out=out).checkpoint.step


@pytest.mark.timeout(600)
def test_an_interior_set_is_trained_on(tmp_path):
    for number in range(4):
        room = render(9, phase=0.15 * number)
        for name, frames in room._asdict().items():
            write_exr(tmp_path / f"set/attic_{number}" / name, frames)
        (tmp_path / f"set/attic_{number}/caption.txt").write_text(f"an attic, seen for the time {number}")
    corpus = bring_in("interiorvid", tmp_path / "set", tmp_path / "corpus")
    streams = ["rgb", "albedo", "irradiance", "normal", "dis.flow"]
    corpus = annotated_and_encoded(corpus, streams)
    assert reasons(corpus) == {} and corpus.summary().ok == 4 and corpus.summary().pending == 0
    clip = corpus[corpus.kept_clip_ids()[0]]
    assert clip.row("dis")["status"] == "ok" and clip.flow.shape == (*clip.normal.shape[:3], 2)
    (family,) = corpus.families()
    for name in ("rgb", "albedo", "irradiance", "normal", "flow"):
        rows = corpus.table(f"latents/{family}/{name}").to_pylist()
        assert [row["status"] for row in rows] == ["ok"] * 4, name
    assert trained(corpus, tmp_path / "run") == 10


@pytest.mark.timeout(600)
def test_a_matte_set_is_trained_on(tmp_path):
    for number in range(4):
        front = pictures(render(9, phase=0.15 * number))
        alpha = np.minimum(geometry(9)[1], 1).astype(np.uint8) * 255
        write_png(tmp_path / f"set/train/fgr/{number}", np.where(alpha, front, 0).astype(np.uint8))
        write_png(tmp_path / f"set/train/pha/{number}", alpha)
    corpus = bring_in("videomatte", tmp_path / "set", tmp_path / "corpus")
    corpus = annotated_and_encoded(corpus, ["rgb", "alpha", "foreground", "background", "dis.flow"])
    assert reasons(corpus) == {} and corpus.summary().ok == 4
    (family,) = corpus.families()
    for name in ("rgb", "alpha", "foreground", "background", "flow"):
        assert len(corpus.table(f"latents/{family}/{name}")) == 4, name
    assert trained(corpus, tmp_path / "run") == 10

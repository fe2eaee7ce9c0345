"""manifests/README.md shows how others read a corpus: its blocks run here, and what they read is what we wrote."""

from pathlib import Path

import numpy as np
import pytest

import openuni
from openuni.console.progress import Reporter
from tests.docs import blocks
from tests.raw_clips import write_clips

README = Path(__file__).parents[2] / "manifests" / "README.md"
RECIPE = {
    "work": {"short_side_px": 32},
    "filters": {"motion": {}},
    "annotators": {"dis": {"preset": "ultrafast"}},
    "encode": {"modalities": ["rgb", "flow"], "size_px": [32, 48], "frames": 5},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    write_clips(folder / "raw", 3)
    openuni.run(RECIPE, folder / "raw", out=folder / "corpus", reporter=Reporter(quiet=True))
    return folder


def test_the_blocks_read_what_we_wrote(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(place / "cache"))
    corpus = openuni.open_corpus("corpus")
    names: dict = {}
    code = [block.text for block in blocks(README, "python")]
    assert len(code) == 5
    for text in code:
        exec(compile(text, str(README), "exec"), names)
    assert "import openuni" not in "".join(code) and "manifests" not in "".join(code)
    assert len(names["kept"]) == len(corpus) == len(names["rows"])
    clip = corpus[names["row"]["clip_id"]]
    assert abs(names["latent"].std() - names["latent_row"]["std"]) < 1e-3
    difference = np.abs(names["flow_px"] - clip.flow)
    assert difference.max() <= clip.row("dis")["flow"]["step_px"] / 2
    assert "largest motion" in capsys.readouterr().out

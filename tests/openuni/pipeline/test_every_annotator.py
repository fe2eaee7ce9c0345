"""All annotators of the project in one run: each clip is decoded once, every map shows the clip's instants.

OPENUNI_CLIPS names a folder of real clips to do the same on; else moving textures are encoded here.
"""

import dataclasses
import importlib
import json
import os
from pathlib import Path

import pyarrow.compute as pc
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.contracts.operator import Annotator, operator_names
from openuni.manifests.video.clip import pts_hash
from openuni.manifests.video.probe import probe
from tests.moving_pictures import panned
from tests.raw_clips import write_clips

# where several annotators make a map, those that start from one name it
NAMED = {
    "matanyone2": {"masks": "sam.segmentation"},
    "matting": {"masks": "sam.segmentation"},
    "normals_from_depth": {"depth": "video_depth.depth", "far_near_ratio": 4.0},
}
MOVING = panned([(0, 0), (2, 1), (4, 2), (6, 3)], 48, 64)


def annotators(folder: Path) -> dict[str, Annotator]:
    """Every annotator that looks at frames: with its defaults, or with the tiny random checkpoint of its own test."""
    found = {}
    for name in operator_names("annotator"):
        if name == "supplied":
            continue  # needs files beside each clip
        module = importlib.import_module(f"tests.annotators.test_{name}")
        place = folder / name
        place.mkdir()
        case = getattr(module, "contract_case", None)
        found[name] = case(place, MOVING)[0] if case else _default(name)
        found[name] = dataclasses.replace(found[name], **NAMED.get(name, {}))
    return found


def _default(name: str) -> Annotator:
    from openuni.manifests.contracts.operator import find_operator

    return find_operator("annotator", name)()


def _table(operator: Annotator) -> dict:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(operator).items()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all")
    out = folder / "corpus"
    recipe = {
        "work": {"short_side_px": 64},
        "annotators": {name: _table(operator) for name, operator in annotators(folder).items()},
    }
    if "OPENUNI_CLIPS" not in os.environ:
        write_clips(folder / "raw", 2)
        return openuni.run(recipe, folder / "raw", out=out, reporter=Reporter(quiet=True))
    cut = {"ingest": {"shots": "fixed", "max_s": 0.4, "split": "windows"}}
    corpus = openuni.run(cut, os.environ["OPENUNI_CLIPS"], out=out, reporter=Reporter(quiet=True))
    corpus.delete_rows("clips", lambda rows: pc.not_equal(rows["start_cut"], "file"))  # of each file its beginning
    return openuni.run(recipe, out=out, reporter=Reporter(quiet=True))


def test_every_annotator_makes_something_of_every_clip(corpus):
    summary = corpus.summary()
    assert summary.failed == [] and summary.ok == summary.clips >= 2
    assert set(corpus.operators("annotator")) == {name for name in operator_names("annotator") if name != "supplied"}
    for clip in corpus:
        status = {name: clip.row(name)["status"] for name in corpus.operators("annotator")}
        for name in ("matting", "matanyone2"):
            status.pop(name)  # is unavailable where the random masks leave nothing to cut out
        assert set(status.values()) == {"ok"}, {name: clip.row(name)["error"] for name in status}
    assert any(clip.row("matting")["status"] == "ok" for clip in corpus)


def test_each_clip_is_decoded_once_for_all_of_them(corpus):
    path = max(Path(corpus.store.root, "runs").glob("*.json"))
    phases = {phase["phase"]: phase for phase in json.loads(path.read_text())["phases"]}
    (annotating,) = [phase for name, phase in phases.items() if name.endswith("annotators")]
    assert annotating["decodes"] == annotating["planned"] == len(corpus)


def test_streams_have_the_clips_frames_and_instants(corpus):
    for clip in corpus:
        info = probe(clip.clip.source)
        times = info.pts[(info.pts >= clip.clip.start_pts) & (info.pts < clip.clip.end_pts)]
        assert pts_hash(times) == clip.clip.pts_hash
        frames = decode(clip.clip, short_side_px=64).frames
        for name in corpus.operators("annotator"):
            for field, value in clip.row(name).items():
                if isinstance(value, dict) and "shard" in value and value["shard"] is not None:
                    assert value["pts_hash"] == clip.clip.pts_hash and value["frames"] == len(frames)
                    signal = clip.modality(field, name)
                    assert len(signal.array) == len(frames)
                    assert signal.size_px[0] <= frames.shape[1] and signal.size_px[1] <= frames.shape[2]

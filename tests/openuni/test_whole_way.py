"""Raw clips in, a corpus out, a model trained on it, videos made with it: every part at once, on real files."""

import json
import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torchvision.models.optical_flow import raft_small

import openuni
from openuni.manifests.video.encode import write_video
from tests.annotators.test_depth_anything import tiny_checkpoint
from tests.coded_clips import encode
from tests.command_line import cli
from tests.moving_pictures import panned

RECIPE = """
keep = "motion.speed_diag_per_s > 0.001 and luminance.mean > 0.02"
[work]
short_side_px = 128
[filters.motion]
[filters.luminance]
[annotators.dis]
preset = "ultrafast"
[annotators.raft]
size = "small"
checkpoint = "{raft}"
iterations = 1
check = false
[annotators.depth_anything]
checkpoint = "{depth}"
input_size = 70
[encode]
modalities = ["rgb", "depth", "raft.flow"]
size_px = [32, 48]
frames = 5
"""


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """OPENUNI_CLIPS names a folder of real clips to do the same on; else clips in four codecs are encoded here."""
    if "OPENUNI_CLIPS" in os.environ:
        return Path(os.environ["OPENUNI_CLIPS"])
    folder = tmp_path_factory.mktemp("raw")
    pictures = panned([(3 * index, index) for index in range(10)], 144, 192)
    write_video(folder / "h264.mp4", pictures, 25.0)
    for codec, name in (("libx265", "hevc.mp4"), ("libsvtav1", "av1.mkv"), ("libvpx-vp9", "vp9.webm")):
        encode(folder / name, codec, range(len(pictures)), pictures=list(pictures))
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    torch.manual_seed(0)
    torch.save(raft_small().state_dict(), folder / "raft.pth")
    path = folder / "corpus.toml"
    path.write_text(RECIPE.format(raft=folder / "raft.pth", depth=tiny_checkpoint(folder)))
    return path


@pytest.mark.timeout(900)
def test_raw_clips_to_generated_videos(raw, recipe, tmp_path, ray_address):
    assert cli("doctor", recipe).returncode == 0
    done = cli("run", recipe, raw, "--out", tmp_path / "corpus", "--workers", 1, "--gpus", 0, "--address", ray_address)
    assert done.returncode == 0, done.stderr
    corpus = openuni.open_corpus(tmp_path / "corpus")
    assert corpus.summary().ok >= 4 and corpus.summary().pending == 0
    codecs = set(corpus.table("clips").column("codec").to_pylist())
    assert {"h264", "hevc", "av1"} <= codecs
    clip = corpus[corpus.kept_clip_ids()[0]]
    assert clip.depth.shape[:3] == clip.modality("flow", "raft").array.shape[:3]
    assert min(clip.depth.shape[1:3]) == 128 or clip.clip.height_px < 128
    with pytest.raises(openuni.OpenUniError, match="several annotators produced flow: dis, raft"):
        _ = clip.flow

    trained = cli("train", "unityvideo_debug", "--corpus", tmp_path / "corpus", "--out", tmp_path / "run")
    assert trained.returncode == 0, trained.stderr
    made = tmp_path / "made"
    generated = cli(
        *("generate", tmp_path / "run", "--make", "rgb", "--make", "depth"),
        *("--prompt", "a texture", "--steps", 2, "--out", made),
    )
    assert generated.returncode == 0, generated.stderr
    files = {f"{name}.{suffix}" for name in ("rgb", "depth") for suffix in ("mp4", "npy")}
    assert {path.name for path in made.iterdir()} == files | {"generation.json"}
    assert np.load(made / "depth.npy").shape == (5, 32, 48, 1)
    with av.open(str(made / "rgb.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5

    estimated = cli(
        *("generate", tmp_path / "run", "--make", "depth", "--given", f"rgb={made / 'rgb.mp4'}"),
        *("--steps", 2, "--out", tmp_path / "estimated"),
    )
    assert estimated.returncode == 0, estimated.stderr
    assert np.load(tmp_path / "estimated" / "depth.npy").shape == (5, 32, 48, 1)
    refused = cli("generate", tmp_path / "run", "--make", "segmentation", "--out", tmp_path / "no")
    assert refused.returncode == 2 and "was not trained for" in refused.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["format"] == 1

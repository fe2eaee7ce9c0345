import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from openuni.annotators.depth_anything_3 import DepthAnything3, enlarged, joined, passes
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.manifests.hosting.process import HostedModel
from tests import depth_anything_3_signature as signature
from tests.moving_pictures import panned

REAL_PYTHON = os.environ.get("OPENUNI_DEPTH_ANYTHING_3_PYTHON", "")


def saved(folder, name="da3-base", **weights):
    """A checkpoint of the stand-in: its configuration, and one number that scales the depth."""
    path = folder / name
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_name": name}))
    save_file(weights or {"model.scale": torch.ones(1)}, path / "model.safetensors")
    return str(path)


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: the interface of the package, which needs an environment of its own."""
    for name, module in signature.modules().items():
        sys.modules.setdefault(name, module)
    return DepthAnything3(checkpoint=saved(folder), input_size=56), DecodedClip.from_frames(frames)


@pytest.fixture
def package(monkeypatch):
    for name, module in signature.modules().items():
        monkeypatch.setitem(sys.modules, name, module)


def annotate(operator, frames):
    return operator.run(operator.load("cpu"), DecodedClip.from_frames(frames))


def greys(*levels):
    """Frames of one grey level each, uint8 [T, 28, 56, 3]."""
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), 28, 56, 3)).copy()


@pytest.mark.parametrize(
    ("count", "length", "shared", "spans"),
    [
        (1, 4, 1, [(0, 1)]),
        (4, 4, 1, [(0, 4)]),
        (5, 4, 1, [(0, 4), (1, 5)]),
        (10, 4, 1, [(0, 4), (3, 7), (6, 10)]),
        (11, 4, 2, [(0, 4), (2, 6), (4, 8), (6, 10), (7, 11)]),
    ],
)
def test_passes_cover_the_clip_and_share_frames(count, length, shared, spans):
    found = [(one.start, one.stop) for one in passes(count, length, shared)]
    assert found == spans
    assert all(before[1] - after[0] >= shared for before, after in itertools.pairwise(found))


def test_passes_of_any_scale_become_one_depth():
    true = np.random.default_rng(0).uniform(1, 5, (23, 4, 6)).astype(np.float32)
    spans = passes(23, 8, 3)
    parts = [true[span] * np.float32(factor) for span, factor in zip(spans, (2.0, 0.1, 7.0, 1.0, 3.0), strict=False)]
    depth, differences = joined(parts, spans, align=True)
    assert np.allclose(depth, 2 * true, rtol=1e-5)
    assert len(differences) == len(spans) - 1
    assert max(differences) < 1e-6


def test_shared_frames_are_blended():
    first, second = np.full((4, 1, 1), 1.0, np.float32), np.full((4, 1, 1), 2.0, np.float32)
    depth, differences = joined([first, second], [slice(0, 4), slice(2, 6)], align=False)
    assert np.allclose(depth.ravel(), [1, 1, 4 / 3, 5 / 3, 2, 2])
    assert differences == [1.0]
    outlier = second.copy()
    outlier[0] = 900  # one wild frame of three does not decide the scale
    depth, _ = joined([first, outlier], [slice(0, 4), slice(1, 5)], align=True)
    assert depth[4, 0, 0] == 1.0


def test_a_clip_of_several_passes_has_one_scale(package, tmp_path):
    levels = (0, 51, 102, 153, 204, 255, 51, 0)
    operator = DepthAnything3(checkpoint=saved(tmp_path), input_size=56, frames_per_pass=3, shared_frames=1)
    found = annotate(operator, greys(*levels))
    assert found.depth.unit == "disparity"
    assert np.allclose(found.depth.array[:, 3, 5, 0], 1 / (1 + np.array(levels) / 255), rtol=1e-5)
    assert found.fov_deg == pytest.approx(2 * np.degrees(np.arctan(28 / 40)))
    assert found.confidence_mean == 1.5
    assert found.pass_change_share == pytest.approx(0, abs=1e-6)
    assert annotate(operator, greys(0, 255)).pass_change_share is None


def test_units_are_those_of_the_network(package, tmp_path):
    metric = DepthAnything3(checkpoint=saved(tmp_path, "da3metric-large"), input_size=56, fov_deg=90.0)
    found = annotate(metric, greys(0, 255))
    assert found.depth.unit == "metres"
    assert np.allclose(found.depth.array[:, 0, 0, 0], np.array([1, 2]) * 28 / 300)  # 28 px are half the width
    assert (found.fov_deg, found.confidence_mean, found.pass_change_share) == (90.0, None, None)
    nested = annotate(DepthAnything3(checkpoint=saved(tmp_path, "da3nested-giant-large"), input_size=56), greys(0, 255))
    assert nested.depth.unit == "metres"
    assert np.allclose(nested.depth.array[:, 0, 0, 0], [1, 2])
    single = annotate(DepthAnything3(checkpoint=saved(tmp_path, "da3mono-large"), input_size=56), greys(0, 255))
    assert single.depth.unit == "disparity"
    assert np.allclose(single.depth.array[:, 0, 0, 0], [1, 0.5])
    assert single.fov_deg is None


def test_the_weights_of_the_file_are_used(package, tmp_path):
    scaled = saved(tmp_path, "da3mono-large", **{"model.scale": torch.full((1,), 4.0)})
    assert np.allclose(annotate(DepthAnything3(checkpoint=scaled, input_size=56), greys(0)).depth.array, 0.25)


def test_maps_have_the_size_of_the_frames(package, tmp_path):
    operator = DepthAnything3(checkpoint=saved(tmp_path), input_size=56)
    for size in ((45, 80), (1, 1), (3, 200)):
        frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
        assert annotate(operator, frames).depth.array.shape == (2, *size, 1)
    ramp = np.arange(4, dtype=np.float32)[None, None]
    assert np.allclose(enlarged(ramp, (1, 8))[0, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])


def test_without_the_package_the_environment_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "depth_anything_3", None)
    with pytest.raises(
        MissingRequirement, match=r'depth-anything-3==0\.1\.1 and addict==2\.4\.0.*requirements = "depth'
    ):
        DepthAnything3(checkpoint=saved(tmp_path)).load("cpu")


def test_wrong_checkpoints_are_explained(package, tmp_path):
    with pytest.raises(MissingRequirement, match="openuni checkpoints get somebody/no-such-depth"):
        DepthAnything3(checkpoint="somebody/no-such-depth").load("cpu")
    path = Path(saved(tmp_path))
    (path / "config.json").write_text('{"model_name": "../../evil"}')
    with pytest.raises(OpenUniError, match=r'model_name in config.json is "../../evil", must be one of \[.da3-base.'):
        DepthAnything3(checkpoint=str(path)).load("cpu")
    (path / "config.json").write_text('{"model_type": "depth_anything"}')
    with pytest.raises(OpenUniError, match="is not a Depth Anything 3 checkpoint: 'model_name'"):
        DepthAnything3(checkpoint=str(path)).load("cpu")
    partial = saved(tmp_path, **{"model.other": torch.ones(1)})
    with pytest.raises(OpenUniError, match=r"1 tensors are missing, such as model\.scale"):
        DepthAnything3(checkpoint=partial).load("cpu")
    (path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(OpenUniError, match="is not a Depth Anything 3 checkpoint"):
        DepthAnything3(checkpoint=str(path)).load("cpu")
    with pytest.raises(OpenUniError, match=r"gives metres for a camera whose field of view is known. Set fov_deg"):
        DepthAnything3(checkpoint=saved(tmp_path, "da3metric-large")).load("cpu")


def test_licences_of_the_authors_checkpoints():
    terms = {one.ref.split("/")[1]: one.terms for one in DepthAnything3.published()}
    assert (terms["DA3-BASE"], terms["DA3METRIC-LARGE"]) == ("permissive", "permissive")
    assert (terms["DA3-GIANT-1.1"], terms["DA3NESTED-GIANT-LARGE-1.1"]) == ("non-commercial", "non-commercial")


@pytest.mark.parametrize(
    "wrong",
    [{"input_size": 500}, {"frames_per_pass": 1}, {"shared_frames": 0}, {"frames_per_pass": 8}, {"fov_deg": -1.0}],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        DepthAnything3(**wrong)


WITH_THE_PACKAGE = """
import sys, numpy as np, torch
from depth_anything_3.api import DepthAnything3
folder, frames = sys.argv[1], np.load(sys.argv[2])
torch.manual_seed(0)
DepthAnything3(model_name="da3-small").save_pretrained(folder)
model = DepthAnything3.from_pretrained(folder).eval()
model.forward = lambda image, *given: model.model(image)  # without autocast, which is 16 bits on every device
torch.set_grad_enabled(False)
found = model.inference(list(frames), process_res=56)
np.savez(sys.argv[3], depth=found.depth, confidence=found.conf, focal_px=found.intrinsics[:, 0, 0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not REAL_PYTHON, reason="OPENUNI_DEPTH_ANYTHING_3_PYTHON names no Python with depth-anything-3")
def test_depth_is_that_of_the_package_in_its_environment(tmp_path):
    """The operator hosted in the package's environment, beside the package's own `inference` on the same weights."""
    frames = panned([(0, 0), (3, 1), (6, 2)], 45, 80)
    np.save(tmp_path / "frames.npy", frames)
    files = [str(tmp_path / name) for name in ("weights", "frames.npy", "found.npz")]
    subprocess.run([REAL_PYTHON, "-c", WITH_THE_PACKAGE, *files], check=True, cwd=tmp_path)
    theirs = np.load(files[2])
    operator = DepthAnything3(checkpoint=files[0], input_size=56)
    hosted = HostedModel(operator, REAL_PYTHON, "cpu", 600.0, 1)
    try:
        found = hosted.run(operator, DecodedClip.from_frames(frames))
    finally:
        hosted.close()
    assert np.ptp(theirs["depth"]) > 0.01
    assert np.allclose(1 / found.depth.array[..., 0], enlarged(theirs["depth"], (45, 80)), rtol=1e-5)
    assert found.confidence_mean == pytest.approx(theirs["confidence"].mean(), rel=1e-5)
    width_px = theirs["depth"].shape[2]
    assert found.fov_deg == pytest.approx(np.median(2 * np.degrees(np.arctan(width_px / 2 / theirs["focal_px"]))))

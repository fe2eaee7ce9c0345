import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from openuni.annotators.matanyone2 import Matanyone2
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import MissingRequirement, OpenUniError, Unavailable
from openuni.manifests.hosting.process import HostedModel
from openuni.manifests.modalities.segmentation import Segmentation
from tests import matanyone2_signature as signature
from tests.moving_pictures import panned

REAL_PYTHON = os.environ.get("OPENUNI_MATANYONE2_PYTHON", "")
CONFIG = {"cfg": {"top_k": 30, "max_internal_size": -1, "model": {"pretrained_resnet": True}}, "single_object": True}


def saved(folder, config=None, **weights):
    """A checkpoint of the stand-in: its options, and one number that scales alpha."""
    path = folder / "tiny_matanyone2"
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config or CONFIG))
    save_file(weights or {"scale": torch.ones(1)}, path / "model.safetensors")
    return str(path)


def squares(count, height_px, width_px, first=0):
    """uint16 [T, H, W, 1]: instance 1 in the middle, half as high and wide as the frame, from frame `first` on."""
    ids = np.zeros((count, height_px, width_px, 1), np.uint16)
    ids[first:, height_px // 4 : -(height_px // 4), width_px // 4 : -(width_px // 4)] = 1
    return ids


def with_masks(frames, ids):
    return dataclasses.replace(DecodedClip.from_frames(frames), maps={"segmentation": Segmentation(ids)})


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: the interface of the package, which needs an environment of its own."""
    for name, module in signature.modules().items():
        sys.modules.setdefault(name, module)
    return Matanyone2(checkpoint=saved(folder)), with_masks(frames, squares(*frames.shape[:3]))


@pytest.fixture
def package(monkeypatch):
    for name, module in signature.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(signature.InferenceCore, "made", [])


def greys(*levels):
    """Frames of one grey level each, uint8 [T, 96, 128, 3]."""
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), 96, 128, 3)).copy()


def test_the_matte_begins_with_the_subjects_first_frame_and_goes_both_ways(package, tmp_path):
    levels = (51, 102, 153, 204, 255)
    operator = Matanyone2(checkpoint=saved(tmp_path), warmup_frames=3, dilate_px=0, erode_px=0)
    ids = squares(5, 96, 128, first=2)
    found = operator.run(operator.load("cpu"), with_masks(greys(*levels), ids))
    alpha = found.alpha.array[..., 0]
    assert np.array_equal(alpha[2], ids[2, ..., 0].astype(np.float32))
    for index in (0, 1, 3, 4):
        assert np.allclose(alpha[index], levels[index] / 255)
    forward, backward = signature.InferenceCore.made
    assert (forward.refined, forward.propagated) == (4, 2)
    assert (backward.refined, backward.propagated) == (4, 2)


def test_one_pass_if_the_first_frame_shows_the_subject(package, tmp_path):
    operator = Matanyone2(checkpoint=saved(tmp_path))
    operator.run(operator.load("cpu"), with_masks(greys(0, 51), squares(2, 96, 128)))
    (core,) = signature.InferenceCore.made
    assert (core.refined, core.propagated) == (11, 1)


def test_the_mask_is_dilated_and_eroded_but_never_to_nothing(package, tmp_path):
    ids = np.zeros((1, 96, 128, 1), np.uint16)
    ids[0, 40:60, 40:80] = 1
    ids[0, 50, 60] = 0  # a hole that dilation closes

    def mask(**options):
        operator = Matanyone2(checkpoint=saved(tmp_path), **options)
        return operator.run(operator.load("cpu"), with_masks(greys(0), ids)).alpha.array[0, ..., 0]

    closed = mask(dilate_px=5, erode_px=5)
    assert closed[41:59, 41:79].all()
    assert closed.sum() == 20 * 40
    assert mask(dilate_px=0, erode_px=0).sum() == 20 * 40 - 1
    assert mask(dilate_px=0, erode_px=99).sum() == 20 * 40 - 1


def test_the_weights_of_the_file_are_used(package, tmp_path):
    operator = Matanyone2(checkpoint=saved(tmp_path, scale=torch.full((1,), 0.5)))
    found = operator.run(operator.load("cpu"), with_masks(greys(0, 204), squares(2, 96, 128)))
    assert np.allclose(found.alpha.array[1], 0.4)


def test_small_frames_have_no_more_matches_than_features(package, tmp_path):
    operator = Matanyone2(checkpoint=saved(tmp_path), max_short_side_px=48)
    network = operator.load("cpu")
    assert operator._options(network, (480, 832)).top_k == 18  # 3 x 6 features of 48 x 83 px
    assert operator._options(network, (480, 832)).max_internal_size == 48
    whole = dataclasses.replace(operator, max_short_side_px=0)
    assert whole._options(network, (480, 832)).top_k == 30
    assert whole._options(network, (480, 832)).max_internal_size == -1
    assert whole._options(network, (33, 20)).top_k == 6
    assert network.cfg.top_k == 30


def test_no_subject_is_unavailable_and_requirements_follow_the_subject(package, tmp_path):
    operator = Matanyone2(checkpoint=saved(tmp_path))
    with pytest.raises(Unavailable, match="no subject"):
        operator.run(operator.load("cpu"), with_masks(greys(0), np.zeros((1, 96, 128, 1), np.uint16)))
    assert operator.requires() == ("segmentation",)
    assert Matanyone2(subject="people", masks="sam3.segmentation").requires() == ("sam3.segmentation", "skeleton")
    assert Matanyone2(subject="people", ids=(2,)).requires() == ("segmentation",)


def test_without_the_package_the_environment_is_explained(tmp_path, monkeypatch):
    for name in signature.modules():
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingRequirement, match=r'matanyone2-runtime==0\.2\.0.*requirements = "matanyone2\.txt"'):
        Matanyone2(checkpoint=saved(tmp_path)).load("cpu")


def test_wrong_checkpoints_are_explained(package, tmp_path):
    with pytest.raises(MissingRequirement, match="openuni checkpoints get somebody/no-such-matte"):
        Matanyone2(checkpoint="somebody/no-such-matte").load("cpu")
    with pytest.raises(OpenUniError, match="is not a MatAnyone 2 checkpoint: 'cfg'"):
        Matanyone2(checkpoint=saved(tmp_path, {"model_type": "vitmatte"})).load("cpu")
    with pytest.raises(OpenUniError, match=r"1 tensors are missing, such as scale"):
        Matanyone2(checkpoint=saved(tmp_path, other=torch.ones(1))).load("cpu")
    path = Path(saved(tmp_path))
    (path / "model.safetensors").unlink()
    torch.save({"scale": torch.ones(1)}, path / "pytorch_model.bin")
    with pytest.raises(OpenUniError, match="is not a MatAnyone 2 checkpoint"):
        Matanyone2(checkpoint=str(path)).load("cpu")
    (chosen,) = Matanyone2().checkpoints()
    assert (chosen.ref, chosen.terms) == ("PeiqingYang/MatAnyone2", "non-commercial")


@pytest.mark.parametrize("wrong", [{"warmup_frames": 0}, {"erode_px": -1}, {"subject": "dog"}, {"ids": (0,)}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        Matanyone2(**wrong)


WITH_THE_PACKAGE = """
import os, sys, matanyone2, numpy as np, torch
from omegaconf import OmegaConf
from matanyone2.inference.inference_core import InferenceCore
from matanyone2.model.matanyone2 import MatAnyone2
from hugging_face.matanyone2_wrapper import matanyone2 as matte
folder, frames, mask = sys.argv[1], np.load(sys.argv[2]), np.load(sys.argv[3])
place = os.path.dirname(matanyone2.__file__)
options = OmegaConf.load(f"{place}/config/eval_matanyone_config.yaml")
options = OmegaConf.masked_copy(options, [key for key in options if key not in ("defaults", "hydra")])
options.model = OmegaConf.load(f"{place}/config/model/base.yaml")
options.model.pretrained_resnet = False
torch.manual_seed(0)
MatAnyone2(options, single_object=True).save_pretrained(folder)
core = InferenceCore(MatAnyone2.from_pretrained(folder), device="cpu")
_, alphas = matte(core, list(frames), mask, r_erode=10, r_dilate=10, n_warmup=3)
np.save(sys.argv[4], np.stack(alphas)[..., 0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not REAL_PYTHON, reason="OPENUNI_MATANYONE2_PYTHON names no Python with matanyone2-runtime")
def test_alpha_is_that_of_the_package_in_its_environment(tmp_path):
    """The operator hosted in the package's environment, beside the package's own function on the same weights."""
    frames, ids = panned([(0, 0), (3, 1), (6, 2)], 96, 128), squares(3, 96, 128)
    np.save(tmp_path / "frames.npy", frames)
    np.save(tmp_path / "mask.npy", ids[0, ..., 0].astype(np.float32) * 255)
    files = [str(tmp_path / name) for name in ("weights", "frames.npy", "mask.npy", "alpha.npy")]
    subprocess.run([REAL_PYTHON, "-c", WITH_THE_PACKAGE, *files], check=True, cwd=tmp_path)
    theirs = np.load(files[3])
    operator = Matanyone2(checkpoint=files[0], warmup_frames=3)
    hosted = HostedModel(operator, REAL_PYTHON, "cpu", 600.0, 1)
    try:
        found = hosted.run(operator, with_masks(frames, ids)).alpha.array[..., 0]
    finally:
        hosted.close()
    assert found.std() > 0.001
    assert np.abs(np.floor(found * 255) - theirs).max() <= 1  # theirs are truncated to 8 bits

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, Sapiens2ForNormalEstimation

from openuni.annotators.sapiens2_normals import Sapiens2Normals
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import ClipError, MissingRequirement, OpenUniError
from openuni.manifests.modalities.segmentation import Segmentation
from tests.annotators import tiny_sapiens2
from tests.moving_pictures import panned
from tests.operator_contract import windows_give_the_same


def saved(folder, **options):
    """A checkpoint for normals, with an input of 64 x 48 px."""
    return tiny_sapiens2.saved(folder, "Sapiens2ForNormalEstimation", 3, pad=True, **options)


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: a tiny random checkpoint in the library's own format."""
    return Sapiens2Normals(checkpoint=saved(folder)), DecodedClip.from_frames(frames)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("sapiens2_normals"))


def annotate(operator, frames, maps=None):
    clip = DecodedClip.from_frames(frames)
    return operator.run(operator.load("cpu"), dataclasses.replace(clip, maps=maps or {}))


def always(folder, vector):
    """A checkpoint that says `vector` of every pixel."""
    checkpoint = Path(saved(folder))
    weights = load_file(checkpoint / "model.safetensors")
    last = sorted(name for name in weights if weights[name].shape[:1] == (3,) and name.startswith("decode_head"))
    for name in last:
        weights[name] = torch.zeros_like(weights[name])
    bias = next(name for name in last if weights[name].dim() == 1)
    weights[bias] = torch.tensor(vector)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return str(checkpoint)


@pytest.mark.parametrize("size", [(45, 80), (80, 45), (64, 48)])
def test_normals_are_those_of_the_library(checkpoint, size):
    frames = panned([(0, 0), (9, 4), (30, 7)], *size)
    found = annotate(Sapiens2Normals(checkpoint=checkpoint, frames_per_batch=3), frames).normal.array
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    network = Sapiens2ForNormalEstimation.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        raw = network(**processor(images=list(frames), return_tensors="pt"))
    maps = processor.post_process_normal_estimation(raw, source_sizes=[size] * 3)
    theirs = torch.stack([one["normals"] for one in maps]).permute(0, 2, 3, 1).numpy()
    unit = theirs / np.linalg.norm(theirs, axis=-1, keepdims=True)  # their resizing shortens vectors
    assert unit.std(axis=(0, 1, 2)).min() > 0.1
    assert np.allclose(found, unit, rtol=0, atol=1e-6)


def test_axes_are_read_as_told_and_the_score_says_which_are_right(tmp_path):
    frames = panned([(0, 0)], 45, 80)
    away = always(tmp_path, [0.3, -0.4, -1.2])  # y down, z away: up and to the viewer
    right = annotate(Sapiens2Normals(checkpoint=away, axes="opencv"), frames)
    assert np.allclose(right.normal.array, np.array([0.3, 0.4, 1.2]) / 1.3, atol=1e-6)
    assert right.facing_share == 1.0
    wrong = annotate(Sapiens2Normals(checkpoint=away), frames)
    assert np.allclose(wrong.normal.array, np.array([0.3, -0.4, -1.2]) / 1.3, atol=1e-6)
    assert wrong.facing_share == 0.0
    assert (right.surface_share, right.flow_change_deg) == (1.0, None)


def test_outside_of_the_foreground_there_is_no_surface(tmp_path):
    operator = Sapiens2Normals(checkpoint=always(tmp_path, [0.0, 0.0, 2.0]), foreground="sapiens2_parts.segmentation")
    assert operator.requires() == ("sapiens2_parts.segmentation",)
    assert Sapiens2Normals().requires() == ()
    labels = np.zeros((2, 45, 80, 1), np.uint16)
    labels[1, 10:20, 30:50] = 7
    found = annotate(operator, panned([(0, 0), (1, 0)], 45, 80), {"segmentation": Segmentation(labels)})
    assert np.array_equal(found.normal.array, np.where(labels > 0, np.array([0, 0, 1], np.float32), np.float32(0)))
    assert found.surface_share == pytest.approx(200 / 7200)
    assert found.facing_share == 1.0
    nothing = annotate(operator, panned([(0, 0)], 45, 80), {"segmentation": Segmentation(labels[:1])})
    assert not nothing.normal.array.any()
    assert (nothing.surface_share, nothing.facing_share) == (0.0, None)
    small = annotate(operator, panned([(0, 0)], 90, 160), {"segmentation": Segmentation(labels[1:])})  # half the size
    assert small.surface_share == pytest.approx(200 / 3600)


def test_windows_with_a_foreground_give_the_same(checkpoint):
    frames = panned([(i, 0) for i in range(5)], 45, 80)
    labels = (np.indices((5, 45, 80)).sum(axis=0) % 7 == 0).astype(np.uint16)[..., None]
    clip = dataclasses.replace(DecodedClip.from_frames(frames), maps={"segmentation": Segmentation(labels)})
    operator = Sapiens2Normals(checkpoint=checkpoint, frames_per_batch=2, foreground="segmentation")
    windows_give_the_same(operator, clip, sizes=[1])


def test_batches_do_not_change_the_normals(checkpoint):
    frames = panned([(i, 0) for i in range(5)], 45, 80)
    one, two = (annotate(Sapiens2Normals(checkpoint=checkpoint, frames_per_batch=n), frames) for n in (1, 8))
    assert np.allclose(one.normal.array, two.normal.array, atol=1e-3)


def test_frames_of_any_size_but_those_that_shrink_to_nothing(checkpoint):
    operator = Sapiens2Normals(checkpoint=checkpoint)
    for size in ((1, 1), (3, 40), (48, 1)):
        assert annotate(operator, np.zeros((1, *size, 3), np.uint8)).normal.array.shape == (1, *size, 3)
    with pytest.raises(ClipError, match=r"frames of 200 x 3 px have less than one pixel .* Crop them"):
        annotate(operator, np.zeros((1, 3, 200, 3), np.uint8))


def test_maps_of_another_size_than_the_input_are_refused(tmp_path):
    head = {"upsample_out_channels": [8, 8], "conv_out_channels": [8]}  # a quarter of the input
    operator = Sapiens2Normals(checkpoint=saved(tmp_path, head_config=head))
    with pytest.raises(OpenUniError, match=r"maps of \(16, 12\) px for inputs of \(64, 48\), expected equal sizes"):
        annotate(operator, panned([(0, 0)], 45, 80))


def test_bf16_stays_near_fp32(checkpoint):
    frames = panned([(0, 0)], 45, 80)
    exact, half = (annotate(Sapiens2Normals(checkpoint=checkpoint, precision=one), frames) for one in ("fp32", "bf16"))
    angles = np.degrees(np.arccos(np.clip((exact.normal.array * half.normal.array).sum(axis=-1), -1, 1)))
    assert 0 < np.median(angles) < 5


def test_wrong_checkpoints_are_explained(tmp_path, checkpoint):
    with pytest.raises(MissingRequirement, match="openuni checkpoints get somebody/no-such-normals"):
        Sapiens2Normals(checkpoint="somebody/no-such-normals").load("cpu")
    parts = tiny_sapiens2.saved(tmp_path, "Sapiens2ForSemanticSegmentation", 29)
    with pytest.raises(OpenUniError, match=r"architectures .*Sapiens2ForSemanticSegmentation.*, must be Sapiens2ForN"):
        Sapiens2Normals(checkpoint=parts).load("cpu")
    four = tiny_sapiens2.saved(tmp_path, "Sapiens2ForNormalEstimation", 4, pad=True)
    with pytest.raises(
        OpenUniError, match=r"the network has 4 outputs, must have 3. Use one such as facebook/sapiens2"
    ):
        Sapiens2Normals(checkpoint=four).load("cpu")
    partial = tmp_path / "partial"
    partial.mkdir()
    (partial / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(OpenUniError, match='is "dinov2", must be "sapiens2"'):
        Sapiens2Normals(checkpoint=str(partial)).load("cpu")
    for file in Path(checkpoint).iterdir():
        (partial / file.name).write_bytes(file.read_bytes())
    weights = load_file(partial / "model.safetensors")
    dropped = next(name for name in weights if name.startswith("decode_head"))
    del weights[dropped]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OpenUniError, match=r"1 tensors are missing .*decode_head"):
        Sapiens2Normals(checkpoint=str(partial)).load("cpu")
    (partial / "model.safetensors").unlink()
    torch.save(weights, partial / "pytorch_model.bin")
    with pytest.raises(OpenUniError, match="is not a checkpoint for sapiens2_normals"):
        Sapiens2Normals(checkpoint=str(partial)).load("cpu")


def test_published_checkpoints_restrict_their_use():
    assert [one.ref[-4:] for one in Sapiens2Normals.published()] == ["0.4b", "0.8b", "l-1b", "l-5b"]
    (chosen,) = Sapiens2Normals().checkpoints()
    assert (chosen.ref, chosen.terms) == ("facebook/sapiens2-normal-0.4b", "use-restricted")
    assert chosen.requires_acceptance


@pytest.mark.parametrize("wrong", [{"axes": "directx"}, {"frames_per_batch": 0}, {"precision": "fp8"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        Sapiens2Normals(**wrong)

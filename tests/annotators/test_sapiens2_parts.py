from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, Sapiens2ForSemanticSegmentation

from openuni.annotators.sapiens2_parts import PARTS, Sapiens2Parts
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import OpenUniError
from tests.annotators import tiny_sapiens2
from tests.moving_pictures import panned, texture


def saved(folder, labels=29):
    """A checkpoint for body parts, with an input of 64 x 48 px."""
    return tiny_sapiens2.saved(folder, "Sapiens2ForSemanticSegmentation", labels)


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: a tiny random checkpoint in the library's own format."""
    return Sapiens2Parts(checkpoint=saved(folder)), DecodedClip.from_frames(frames)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("sapiens2_parts"))


def annotate(operator, frames):
    return operator.run(operator.load("cpu"), DecodedClip.from_frames(frames))


def always(folder, part, logit):
    """A checkpoint that gives `part` a logit and all others 0, for every pixel."""
    checkpoint = Path(saved(folder))
    weights = load_file(checkpoint / "model.safetensors")
    for name, value in weights.items():
        if name.startswith("decode_head") and value.shape[0] == len(PARTS):
            weights[name] = torch.zeros_like(value)
            if value.dim() == 1:
                weights[name][part] = logit
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return str(checkpoint)


@pytest.mark.parametrize("size", [(45, 80), (3, 200), (1, 1)])
def test_parts_are_those_of_the_library(checkpoint, size):
    frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    found = annotate(Sapiens2Parts(checkpoint=checkpoint, frames_per_batch=3), frames)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    network = Sapiens2ForSemanticSegmentation.from_pretrained(checkpoint).eval()
    images = [torch.from_numpy(frame.transpose(2, 0, 1).copy()) for frame in frames]  # unambiguous
    with torch.no_grad():
        raw = network(**processor(images=images, return_tensors="pt"))
    theirs = torch.stack(processor.post_process_semantic_segmentation(raw, target_sizes=[size] * 3)).numpy()
    assert np.array_equal(found.segmentation.array[..., 0], theirs)
    shown = sorted(set(theirs.ravel().tolist()) - {0})
    assert [part.id for part in found.parts] == shown
    assert found.part_count == len(shown)
    assert found.covered_share == pytest.approx((theirs > 0).mean())
    for part in found.parts:
        areas = (theirs == part.id).mean(axis=(1, 2))
        assert (part.name, part.frames) == (PARTS[part.id], (areas > 0).sum())
        assert part.area_share == pytest.approx(areas[areas > 0].mean())


def test_the_authors_29_classes_have_their_places():
    assert len(PARTS) == 29
    known = {0: "background", 3: "face_neck", 6: "left_hand", 15: "right_hand", 22: "torso", 28: "tongue"}
    assert {place: PARTS[place] for place in known} == known


def test_scores_of_a_known_picture(tmp_path):
    frames = np.repeat(texture(45, 80)[None], 2, axis=0)
    hand = annotate(Sapiens2Parts(checkpoint=always(tmp_path, PARTS.index("left_hand"), 4.0)), frames)
    assert (hand.segmentation.array == 6).all()
    assert [(part.id, part.name, part.frames, part.area_share) for part in hand.parts] == [(6, "left_hand", 2, 1.0)]
    assert (hand.covered_share, hand.person_share, hand.part_stability) == (1.0, 1.0, 1.0)
    assert hand.confidence_mean == pytest.approx(np.exp(4) / (np.exp(4) + 28), rel=1e-5)
    one = annotate(Sapiens2Parts(checkpoint=always(tmp_path, 6, 4.0)), frames[:1])
    assert one.part_stability is None


def test_nobody_is_background(tmp_path):
    found = annotate(Sapiens2Parts(checkpoint=always(tmp_path, 0, 4.0)), panned([(0, 0), (2, 0)], 45, 80))
    assert not found.segmentation.array.any()
    assert found[1:] == ([], 0, 0.0, 0.0, None, None)


def test_bf16_stays_near_fp32(checkpoint):
    frames = panned([(0, 0)], 45, 80)
    exact, half = (annotate(Sapiens2Parts(checkpoint=checkpoint, precision=one), frames) for one in ("fp32", "bf16"))
    assert np.mean(exact.segmentation.array != half.segmentation.array) < 0.1
    assert exact.confidence_mean != half.confidence_mean


def test_wrong_checkpoints_are_explained(tmp_path):
    with pytest.raises(OpenUniError, match="the network has 28 outputs, must have 29"):
        Sapiens2Parts(checkpoint=saved(tmp_path, 28)).load("cpu")
    pose = tiny_sapiens2.saved(tmp_path, "Sapiens2ForPoseEstimation", 29)
    with pytest.raises(OpenUniError, match="must be Sapiens2ForSemanticSegmentation"):
        Sapiens2Parts(checkpoint=pose).load("cpu")
    (chosen,) = Sapiens2Parts().checkpoints()
    assert (chosen.ref, chosen.requires_acceptance) == ("facebook/sapiens2-seg-0.4b", True)

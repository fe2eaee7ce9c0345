"""Marigold's intrinsics: what each checkpoint gives, in which transfer and on which scale."""

import numpy as np
import pytest
import torch

from openuni.annotators.marigold_intrinsics import MarigoldIntrinsics, scaled_to
from openuni.manifests.arrays.srgb import linear_to_srgb, srgb_to_linear
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import MissingRequirement, OpenUniError
from tests.moving_pictures import panned
from tests.tiny_marigold import APPEARANCE, LIGHTING, tiny_marigold


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("marigold")


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: a tiny random pipeline in the library's own format."""
    return tiny(folder, "lighting", processing_px=32, steps=1), DecodedClip.from_frames(frames)


def tiny(folder, kind, **options):
    path = tiny_marigold(folder, kind)
    return MarigoldIntrinsics(checkpoint=path, **({"processing_px": 64, "steps": 2} | options))


def annotate(operator, frames):
    return operator.run(operator.load("cpu"), DecodedClip.from_frames(frames))


def direct(folder, kind, frame):
    """float32 [targets, H, W, 3]: what diffusers gives for one frame from the noise of seed 0."""
    from diffusers import MarigoldIntrinsicsPipeline
    from PIL import Image

    pipeline = MarigoldIntrinsicsPipeline.from_pretrained(tiny_marigold(folder, kind))
    shape = (1, 4 * pipeline.n_targets, 6, 8)  # 60 x 40 px -> 64 x 42, padded to 64 x 48
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return pipeline(
        Image.fromarray(frame), num_inference_steps=2, processing_resolution=64, latents=noise, output_type="np"
    ).prediction


FRAMES = panned([(0, 0), (2, 1), (4, 2)], 40, 60)


def test_the_lighting_model_gives_albedo_and_irradiance_in_linear_light(folder):
    found = annotate(tiny(folder, "lighting"), FRAMES)
    for number, frame in enumerate(FRAMES):
        albedo, shading, residual = direct(folder, "lighting", frame)
        assert np.abs(found.albedo.array[number] - albedo).max() < 1e-5
        picture = srgb_to_linear(frame / 255)
        seen = frame < 250
        made = (albedo * shading + residual)[seen]
        factor = float(made @ picture[seen] / (made @ made))
        assert np.abs(found.irradiance.array[number] - factor * shading).max() < 1e-4 * factor
    assert 0 < found.product_error < 1 and found.residual_share > 0
    assert found.spread is None and found.flow_change > 0


def test_the_appearance_model_gives_albedo_from_srgb_and_no_irradiance(folder):
    found = annotate(tiny(folder, "appearance"), FRAMES)
    for number, frame in enumerate(FRAMES):
        albedo = direct(folder, "appearance", frame)[0]
        assert np.abs(found.albedo.array[number] - srgb_to_linear(albedo)).max() < 1e-5
        assert np.abs(found.albedo.array[number] - albedo).max() > 0.05
    assert (found.irradiance, found.product_error, found.residual_share) == (None, None, None)


@pytest.mark.parametrize("kind", ["lighting", "appearance"])
def test_batches_do_not_change_the_maps(folder, kind):
    alone, by_two = (annotate(tiny(folder, kind, frames_per_batch=n), FRAMES) for n in (1, 2))
    assert np.abs(by_two.albedo.array - alone.albedo.array).max() < 1e-4
    if kind == "lighting":
        assert np.abs(by_two.irradiance.array - alone.irradiance.array).max() < 1e-4


def test_an_ensemble_tells_its_spread(folder):
    found = annotate(tiny(folder, "lighting", ensemble_size=3, frames_per_batch=2), FRAMES)
    assert 0 < found.spread < 1
    one = annotate(tiny(folder, "lighting", ensemble_size=3), FRAMES)
    assert np.abs(found.albedo.array - one.albedo.array).max() < 1e-4


def test_the_factor_of_a_frame_is_found_from_its_light():
    """I = A S + R with a scale of its own in every frame."""
    generator = np.random.default_rng(0)
    albedo, shading, residual = generator.random((3, 2, 12, 16, 3)).astype(np.float32)
    residual *= 0.1
    scale = np.array([0.5, 0.8], np.float32)[:, None, None, None]
    light = scale * (albedo * shading + residual)
    frames = np.rint(255 * linear_to_srgb(np.clip(light, 0, 1))).astype(np.uint8)
    shade, left, error, share = scaled_to(frames, albedo, shading, residual)
    assert np.abs(shade / shading - scale).max() < 2e-3 and np.abs(left / residual - scale).max() < 2e-3
    assert error < 0.005
    seen = frames < 250
    assert share == pytest.approx((scale * residual)[seen].sum() / light[seen].sum(), rel=0.01)


def test_frames_that_say_nothing_keep_the_networks_scale():
    shading = np.full((2, 4, 4, 3), 0.25, np.float32)
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    frames[1] = 255
    shade, _, error, share = scaled_to(frames, shading, shading, np.zeros_like(shading))
    assert np.array_equal(shade, shading)
    assert error == pytest.approx(0.0625) and share is None
    assert scaled_to(frames[1:], shading[1:], shading[1:], shading[1:])[2:] == (None, None)


def test_checkpoints_without_an_albedo_or_in_another_space_are_refused(folder):
    with pytest.raises(MissingRequirement, match="openuni checkpoints get prs-eth/marigold-iid-lighting-v1-1"):
        MarigoldIntrinsics().load("cpu")

    def loaded(kind, properties):
        at = folder / str(abs(hash(str(properties))))
        at.mkdir(exist_ok=True)
        return MarigoldIntrinsics(checkpoint=tiny_marigold(at, kind, target_properties=properties)).load("cpu")

    with pytest.raises(OpenUniError, match="Allowed: a model with an albedo"):
        loaded("appearance", {"target_names": ["material", "colour"]})
    with pytest.raises(OpenUniError, match="predicts 3 maps with names:"):
        loaded("lighting", {"target_names": ["albedo"], "albedo": LIGHTING["albedo"]})
    with pytest.raises(OpenUniError, match="Allowed: linear, srgb"):
        loaded("appearance", APPEARANCE | {"albedo": {"prediction_space": "log"}})


def test_licences_and_names_of_the_authors_checkpoints():
    names = [checkpoint.ref for checkpoint in MarigoldIntrinsics.published()]
    assert names == ["prs-eth/marigold-iid-lighting-v1-1", "prs-eth/marigold-iid-appearance-v1-1"]
    assert {checkpoint.licence for checkpoint in MarigoldIntrinsics.published()} == {"OpenRAIL++-M"}
    assert all(checkpoint.requires_acceptance for checkpoint in MarigoldIntrinsics.published()), (
        "some uses are ruled out"
    )

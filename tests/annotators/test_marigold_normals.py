"""Marigold's normals: diffusers' own result, independent of batches, from noise that frames share."""

import json

import numpy as np
import pytest
import torch

from openuni.annotators.marigold_normals import MarigoldNormals, unit
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import ClipError, MissingRequirement, OpenUniError
from tests.moving_pictures import panned, texture
from tests.tiny_marigold import tiny_marigold


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("marigold")


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: a tiny random pipeline in the library's own format."""
    return tiny(folder, processing_px=32, steps=1), DecodedClip.from_frames(frames)


def tiny(folder, **options):
    return MarigoldNormals(checkpoint=tiny_marigold(folder), **({"processing_px": 64, "steps": 2} | options))


def annotate(operator, frames):
    return operator.run(operator.load("cpu"), DecodedClip.from_frames(frames))


FRAMES = panned([(0, 0), (2, 1), (4, 2)], 40, 60)


def test_normals_equal_diffusers_called_directly(folder):
    from diffusers import MarigoldNormalsPipeline
    from PIL import Image

    found = annotate(tiny(folder, seed=7), FRAMES).normal.array
    pipeline = MarigoldNormalsPipeline.from_pretrained(tiny_marigold(folder))
    noise = torch.randn((1, 4, 6, 8), generator=torch.Generator().manual_seed(7))  # 64 x 42 px, padded to 64 x 48
    for frame, normals in zip(FRAMES, found, strict=True):
        direct = pipeline(
            Image.fromarray(frame), num_inference_steps=2, processing_resolution=64, latents=noise, output_type="np"
        ).prediction[0]
        assert np.ptp(direct) > 0.1
        assert np.abs(direct - normals).max() < 1e-5
    assert np.abs(np.linalg.norm(found, axis=-1) - 1).max() < 1e-5


@pytest.mark.parametrize("shared", [True, False])
def test_batches_and_neighbours_do_not_change_a_frame(folder, shared):
    alone, by_two, all_at_once = (
        annotate(tiny(folder, frames_per_batch=n, shared_noise=shared), FRAMES).normal.array for n in (1, 2, 8)
    )
    assert np.abs(by_two - alone).max() < 1e-4 and np.abs(all_at_once - alone).max() < 1e-4
    first = annotate(tiny(folder, shared_noise=shared), FRAMES[:1]).normal.array
    assert np.array_equal(first[0], alone[0])


@pytest.mark.parametrize(("frames_per_batch", "batches"), [(1, 3), (2, 2), (4, 1)])
def test_the_networks_are_called_per_batch_and_nothing_is_moved_per_frame(folder, frames_per_batch, batches):
    from tests.manifests.contracts.test_device_batches import CountsTransfers

    operator = tiny(folder, frames_per_batch=frames_per_batch, steps=3)
    pipeline = operator.load("cpu")
    operator.predict(pipeline, FRAMES[:1])  # the text embedding, once
    calls = {"unet": 0, "encoder": 0, "decoder": 0}

    def counted(name):
        def hook(module, given, result):
            calls[name] += 1

        return hook

    for name, module in zip(calls, (pipeline.unet, pipeline.vae.encoder, pipeline.vae.decoder), strict=True):
        module.register_forward_hook(counted(name))
    with CountsTransfers() as moved:
        operator.predict(pipeline, FRAMES)
    assert calls == {"unet": 3 * batches, "encoder": batches, "decoder": batches}
    with CountsTransfers() as one_batch:
        operator.predict(pipeline, FRAMES[:frames_per_batch])
    assert moved.calls == one_batch.calls * batches, "however many frames are in a batch"
    assert pipeline.image_processor.config.do_range_check is False, "or the host waits for a minimum and a maximum"


def test_shared_noise_takes_the_flicker_of_noise_away(folder):
    still = np.repeat(texture(40, 60)[None], 3, axis=0)
    shared = annotate(tiny(folder), still)
    assert shared.flow_change_deg == 0.0 and np.array_equal(shared.normal.array[0], shared.normal.array[2])
    own = annotate(tiny(folder, shared_noise=False), still)
    assert own.flow_change_deg > 0.5 and np.array_equal(own.normal.array[0], shared.normal.array[0])
    assert not np.array_equal(annotate(tiny(folder, seed=1), still).normal.array, shared.normal.array)


def test_an_ensemble_tells_its_spread(folder):
    assert annotate(tiny(folder), FRAMES[:1]).spread_deg is None
    assert annotate(tiny(folder, ensemble_size=2), FRAMES[:1]).spread_deg is None
    found = annotate(tiny(folder, ensemble_size=3), FRAMES)
    assert 0 < found.spread_deg < 180
    by_two = annotate(tiny(folder, ensemble_size=3, frames_per_batch=2), FRAMES)
    assert np.abs(by_two.normal.array - found.normal.array).max() < 1e-4
    assert by_two.spread_deg == pytest.approx(found.spread_deg, rel=1e-4)


def test_bf16_stays_near_fp32_and_frames_may_go_in_as_they_are(folder):
    exact = annotate(tiny(folder), FRAMES).normal.array
    rounded = annotate(tiny(folder, precision="bf16"), FRAMES).normal.array
    assert rounded.dtype == np.float32 and 0 < np.abs(rounded - exact).mean() < 0.05
    as_they_are = annotate(tiny(folder, processing_px=0), FRAMES).normal.array
    assert as_they_are.shape == exact.shape and np.abs(as_they_are - exact).mean() > 1e-3


def test_what_has_no_direction_faces_the_viewer():
    found = unit(np.array([[0, 0, 0], [0, 3, 4]], np.float32))
    assert np.allclose(found, [[0, 0, 1], [0, 0.6, 0.8]])


def test_too_narrow_frames_fail_as_a_clip(folder):
    with pytest.raises(ClipError, match="too narrow"):
        annotate(tiny(folder, processing_px=8), np.zeros((1, 4, 60, 3), np.uint8))


def test_other_pipelines_are_refused(folder, tmp_path):
    with pytest.raises(MissingRequirement, match="openuni checkpoints get prs-eth/marigold-normals-v1-1"):
        MarigoldNormals().load("cpu")
    with pytest.raises(OpenUniError, match="is not a pipeline in diffusers format"):
        MarigoldNormals(checkpoint=str(tmp_path)).load("cpu")
    with pytest.raises(OpenUniError, match=r'pipeline class is "MarigoldIntrinsicsPipeline"\. Allowed: Marigold'):
        MarigoldNormals(checkpoint=tiny_marigold(folder, "appearance")).load("cpu")
    with pytest.raises(OpenUniError, match="draw noise"):
        MarigoldNormals(checkpoint=tiny_marigold(folder, scheduler="LCMScheduler")).load("cpu")


def test_a_pipeline_may_name_no_code(folder, tmp_path):
    import shutil

    shutil.copytree(tiny_marigold(folder), tmp_path / "pipeline")
    index = json.loads((tmp_path / "pipeline/model_index.json").read_text())
    (tmp_path / "pipeline/model_index.json").write_text(json.dumps(index | {"unet": ["mine", "Network"]}))
    with pytest.raises(OpenUniError, match="may execute code"):
        MarigoldNormals(checkpoint=str(tmp_path / "pipeline")).load("cpu")
    (tmp_path / "pipeline/model_index.json").write_text(json.dumps(index))
    (tmp_path / "pipeline/unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OpenUniError, match="cannot be loaded"):
        MarigoldNormals(checkpoint=str(tmp_path / "pipeline")).load("cpu")


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"ensemble_size": 0},
        {"processing_px": 100},
        {"frames_per_batch": 0},
        {"precision": "fp8"},
        {"seed": -1},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match=r"marigold_normals: .*Allowed"):
        MarigoldNormals(**wrong)

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, DepthProConfig, DepthProForDepthEstimation, DepthProImageProcessor

from openuni.annotators.depth_pro import DepthPro, focal_px
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import ClipError, MissingRequirement, OpenUniError
from tests.moving_pictures import panned, texture

PATCH_PX, SIDE_PX = 32, 128
FOV_DEG = 60.0  # about what the tiny networks estimate


def saved(folder, **options):
    """A Depth Pro checkpoint in transformers' format: the real classes, four narrow layers, random weights."""
    path = folder / "tiny_depth_pro"
    if path.exists():
        return str(path)
    encoder = {
        "model_type": "dinov2",
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": PATCH_PX,
        "patch_size": PATCH_PX // 4,
    }
    config = DepthProConfig(
        **{
            "fusion_hidden_size": 16,
            "patch_size": PATCH_PX,
            "intermediate_hook_ids": [3, 1],
            "intermediate_feature_dims": [16, 16],
            "scaled_images_feature_dims": [32, 32, 16],
            "merge_padding_value": 1,
            "use_fov_model": True,
            "num_fov_head_layers": 1,
            "image_model_config": dict(encoder),
            "patch_model_config": dict(encoder),
            "fov_model_config": dict(encoder),
        }
        | options
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DepthProForDepthEstimation(config)
        with torch.no_grad():
            for weight in network.parameters():  # the library's initial weights give maps that are all alike
                if weight.dim() > 1:
                    torch.nn.init.normal_(weight, 0, 1.2 / weight[0].numel() ** 0.5)
            network.head.layers[-2].bias.fill_(0.5)
            if network.fov_model is not None:
                network.fov_model.head.layers[-1].bias.fill_(FOV_DEG)
    network.save_pretrained(path)
    DepthProImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX}).save_pretrained(path)
    return str(path)


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: a tiny random checkpoint in the library's own format."""
    return DepthPro(checkpoint=saved(folder)), DecodedClip.from_frames(frames)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("depth_pro"))


def annotate(operator, frames):
    return operator.run(operator.load("cpu"), DecodedClip.from_frames(frames))


def directly(checkpoint, frames):
    """The library's processor, network and post-processing: depth in metres and field of view of each frame."""
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    network = DepthProForDepthEstimation.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        found = network(**processor(images=list(frames), return_tensors="pt"))
    return processor.post_process_depth_estimation(found, target_sizes=[frames.shape[1:3]] * len(frames))


def test_depth_and_field_of_view_are_those_of_the_library(checkpoint):
    frames = panned([(0, 0), (9, 4), (30, 7)], 45, 80)
    found = annotate(DepthPro(checkpoint=checkpoint, frames_per_batch=3), frames)
    theirs = directly(checkpoint, frames)
    depth = torch.stack([one["predicted_depth"] for one in theirs]).numpy()
    assert np.ptp(depth) > 0.1
    assert np.array_equal(found.depth.array[..., 0], depth)
    fov = [float(one["field_of_view"]) for one in theirs]
    assert len(set(fov)) == 3
    assert found.fov_deg == pytest.approx(np.median(fov), rel=1e-6)
    assert found.focal_px == pytest.approx(float(np.median([float(one["focal_length"]) for one in theirs])), rel=1e-5)
    assert found.fov_change_deg == pytest.approx(np.abs(np.diff(fov)).mean(), rel=1e-4)
    assert (found.depth.unit, found.depth.array.dtype) == ("metres", np.float32)


def test_a_camera_that_is_known_sets_the_scale(checkpoint):
    """Metres are the focal length in widths of the frame, times the inverse of what the network predicts."""
    frames = panned([(0, 0), (9, 4)], 45, 80)
    wide, narrow = (
        annotate(DepthPro(checkpoint=checkpoint, fov_deg=degrees), frames) for degrees in (90.0, 2 * 26.565051177)
    )
    assert (wide.fov_deg, wide.focal_px) == (90.0, pytest.approx(40.0))
    assert narrow.focal_px == pytest.approx(80.0)
    finite = wide.depth.array < 4e3
    assert finite.mean() > 0.5
    assert np.allclose(narrow.depth.array[finite], 2 * wide.depth.array[finite], rtol=1e-5)
    assert wide.fov_change_deg == 0.0
    network, processor = DepthPro(checkpoint=checkpoint).load("cpu")
    with torch.no_grad():
        raw = network(**processor(images=list(frames), return_tensors="pt")).predicted_depth
    inverse = torch.nn.functional.interpolate(raw[:, None], (45, 80), mode="bilinear")[:, 0].numpy()
    assert np.allclose(wide.depth.array[..., 0], 1 / np.clip(2 * inverse, 1e-4, 1e4), rtol=1e-5)


@pytest.mark.parametrize(("degrees", "pixels"), [(90.0, 50.0), (2 * np.degrees(np.arctan(0.5)), 100.0)])
def test_focal_length_of_a_field_of_view(degrees, pixels):
    assert focal_px(degrees, 100) == pytest.approx(pixels)


def test_an_infinite_distance_is_ten_kilometres(tmp_path):
    checkpoint = saved(tmp_path)
    weights = load_file(Path(checkpoint) / "model.safetensors")
    weights["head.layers.4.bias"].fill_(-1e6)  # the ReLU behind it gives 0 everywhere
    save_file(weights, Path(checkpoint) / "model.safetensors", metadata={"format": "pt"})
    depth = annotate(DepthPro(checkpoint=checkpoint), panned([(0, 0)], 45, 80)).depth
    assert (depth.array == np.float32(1e4)).all()


@pytest.mark.slow
def test_batches_and_other_frames_do_not_change_the_depth(checkpoint):
    frames = panned([(i, 0) for i in range(5)], 45, 80)
    found = [annotate(DepthPro(checkpoint=checkpoint, frames_per_batch=count), frames) for count in (1, 2, 8)]
    for other in found[1:]:
        assert np.allclose(other.depth.array, found[0].depth.array, rtol=1e-4)
        assert other.fov_deg == pytest.approx(found[0].fov_deg, rel=1e-5)
    alone = annotate(DepthPro(checkpoint=checkpoint, frames_per_batch=1), frames[3:4])
    assert np.array_equal(alone.depth.array[0], found[0].depth.array[3])


def test_scores_of_a_still_clip_and_of_one_frame(checkpoint):
    operator = DepthPro(checkpoint=checkpoint, frames_per_batch=1)
    still = annotate(operator, np.repeat(texture(45, 80)[None], 3, axis=0))
    assert (still.fov_change_deg, still.frame_change_ratio, still.flow_change_share) == (0.0, 0.0, 0.0)
    one = annotate(operator, texture(45, 80)[None])
    assert (one.fov_change_deg, one.frame_change_ratio, one.flow_change_share) == (None, None, None)
    moved = annotate(operator, np.stack([texture(45, 80), texture(45, 80, seed=5)]))
    depth = moved.depth.array.astype(np.float64)
    assert moved.frame_change_ratio == pytest.approx(np.abs(depth[1] - depth[0]).mean() / depth.mean(), rel=1e-5)


@pytest.mark.parametrize("size", [(1, 50), (3, 200)])
def test_frames_of_any_size(checkpoint, size):
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    assert annotate(DepthPro(checkpoint=checkpoint), frames).depth.array.shape == (2, *size, 1)


@pytest.mark.slow
def test_bf16_stays_near_fp32(checkpoint):
    frames = panned([(0, 0)], 45, 80)
    exact, rounded = (annotate(DepthPro(checkpoint=checkpoint, precision=one), frames) for one in ("fp32", "bf16"))
    assert rounded.depth.array.dtype == np.float32
    ratio = rounded.depth.array / exact.depth.array
    assert 0 < np.abs(np.log(ratio)).mean() < 0.1
    assert rounded.fov_deg == pytest.approx(exact.fov_deg, rel=0.02)


def test_the_network_is_float32_whatever_the_file_says(tmp_path):
    checkpoint = Path(saved(tmp_path))
    weights = {name: value.half() for name, value in load_file(checkpoint / "model.safetensors").items()}
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    (checkpoint / "config.json").write_text((checkpoint / "config.json").read_text().replace("float32", "float16"))
    network, _ = DepthPro(checkpoint=str(checkpoint)).load("cpu")
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


def test_an_impossible_field_of_view_is_a_failed_row(tmp_path):
    checkpoint = Path(saved(tmp_path))
    weights = load_file(checkpoint / "model.safetensors")
    weights["fov_model.head.layers.2.bias"].fill_(-500.0)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    frames = panned([(0, 0)], 45, 80)
    with pytest.raises(ClipError, match=r"field of view of -\d+.* degrees; expected 0 to 180. Set fov_deg"):
        annotate(DepthPro(checkpoint=str(checkpoint)), frames)
    assert annotate(DepthPro(checkpoint=str(checkpoint), fov_deg=60.0), frames).fov_deg == 60.0


def test_a_checkpoint_without_a_head_for_the_field_of_view_needs_a_known_one(tmp_path):
    checkpoint = saved(tmp_path, use_fov_model=False)
    with pytest.raises(OpenUniError, match=r"has no head for the field of view .* Set fov_deg"):
        DepthPro(checkpoint=checkpoint).load("cpu")
    found = annotate(DepthPro(checkpoint=checkpoint, fov_deg=60.0), panned([(0, 0)], 45, 80))
    assert found.depth.array.min() > 0


def test_wrong_checkpoints_are_explained(tmp_path, checkpoint):
    with pytest.raises(MissingRequirement, match="openuni checkpoints get somebody/no-such-depth"):
        DepthPro(checkpoint="somebody/no-such-depth").load("cpu")
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(OpenUniError, match='is "dinov2", must be "depth_pro"'):
        DepthPro(checkpoint=str(tmp_path)).load("cpu")
    files = {file.name: file.read_bytes() for file in Path(checkpoint).iterdir()}
    (tmp_path / "config.json").write_bytes(files["config.json"])
    weights = load_file(Path(checkpoint) / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(OpenUniError, match="is not a Depth Pro checkpoint in transformers format"):
        DepthPro(checkpoint=str(tmp_path)).load("cpu")
    (tmp_path / "model.safetensors").write_bytes(files["model.safetensors"])
    with pytest.raises(OpenUniError, match="is not a Depth Pro checkpoint in transformers format"):  # no processor
        DepthPro(checkpoint=str(tmp_path)).load("cpu")
    del weights["head.layers.4.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OpenUniError, match=r"1 tensors are missing .* head\.layers\.4\.bias"):
        DepthPro(checkpoint=str(tmp_path)).load("cpu")


def test_the_published_checkpoint_is_for_non_commercial_research():
    (chosen,) = DepthPro().checkpoints()
    assert (chosen.ref, chosen.store, chosen.terms) == ("apple/DepthPro-hf", "hub", "non-commercial")
    assert chosen.requires_acceptance


@pytest.mark.parametrize("wrong", [{"fov_deg": -1.0}, {"fov_deg": 180.0}, {"frames_per_batch": 0}, {"precision": "x"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        DepthPro(**wrong)

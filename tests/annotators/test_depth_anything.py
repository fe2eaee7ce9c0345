import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DPTImageProcessor,
)

from openuni.annotators import _depth_anything, _depth_input
from openuni.annotators._depth_anything import frames_together, original_size
from openuni.annotators._depth_input import process
from openuni.annotators.depth_anything import DepthAnything
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import MissingRequirement, OpenUniError
from tests.fake_gpu import fake_gpu
from tests.moving_pictures import panned, texture

# height, width of the frame -> height, width of the network's input by the authors' rule and by transformers'
SIZES = {
    (360, 640): ((518, 924), (294, 518)),
    (240, 320): ((518, 686), (392, 518)),
    (480, 832): ((518, 896), (518, 896)),
    (480, 640): ((518, 686), (518, 686)),
    (720, 1280): ((518, 924), (518, 924)),
    (1080, 1920): ((518, 924), (518, 924)),
    (640, 360): ((924, 518), (518, 294)),
    (518, 518): ((518, 518), (518, 518)),
}


def tiny_checkpoint(folder, kind="relative"):
    """A Depth Anything checkpoint in transformers' format: the real classes, four narrow layers, random weights."""
    path = folder / f"tiny-{kind}"
    if path.exists():
        return str(path)
    backbone = {
        "model_type": "dinov2",
        "image_size": 70,
        "patch_size": 14,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "out_indices": [1, 2, 3, 4],
        "reshape_hidden_states": False,
    }
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        head_hidden_size=8,
        depth_estimation_type=kind,
        max_depth=20 if kind == "metric" else 1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DepthAnythingForDepthEstimation(config)
        for value in network.parameters():  # the library's initial weights give depths of 1e-7
            torch.nn.init.normal_(value, 0, 0.15)
        torch.nn.init.constant_(network.head.conv3.bias, 0.5)
    network.save_pretrained(path)
    DPTImageProcessor(
        size={"height": 518, "width": 518},
        ensure_multiple_of=14,
        keep_aspect_ratio=True,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(path)
    return str(path)


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: a tiny random checkpoint in the library's own format."""
    return DepthAnything(checkpoint=tiny_checkpoint(folder), input_size=56), DecodedClip.from_frames(frames)


def annotate(operator, frames):
    return operator.run(operator.load("cpu"), DecodedClip.from_frames(frames))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth_anything")
    return {kind: tiny_checkpoint(folder, kind) for kind in ("relative", "metric")}


@pytest.mark.parametrize(("frame", "wanted"), SIZES.items())
def test_size_of_the_input_by_the_authors_rule(frame, wanted):
    assert original_size(*frame, 518) == wanted[0]


@pytest.mark.parametrize(("frame", "wanted"), SIZES.items())
def test_size_of_the_input_by_transformers(checkpoints, frame, wanted):
    _, processor = DepthAnything(checkpoint=checkpoints["relative"]).load("cpu")
    pixels = process(processor, torch.zeros((1, 3, *frame), dtype=torch.uint8), 518)
    assert pixels.shape == (1, 3, *wanted[1])
    assert pixels.dtype == torch.float32


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_depth_equals_transformers_called_directly(checkpoints, kind):
    frames = panned([(0, 0), (3, 1)], 45, 80)
    found = annotate(DepthAnything(checkpoint=checkpoints[kind], input_size=70), frames).depth.array

    processor = AutoImageProcessor.from_pretrained(checkpoints[kind])
    network = AutoModelForDepthEstimation.from_pretrained(checkpoints[kind]).eval()
    inputs = processor(images=list(frames), size={"height": 70, "width": 70}, return_tensors="pt")
    with torch.no_grad():
        raw = network(**inputs).predicted_depth
    direct = torch.nn.functional.interpolate(raw[:, None], (45, 80), mode="bilinear")[:, 0].numpy()
    assert np.ptp(direct) > 0.01
    assert np.array_equal(found[..., 0], direct)


def test_original_rule_equals_the_authors_steps_by_hand(checkpoints):
    import cv2

    frames = panned([(0, 0)], 45, 80)
    operator = DepthAnything(checkpoint=checkpoints["relative"], input_size=70, resize="original")
    found = annotate(operator, frames).depth.array

    image = cv2.resize(frames[0] / 255.0, (126, 70), interpolation=cv2.INTER_CUBIC)  # 80 * 70 / 45 = 124.4 -> 126
    image = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    network = AutoModelForDepthEstimation.from_pretrained(checkpoints["relative"]).eval()
    with torch.no_grad():
        raw = network(torch.tensor(image.transpose(2, 0, 1)[None], dtype=torch.float32)).predicted_depth
    by_hand = torch.nn.functional.interpolate(raw[:, None], (45, 80), mode="bilinear", align_corners=True)[:, 0].numpy()
    assert np.ptp(by_hand) > 0.01
    assert np.array_equal(found[..., 0], by_hand)


def test_the_two_resize_rules_differ(checkpoints):
    frames = panned([(0, 0)], 45, 80)
    by_rule = [
        annotate(DepthAnything(checkpoint=checkpoints["relative"], input_size=70, resize=rule), frames).depth.array
        for rule in ("transformers", "original")
    ]
    assert np.abs(by_rule[0] - by_rule[1]).max() > 1e-3


def test_the_unit_is_the_checkpoints(checkpoints):
    frames = panned([(0, 0), (3, 1)], 45, 80)
    relative = annotate(DepthAnything(checkpoint=checkpoints["relative"], input_size=56), frames).depth
    metric = annotate(DepthAnything(checkpoint=checkpoints["metric"], input_size=56), frames).depth
    assert (relative.unit, metric.unit) == ("disparity", "metres")
    assert relative.array.min() >= 0
    assert 0 < metric.array.min() < metric.array.max() < 20
    assert relative.array.shape == metric.array.shape == (2, 45, 80, 1)


@pytest.mark.parametrize("resize", ["transformers", "original"])
def test_a_clip_takes_one_call_and_one_transfer_each_way_per_batch(checkpoints, resize):
    from tests.manifests.contracts.test_device_batches import CountsTransfers

    frames = panned([(i, 0) for i in range(5)], 45, 80)
    for frames_per_batch, batches in ((1, 5), (2, 3), (8, 1)):
        operator = DepthAnything(
            checkpoint=checkpoints["relative"], input_size=56, resize=resize, frames_per_batch=frames_per_batch
        )
        network, processor = operator.load("cpu")
        operator.raw_frames((network, processor), frames)  # constants stay on the device from here on
        calls = []
        network.register_forward_hook(lambda module, given, result, calls=calls: calls.append(module))
        in_network = CountsTransfers()
        with in_network:
            network(pixel_values=torch.zeros(1, 3, 56, 56))
        calls.clear()
        with CountsTransfers() as moved:
            operator.raw_frames((network, processor), frames)
        assert len(calls) == batches
        assert moved.calls == batches * (3 + in_network.calls)


def test_on_a_gpu_no_value_is_read_and_nothing_copied_within_a_batch(checkpoints):
    from transformers.initialization import no_init_weights

    operator = DepthAnything(checkpoint=checkpoints["relative"])
    processor = AutoImageProcessor.from_pretrained(checkpoints["relative"])
    with fake_gpu() as ops:
        with torch.device("cuda"), no_init_weights():
            network = DepthAnythingForDepthEstimation(DepthAnythingConfig.from_pretrained(checkpoints["relative"]))
        images = torch.empty(2, 3, 480, 832, dtype=torch.uint8, device="cuda")
        process(processor, images, 518)
        constants = ops.transfers.copy()
        depth = operator._depth(network.eval(), process(processor, images, 518), (480, 832))
    for cached in (_depth_input._normalization, _depth_input._on_device):
        cached.cache_clear()  # of tensors without values
    assert depth.shape == (2, 480, 832)
    assert ops.transfers == constants == {"cpu to cuda": 6}, "only constants, once"


def test_depth_is_raw_so_a_frame_does_not_depend_on_the_others(checkpoints):
    frames = np.stack([texture(45, 80), texture(45, 80, seed=5) // 4])
    operator = DepthAnything(checkpoint=checkpoints["relative"], input_size=56, frames_per_batch=1)
    together, alone = annotate(operator, frames).depth.array, annotate(operator, frames[1:]).depth.array
    assert np.array_equal(together[1:], alone)
    assert together[0].max() != together[1].max()


def test_batches_do_not_change_the_depth(checkpoints):
    frames = panned([(i, 0) for i in range(5)], 45, 80)
    depths = [
        annotate(
            DepthAnything(checkpoint=checkpoints["relative"], input_size=56, frames_per_batch=n), frames
        ).depth.array
        for n in (1, 2, 8)
    ]
    for depth in depths[1:]:
        assert np.abs(depth - depths[0]).max() < 1e-5 * np.abs(depths[0]).max()


def test_frames_together_are_bounded_by_their_size(checkpoints, monkeypatch):
    sizes = {"Small": (64, 32), "Large": (256, 32)}
    configs = {name: DepthAnythingConfig(fusion_hidden_size=a, head_hidden_size=b) for name, (a, b) in sizes.items()}
    assert {name: frames_together(config, 518, 896) for name, config in configs.items()} == {"Small": 22, "Large": 8}
    assert frames_together(configs["Large"], 20_000, 20_000) == 1

    frames = panned([(i, 0) for i in range(5)], 45, 80)
    operator = DepthAnything(checkpoint=checkpoints["relative"], input_size=56, frames_per_batch=4)
    network, processor = operator.load("cpu")
    free, given = operator.raw_frames((network, processor), frames)[0], []
    network.register_forward_hook(lambda module, args, result: given.append(len(result.predicted_depth)))
    channels = network.config.fusion_hidden_size // 2 + network.config.head_hidden_size
    monkeypatch.setattr(_depth_anything, "HEAD_BYTES", 3 * 56 * 98 * channels * 12)
    bounded = operator.raw_frames((network, processor), frames)[0]
    assert given == [3, 1, 1], "four frames in two passes, and the last one: batches stay where they were"
    assert np.abs(bounded - free).max() < 1e-5 * free.max()


def test_bf16_stays_near_fp32(checkpoints):
    frames = panned([(0, 0)], 45, 80)
    exact = annotate(DepthAnything(checkpoint=checkpoints["relative"], input_size=56), frames).depth.array
    half = DepthAnything(checkpoint=checkpoints["relative"], input_size=56, precision="bf16")
    rounded = annotate(half, frames).depth.array
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.05 * exact.max()


def test_change_between_frames_is_zero_on_a_still_clip_and_counts_otherwise(checkpoints):
    operator = DepthAnything(checkpoint=checkpoints["relative"], input_size=56, frames_per_batch=1)
    first, second = texture(45, 80), texture(45, 80, seed=5)
    assert annotate(operator, np.stack([first, first, first])).frame_change_ratio == 0.0
    assert annotate(operator, first[None]).frame_change_ratio is None
    found = annotate(operator, np.stack([first, second]))
    depth = found.depth.array.astype(np.float64)
    assert found.frame_change_ratio == pytest.approx(np.abs(depth[1] - depth[0]).mean() / depth.mean(), rel=1e-5)
    assert found.frame_change_ratio > 0


def test_licences_of_the_authors_checkpoints():
    def licence(name):
        return DepthAnything(checkpoint=name).checkpoints()[0].licence

    assert licence("depth-anything/Depth-Anything-V2-Small-hf") == "Apache-2.0"
    assert licence("depth-anything/Depth-Anything-V2-Large-hf") == "CC-BY-NC-4.0"
    assert licence("somebody/depth") == ""


def test_missing_or_other_checkpoints_are_explained(tmp_path, monkeypatch):
    with pytest.raises(MissingRequirement, match="openuni checkpoints get somebody/no-such-depth"):
        DepthAnything(checkpoint="somebody/no-such-depth").load("cpu")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(OpenUniError, match="depth_estimation_type"):
        DepthAnything(checkpoint=str(tmp_path)).load("cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OpenUniError, match="not a Depth Anything checkpoint"):
        DepthAnything(checkpoint=str(tmp_path / "empty")).load("cpu")


@pytest.mark.parametrize(
    "wrong",
    [{"resize": "square"}, {"precision": "fp8"}, {"input_size": 512}, {"input_size": 0}, {"frames_per_batch": 0}],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        DepthAnything(**wrong)


# Depth at three pixels of the network's output by the authors' code (Depth-Anything-V2's DINOv2 and DPT in this tiny
# size, with the weights of `tiny_checkpoint` under their names) on `waves`; and by the same code when it interpolates
# position codes to an exact size, as transformers does, instead of by a factor with an offset of 0.1.
BY_THE_AUTHORS = {
    (70, 70): ((0.5586324, 1.3807755, 0.0), (0.5586324, 1.3807755, 0.0)),
    (70, 126): ((0.515225, 0.8688989, 0.0289153), (0.5152214, 0.8685099, 0.0296975)),
    (112, 56): ((0.6253289, 0.4726387, 0.0934308), (0.6243363, 0.4728744, 0.0926828)),
    (84, 98): ((0.4962116, 0.6272668, 0.1756253), (0.4962502, 0.6273855, 0.1776016)),
}


def waves(height_px, width_px):
    """float32 [1, 3, H, W]: pixels as the network gets them, the same on every machine."""
    rows, columns = torch.linspace(-2, 2, height_px)[:, None], torch.linspace(-2, 2, width_px)[None]
    return torch.stack([torch.sin(3 * rows + columns), torch.cos(2 * columns - rows), torch.sin(4 * rows * columns)])[
        None
    ]


@pytest.mark.parametrize(("size", "theirs"), BY_THE_AUTHORS.items())
def test_the_network_is_the_authors_up_to_the_interpolation_of_position_codes(checkpoints, size, theirs):
    """Equal to 32-bit rounding; some tenths of a percent off where their code interpolates position codes its way."""
    network, _ = DepthAnything(checkpoint=checkpoints["relative"]).load("cpu")
    height_px, width_px = size
    with torch.no_grad():
        depth = network(pixel_values=waves(*size)).predicted_depth[0].numpy()
    places = ((3, 5), (height_px // 2, width_px // 2), (height_px - 4, width_px - 9))
    found = np.array([depth[place] for place in places])
    as_it_is, exact_size = np.array(theirs[0]), np.array(theirs[1])
    assert np.abs(found - exact_size).max() < 2e-6 * depth.max()
    if size == (70, 70):
        assert np.array_equal(as_it_is, exact_size)
    else:
        assert np.abs(found - as_it_is).max() > 3e-4


def test_change_along_the_motion_is_zero_on_a_still_clip(checkpoints):
    operator = DepthAnything(checkpoint=checkpoints["relative"], input_size=56, frames_per_batch=1)
    still = np.repeat(texture(45, 80)[None], 3, axis=0)
    assert annotate(operator, still).flow_change_share == 0.0
    assert annotate(operator, still[:1]).flow_change_share is None
    assert annotate(operator, panned([(0, 0), (2, 0), (4, 0)], 45, 80)).flow_change_share > 0

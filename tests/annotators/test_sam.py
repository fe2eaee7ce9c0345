from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling import Sam as Network
from transformers import SamImageProcessor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from openuni.annotators._automatic_masks import MaskRules, detected
from openuni.annotators.sam import Sam, SamPrompted, build
from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.options import recorded
from openuni.manifests.contracts.schema import producer_schema
from openuni.manifests.errors import MissingRequirement, OpenUniError
from tests.annotators.test_raft import Payload
from tests.device_waits import Waits
from tests.moving_pictures import panned

SIZES = [(96, 128), (128, 96), (45, 80), (130, 203), (64, 64)]
LOOSE = {"points_per_side": 4, "min_predicted_iou": -99.0, "min_stability": 0.5, "nms_iou": 0.99}


def random_network(side_px=128):
    """Segment Anything with its real parts, two narrow blocks (a windowed and a global one) and random weights."""
    grid, channels = side_px // 16, 32
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ImageEncoderViT(
            depth=2,
            embed_dim=32,
            img_size=side_px,
            mlp_ratio=2,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=2,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=[1],
            window_size=3,
            out_chans=channels,
        )
        prompts = PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(grid, grid),
            input_image_size=(side_px, side_px),
            mask_in_chans=8,
        )
        transformer = TwoWayTransformer(depth=2, embedding_dim=channels, mlp_dim=64, num_heads=8)
        decoder = MaskDecoder(
            num_multimask_outputs=3,
            transformer=transformer,
            transformer_dim=channels,
            iou_head_depth=3,
            iou_head_hidden_dim=32,
        )
        network = Network(encoder, prompts, decoder)
        for weight in network.parameters():  # the library's initial weights give masks that are all alike
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, 0, 0.5)
    return network.eval().requires_grad_(False)


def saved(folder):
    path = folder / "tiny_sam.pth"
    if not path.exists():
        torch.save(random_network().state_dict(), path)
    return str(path)


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: random weights in the authors' own format."""
    return Sam(checkpoint=saved(folder), keyframe_interval_s=0.08, **LOOSE), DecodedClip.from_frames(frames)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("sam"))


def images(size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def pixels(image):
    """What the image encoder gets of an image."""
    network, seen = random_network(), []
    network.image_encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    SamPrompted(network, "fp32").embed([image])
    return seen[0].numpy()


def prepared(processor_class, image, side_px):
    processor = processor_class(size={"longest_edge": side_px}, pad_size={"height": side_px, "width": side_px})
    return processor(image, return_tensors="np")["pixel_values"]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_the_authors_predictor(size):
    network, image = random_network(), images(size)
    seen = []
    network.image_encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    SamPredictor(network).set_image(image)
    SamPrompted(network, "fp32").embed([image])
    assert torch.equal(seen[1], seen[0])


@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_those_of_transformers_pil_processor(size):
    image = images(size)
    ours = pixels(image)
    # equal 8-bit pixels; their normalising divides by 255 first and so rounds apart: 4 units in the last place of 2.6
    assert np.abs(ours - prepared(SamImageProcessorPil, image, 128)).max() < 1e-6
    # their default processor resizes with torchvision instead of PIL: at most one level of 255 / 57.12 per pixel
    assert np.abs(ours - prepared(SamImageProcessor, image, 128)).max() < 0.04


@pytest.mark.parametrize("size", SIZES)
def test_logits_are_enlarged_as_by_transformers(size):
    prompted = SamPrompted(random_network(), "fp32")
    prompted.use(*prompted.embed([images(size)]))
    logits = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = prompted.upscale(logits)
    theirs = SamImageProcessorPil(pad_size={"height": 128, "width": 128}).post_process_masks(
        [logits[None]], [size], [prompted.image.scaled_px], binarize=False
    )[0][0]
    # the same two interpolations, of one batch or another: rounding of float32
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    assert ours.shape == (3, *size)


def test_answers_are_those_of_the_authors_predictor(checkpoint):
    image = images((90, 128))
    network = Sam(checkpoint=checkpoint).load("cpu")
    predictor, ours = SamPredictor(random_network()), SamPrompted(network, "fp32")
    predictor.set_image(image)
    ours.use(*ours.embed([image]))
    logits, predicted = ours.predict_points(np.array([[40.0, 30.0], [7.5, 80.0]]))
    masks, scores, low = predictor.predict(np.array([[7.5, 80.0]]), np.array([1]), return_logits=True)
    assert np.abs(low).max() > 1
    # theirs has a batch of one point: float32 sums in another order
    assert np.allclose(logits[1].numpy(), low, rtol=1e-4, atol=1e-4)
    assert np.allclose(predicted[1].numpy(), scores, rtol=1e-4, atol=1e-4)
    assert np.allclose(ours.upscale(logits[1]).numpy(), masks, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["vit_b", "vit_l", "vit_h"])
def test_the_kind_is_read_from_the_weights(kind):
    with torch.device("meta"):
        wanted = sam_model_registry[kind]()
        built = build(wanted.state_dict())
    assert {name: value.shape for name, value in built.state_dict().items()} == {
        name: value.shape for name, value in wanted.state_dict().items()
    }
    for ours, theirs in zip(built.image_encoder.blocks, wanted.image_encoder.blocks, strict=True):
        assert (ours.window_size, ours.attn.num_heads) == (theirs.window_size, theirs.attn.num_heads)
    assert built.image_encoder.img_size == 1024
    assert built.image_encoder.blocks[0].norm1.eps == wanted.image_encoder.blocks[0].norm1.eps
    own, other = built.mask_decoder, wanted.mask_decoder
    assert own.transformer.layers[0].self_attn.num_heads == other.transformer.layers[0].self_attn.num_heads
    assert len(own.iou_prediction_head.layers) == len(other.iou_prediction_head.layers)


def test_loading_gives_the_weights_of_the_file(checkpoint):
    loaded, wanted = Sam(checkpoint=checkpoint).load("cpu"), random_network()
    assert not loaded.training
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(loaded.pixel_mean, wanted.pixel_mean)
    assert torch.equal(loaded.pixel_std, wanted.pixel_std)


def test_a_clip_of_random_masks(checkpoint):
    frames = panned([(2 * i, i) for i in range(9)], 64, 96)
    operator = Sam(checkpoint=checkpoint, keyframe_interval_s=0.16, **LOOSE)
    found = operator.run(operator.load("cpu"), DecodedClip.from_frames(frames))
    assert found.segmentation.array.shape == (9, 64, 96, 1)
    assert found.instance_count == len(found.instances) > 0
    assert 0 < found.covered_share <= 1
    assert 0 <= found.flow_iou <= 1
    assert sorted(np.unique(found.segmentation.array)[-found.instance_count :]) == [row.id for row in found.instances]


def test_the_batch_of_points_changes_next_to_nothing(checkpoint):
    frames = panned([(0, 0)], 64, 96)
    clip = DecodedClip.from_frames(frames)
    exact = Sam(checkpoint=checkpoint, **LOOSE)
    network = exact.load("cpu")
    small = Sam(checkpoint=checkpoint, points_per_batch=3, **LOOSE).run(network, clip)
    # a batch of another size sums in another order: a logit near 0 may change its sign
    assert np.mean(small.segmentation.array != exact.run(network, clip).segmentation.array) < 1e-3


def waits_of(network, images, rules, images_per_batch=4):
    """Waits for the device (see `Waits`) while masks of images are detected, and the number of masks."""
    with Waits() as waits:
        found = list(detected(SamPrompted(network, "fp32"), images, rules, images_per_batch))
    return waits, [sum(len(crop.bits) for crop in crops) for crops in found]


@pytest.mark.parametrize("crop_layers", [0, 1])
def test_waits_for_the_device_do_not_grow_with_points_batches_or_masks(checkpoint, crop_layers):
    images_ = [panned([(shift, 0)], 96, 128)[0] for shift in ((0,) if crop_layers else (0, 9))]
    network = Sam(checkpoint=checkpoint).load("cpu")
    counts, masks = [], []
    for side, per_batch, stability in ((3, 64, 0.9), (6, 64, 0.1), (6, 4, 0.1)):
        rules = MaskRules(side, per_batch, -99.0, stability, nms_iou=0.99, crop_layers=crop_layers)
        waits, found = waits_of(network, images_, rules)
        counts.append(waits.counts)
        masks.append(sum(found))
    assert counts[0] == counts[1] == counts[2]
    assert masks[1] > 2 * masks[0]
    crops = len(images_) * (1 + 4 * crop_layers)
    assert counts[0]["cpu"] == 2 * crops and counts[0]["nonzero"] == crops
    assert waits.total <= 8 * crops
    waits, _ = waits_of(network, images_, rules._replace(min_predicted_iou=0.01))
    assert waits.counts["nonzero"] == 2 * crops and waits.total <= 9 * crops
    # what is counted: the library's own prompt encoder selects points by boolean masks in every batch
    if not crop_layers:
        assert waits_of(random_network(), images_, rules)[0].counts["index"] >= 3 * crops * 9


def test_points_are_embedded_as_by_the_library(checkpoint):
    ours, theirs = Sam(checkpoint=checkpoint).load("cpu").prompt_encoder, random_network().prompt_encoder
    points = torch.rand(5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 128
    labels = torch.tensor([[1, 0, -1]] * 5)
    boxes = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) * 128
    for given in (None, boxes):  # with boxes, no point is added
        found, expected = (encoder((points, labels), given, None)[0] for encoder in (ours, theirs))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("size", SIZES)
def test_logits_are_enlarged_as_by_the_authors_to_the_bit(size):
    prompted = SamPrompted(random_network(), "fp32")
    prompted.use(*prompted.embed([images(size)]))
    logits = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs = prompted.network.postprocess_masks(logits[:, None], prompted.image.scaled_px, size)
    assert torch.equal(prompted.upscale(logits), theirs[:, 0])


def test_keyframes_are_encoded_together(checkpoint):
    frames = panned([(2 * i, i) for i in range(9)], 64, 96)
    operator = Sam(checkpoint=checkpoint, keyframe_interval_s=0.08, **LOOSE)
    network, batches, found = operator.load("cpu"), [], []
    network.image_encoder.register_forward_pre_hook(lambda module, given: batches.append(len(given[0])))
    for size in (1, 3):
        operator = replace(operator, frames_per_batch=size)
        found.append(operator.run(network, DecodedClip.from_frames(frames)).segmentation.array)
    assert batches == [1, 1, 1, 1, 1, 3, 2]
    assert np.mean(found[0] != found[1]) < 1e-3  # rounding
    assert operator.version() == replace(operator, frames_per_batch=1).version()


def test_crops_of_different_sizes_are_encoded_together():
    prompted = SamPrompted(random_network(), "fp32")
    given = [images(size) for size in SIZES[:3]]
    for image, together in zip(given, prompted.embed(given), strict=True):
        (alone,) = prompted.embed([image])
        assert (alone.size_px, alone.scaled_px) == (together.size_px, together.scaled_px)
        assert torch.allclose(alone.features, together.features, rtol=0, atol=1e-4 * float(alone.features.abs().max()))


def test_bf16_is_the_precision_of_the_encoder_and_thresholds_get_all_digits(tmp_path):
    prompted = SamPrompted(random_network(), "bf16")
    kinds = []
    linear = prompted.network.image_encoder.blocks[0].mlp.lin1
    linear.register_forward_hook(lambda module, given, found: kinds.append(found.dtype))
    prompted.use(*prompted.embed([panned([(0, 0)], 64, 96)[0]]))
    logits, predicted = prompted.predict_points(np.array([[30.0, 20.0], [50.0, 9.0]]))
    assert kinds == [torch.bfloat16]
    for numbers in (logits, predicted):
        assert (numbers != numbers.bfloat16().float()).float().mean() > 0.9
    (tmp_path / "sam.pth").write_bytes(b"weights")
    plain, half = (Sam(checkpoint=str(tmp_path / "sam.pth"), precision=name) for name in ("fp32", "bf16"))
    facts = {"name": "sam", "revision": 1, "weights": [checkpoint.digest() for checkpoint in plain.checkpoints()]}
    assert plain.version() == fingerprint(options=recorded(plain, version=True), **facts)
    assert half.version() != fingerprint(options=recorded(half, version=True), **facts)  # its decoder was in bf16


def test_bf16_stays_near_fp32():
    network = random_network()
    for weight in network.parameters():
        weight.mul_(0.4 if weight.dim() > 1 else 1)  # as large as above, they blow every rounding up
    logits = []
    for precision in ("fp32", "bf16"):
        prompted = SamPrompted(network, precision)
        prompted.use(*prompted.embed([panned([(0, 0)], 64, 96)[0]]))
        logits.append(prompted.predict_points(np.array([[30.0, 20.0]]))[0])
    assert logits[1].dtype == torch.float32
    assert 0 < (logits[0] - logits[1]).abs().max() < 0.1 * logits[0].abs().max()


def test_published_checkpoints_and_the_column_of_instances():
    (checkpoint,) = Sam(checkpoint="sam_vit_b_01ec64.pth").checkpoints()
    assert checkpoint.url == "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth"
    assert (checkpoint.licence, checkpoint.terms, len(checkpoint.sha256)) == ("Apache-2.0", "permissive", 64)
    assert len(Sam.published()) == 3
    instances = producer_schema(Sam).field("sam").type.field("instances").type
    assert {"id", "first_frame", "area_share", "box_px"} <= {field.name for field in instances.value_type}


def test_wrong_weights_are_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENUNI_CHECKPOINTS", str(tmp_path))
    with pytest.raises(MissingRequirement, match=r"openuni checkpoints get sam_vit_h_4b8939\.pth"):
        Sam().load("cpu")
    with pytest.raises(OpenUniError, match=r'Did you mean "sam_vit_b_01ec64\.pth"'):
        Sam(checkpoint="sam_vit_b_01ec46.pth").checkpoints()
    with pytest.raises(MissingRequirement, match="existing file"):
        Sam(checkpoint=str(tmp_path / "nowhere.pth")).load("cpu")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(OpenUniError, match="does not contain weights of Segment Anything"):
        Sam(checkpoint=str(tmp_path / "other.pth")).load("cpu")
    weights = random_network().state_dict()
    del weights["mask_decoder.iou_token.weight"]
    torch.save(weights, tmp_path / "partial.pth")
    with pytest.raises(OpenUniError, match="iou_token"):
        Sam(checkpoint=str(tmp_path / "partial.pth")).load("cpu")
    torch.save({"weight": Payload(tmp_path / "code was run")}, tmp_path / "evil.pth")
    with pytest.raises(OpenUniError, match="cannot be read as weights"):
        Sam(checkpoint=str(tmp_path / "evil.pth")).load("cpu")
    assert not (tmp_path / "code was run").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"keyframe_interval_s": 0.0},
        {"points_per_side": 0},
        {"points_per_batch": 0},
        {"nms_iou": 1.5},
        {"crop_layers": -1},
        {"min_region_px": -1},
        {"overlap_priority": "first"},
        {"min_area_share": -0.1},
        {"match_iou": 2.0},
        {"max_gap_s": -1.0},
        {"max_instances": 0},
        {"max_instances": 70000},
        {"precision": "fp8"},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match=r"sam: .* Allowed"):
        Sam(**wrong)

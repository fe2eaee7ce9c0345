import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Sam2ImageProcessor,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VideoProcessor,
    Sam2VideoVideoProcessor,
)

from openuni.annotators._sam2_memory import MemoryInterval, Sam2Prompted, _followed, filled, propagate
from openuni.annotators._sam2_tracking import TrackedInstances, prompt_masks, vision_of
from openuni.annotators.sam2 import Sam2
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import MissingRequirement, OpenUniError
from tests.device_waits import Waits
from tests.moving_pictures import panned

SIDE_PX = 128
LOOSE = {"points_per_side": 4, "min_predicted_iou": -99.0, "min_stability": 0.1, "nms_iou": 0.95}


def config():
    grid = SIDE_PX // 4
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "image_size": [SIDE_PX, SIDE_PX],
        "hidden_size": 16,
        "embed_dim_per_stage": [16, 32, 64, 128],
        "blocks_per_stage": [1, 1, 2, 1],
        "num_attention_heads_per_stage": [1, 2, 2, 4],
        "window_size_per_stage": [8, 4, 4, 4],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [2, 2],
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[grid, grid], [grid // 2, grid // 2], [grid // 4, grid // 4]],
        "fpn_hidden_size": 128,
    }
    return Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 128, "image_size": SIDE_PX, "mask_input_channels": 8},
        mask_decoder_config={"hidden_size": 128, "mlp_dim": 64, "iou_head_hidden_dim": 64, "num_attention_heads": 2},
        image_size=SIDE_PX,
        memory_attention_hidden_size=128,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=64,
        memory_attention_rope_feat_sizes=[grid // 4, grid // 4],
        memory_encoder_hidden_size=128,
        memory_encoder_output_channels=64,  # the library builds its memory attention for no other width
        mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=64,
        memory_fuser_num_layers=1,
    )


def saved(folder):
    """A SAM 2 video checkpoint in transformers' format: the real classes, narrow, random weights."""
    path = folder / "tiny_sam2"
    if path.exists():
        return str(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Sam2VideoModel(config())
        with torch.no_grad():
            for weight in network.parameters():  # the library's initial weights give masks that are all alike
                if weight.dim() > 1:
                    torch.nn.init.normal_(weight, 0, 0.3)
            head = network.mask_decoder.pred_obj_score_head.proj_out
            head.weight.mul_(0.05)
            head.bias.fill_(2.0)  # what is followed is in sight
    network.save_pretrained(path)
    size, small = ({"height": side, "width": side} for side in (SIDE_PX, SIDE_PX // 4))
    Sam2VideoProcessor(
        Sam2ImageProcessor(size=size, mask_size=small), Sam2VideoVideoProcessor(size=size)
    ).save_pretrained(path)
    return str(path)


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: a tiny random checkpoint in the library's own format."""
    return Sam2(checkpoint=saved(folder), keyframe_interval_s=0.08, **LOOSE), DecodedClip.from_frames(frames)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("sam2"))


@pytest.fixture(scope="module")
def model(checkpoint):
    return Sam2(checkpoint=checkpoint).load("cpu")


def two_boxes(size=(48, 80)):
    labels = np.zeros(size, np.uint16)
    labels[8:30, 10:30] = 3
    labels[20:40, 44:70] = 7
    return labels


def four_boxes():
    labels = two_boxes()
    labels[2:7, 60:78] = 2
    labels[34:46, 4:18] = 5
    return labels


def test_answers_are_those_of_the_image_model(checkpoint, model):
    image = panned([(0, 0)], 60, 100)[0]
    points = np.array([[20.0, 30.0], [90.5, 7.0], [50.0, 50.0]])
    seen = Sam2Prompted(*model, "fp32")
    seen.use(*seen.embed([image]))
    logits, predicted = seen.predict_points(points)

    library = Sam2Model.from_pretrained(checkpoint).eval()
    inputs = model[1](images=image, input_points=[[[list(point)] for point in points]], input_labels=[[[1]] * 3])
    with torch.no_grad():
        theirs = library(
            pixel_values=torch.as_tensor(np.array(inputs["pixel_values"])),
            input_points=inputs["input_points"],
            input_labels=inputs["input_labels"],
            multimask_output=True,
        )
    assert logits.abs().max() > 1
    # points are scaled to the network's side in another order of float32 operations
    assert torch.allclose(logits, theirs.pred_masks[0], rtol=0, atol=1e-5 * float(logits.abs().max()))
    assert torch.allclose(predicted, theirs.iou_scores[0], rtol=0, atol=1e-5 * float(predicted.abs().max()))
    full = model[1].post_process_masks([theirs.pred_masks[0]], [(60, 100)], binarize=False)[0]
    # one interpolation of another batch: rounding of float32
    assert torch.allclose(seen.upscale(logits[0]), full[0], rtol=0, atol=1e-5 * float(logits.abs().max()))


@pytest.mark.parametrize("reverse", [False, True])
def test_following_frame_by_frame_equals_the_librarys_session_over_the_whole_video(model, reverse):
    network, processor = model
    frames, labels = panned([(i, i // 2) for i in range(20)], 48, 80), two_boxes()
    start = 19 if reverse else 0
    session = processor.init_video_session(video=list(frames))
    masks = [labels == 3, labels == 7]
    processor.add_inputs_to_inference_session(session, frame_idx=start, obj_ids=[3, 7], input_masks=masks)
    network(inference_session=session, frame_idx=start)
    theirs = {}
    for output in network.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse):
        full = processor.post_process_masks([output.pred_masks], [(48, 80)], binarize=False)[0][:, 0]
        best, which = full.max(dim=0)
        theirs[output.frame_idx] = np.where(best.numpy() > 0, np.array([3, 7])[which.numpy()], 0)
    order = range(19, -1, -1) if reverse else range(20)
    seen = Sam2Prompted(network, processor, "fp32", tracked_per_batch=1)  # as the library
    ours = propagate(seen, frames, labels, order, fill_holes_px=0)
    assert len(np.unique(ours)) == 3
    for row, index in enumerate(order[1:]):
        # their processor of videos and that of pictures differ in the last place: a logit near 0 may change its sign
        assert np.mean(ours[row] != theirs[index]) < 2e-3
    assert np.mean([ours[row] != ours[0] for row in range(19)]) > 0.01  # they move


def library_session(model, frames, labels, numbers, order):
    """The library's session, and for each frame of `order` its logits after the forward pass."""
    network, processor = model
    session = processor.init_video_session(inference_device="cpu", dtype=torch.float32)
    masks = [labels == number for number in numbers]
    processor.add_inputs_to_inference_session(session, order[0], numbers, input_masks=masks)
    seen = Sam2Prompted(network, processor, "fp32")
    for at in order:
        given = {"frame": seen.pixels([frames[at]])[0], "frame_idx": at, "reverse": order[-1] < order[0]}
        with torch.inference_mode():
            logits = network(inference_session=session, **given).pred_masks[:, 0]
        yield session, logits


@pytest.mark.parametrize("reverse", [False, True])
def test_logits_are_those_of_the_librarys_session(model, reverse):
    """Over more frames than memories and pointers reach back, instance by instance; frames in batches."""
    frames, labels = panned([(i, i // 2) for i in range(20)], 48, 80), four_boxes()
    numbers, order = [2, 3, 5, 7], range(19, -1, -1) if reverse else range(20)
    seen = Sam2Prompted(*model, "fp32", frames_per_batch=4, tracked_per_batch=1)
    with torch.inference_mode():
        ours = list(_followed(seen, frames, labels, numbers, order))
    theirs = [logits for _, logits in library_session(model, frames, labels, numbers, order)]
    assert len(ours) == 19
    for mine, expected in zip(ours, theirs[1:], strict=True):
        assert expected.abs().max() > 1
        assert torch.allclose(mine, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_logits_of_a_batch_of_instances_are_those_of_the_librarys_session(model):
    """Each frame from the library's own memory: random weights blow a rounding up from frame to frame."""
    frames, labels = panned([(i, i // 2) for i in range(20)], 48, 80), four_boxes()
    numbers, seen = [2, 3, 5, 7], Sam2Prompted(*model, "fp32")
    masks = prompt_masks(torch.from_numpy(np.stack([labels == number for number in numbers])), SIDE_PX)
    tracked = None
    for at, (session, expected) in enumerate(library_session(model, frames, labels, numbers, range(20))):
        with torch.inference_mode():
            (vision,) = vision_of(model[0], seen.pixels([frames[at]]))
            if tracked is None:
                tracked = TrackedInstances(model[0], vision, masks)
            else:
                logits = tracked.follow(vision, is_last=False)
                assert torch.allclose(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        kind = "non_cond_frame_outputs" if at else "cond_frame_outputs"
        theirs = [session.output_dict_per_obj[row][kind][at] for row in range(4)]
        memory = torch.cat([one["maskmem_features"] for one in theirs], dim=1)
        pointers = torch.cat([one["object_pointer"][0] for one in theirs])
        # the library keeps bfloat16: 1/256 of a value, where a rounding goes the other way
        mine = tracked.memories[-1] if at else tracked.first_memory
        assert torch.allclose(mine.float(), memory.float(), rtol=1 / 128, atol=1e-3 * float(memory.max()))
        if at:
            tracked.memories[-1], tracked.pointers[-1] = memory, pointers
        else:
            tracked.first_memory, tracked.first_pointers = memory, pointers


def test_an_instance_without_a_pixel_at_the_networks_size_is_as_in_the_library(model):
    frames, labels = panned([(i, 0) for i in range(3)], 300, 400), np.zeros((300, 400), np.uint16)
    labels[5, 5], labels[50:200, 100:300] = 1, 2  # of 128 px a side, the first has none
    seen = Sam2Prompted(*model, "fp32", tracked_per_batch=1)
    with torch.inference_mode():
        ours = list(_followed(seen, frames, labels, [1, 2], range(3)))
    for at, (session, expected) in enumerate(library_session(model, frames, labels, [1, 2], range(3))):
        assert not session.mask_inputs_per_obj[0][0].any()
        assert not at or torch.allclose(ours[at - 1], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_memory_is_bounded_whatever_the_length(model, monkeypatch):
    frames = panned([(i % 7, 0) for i in range(40)], 48, 80)
    sizes, follow = [], TrackedInstances.follow

    def watched(self, vision, *, is_last):
        tensors = [*self.memories, *self.pointers, self.first_memory, self.first_pointers, self.positions]
        sizes.append(sum(tensor.numel() for tensor in tensors))
        return follow(self, vision, is_last=is_last)

    monkeypatch.setattr(TrackedInstances, "follow", watched)
    propagate(Sam2Prompted(*model, "fp32"), frames, two_boxes(), range(40), 0)
    assert len(sizes) == 39
    assert sizes[-1] == sizes[20] > sizes[2]  # full after the 16 frames that the network looks back


def test_waits_for_the_device_are_few_per_batch_of_frames_and_none_per_instance(model):
    frames = panned([(i, 0) for i in range(9)], 48, 80)
    totals = []
    propagate(
        Sam2Prompted(*model, "fp32"), frames, two_boxes(), range(9), 8
    )  # the library's processor keeps some tensors
    for labels, batches in (
        (two_boxes(), (4, 16)),
        (four_boxes(), (4, 16)),
        (four_boxes(), (4, 2)),
        (two_boxes(), (8, 16)),
    ):
        with Waits() as waits:
            propagate(Sam2Prompted(*model, "fp32", *batches), frames, labels, range(9), 8)
        totals.append(waits.total)
        assert waits.counts["cpu"] == 2 * (8 // batches[0])  # masks to fill, and maps
        assert waits.counts["from_numpy"] == 1 + -(-9 // batches[0]) + 8 // batches[0]  # labels, frames, holes
    assert totals[0] == totals[1] == totals[2] > totals[3]


def test_numbers_are_kept_and_their_order_changes_nothing(model):
    frames, labels = panned([(i, 0) for i in range(5)], 48, 80), two_boxes()
    swapped = np.select([labels == 3, labels == 7], [9, 2]).astype(np.uint16)
    seen = Sam2Prompted(*model, "fp32")
    one, other = (propagate(seen, frames, given, range(5), 8) for given in (labels, swapped))
    # memories of all instances are encoded in one batch: its order changes the rounding, and a logit near 0 its sign
    assert np.mean(np.select([one == 3, one == 7], [9, 2]) != other) < 5e-3


def test_nothing_to_follow_needs_no_session(model):
    frames = panned([(i, 0) for i in range(3)], 48, 80)
    found = propagate(Sam2Prompted(*model, "fp32"), frames, np.zeros((48, 80), np.uint16), range(3), 8)
    assert found.shape == (2, 48, 80)
    assert not found.any()


class Tracker:
    """What stands in for the memory: it follows squares exactly, by the truth, forward and backward."""

    def __init__(self, truth):
        self.truth = truth

    def __call__(self, seen, frames, labels, order, fill_holes_px):
        given = {int(labels[self.truth[order[0]] == n][0]): n for n in np.unique(self.truth[order[0]])[1:]}
        found = np.zeros((len(order) - 1, *labels.shape), np.uint16)
        for row, at in enumerate(order[1:]):
            for number, true in given.items():
                found[row][self.truth[at] == true] = number
        return found


def test_ids_hold_across_windows_and_what_enters_in_one_is_followed_back(monkeypatch):
    """An object added in a later key frame, its way back, and one that leaves: row 13 of the parity table."""
    from openuni.annotators import _sam2_memory
    from tests.annotators.oracles import Truth, agreement
    from tests.annotators.test_segmenter import squares

    clip, truth = squares(
        25,
        lambda t: (10 + 2 * t, 10),
        lambda t: (70 - 2 * t, 40) if t >= 6 else None,
        lambda t: (40, 20) if t < 11 else None,
    )
    monkeypatch.setattr(_sam2_memory, "propagate", Tracker(truth))

    class TrueSam2(Sam2):
        def promptable(self, model):
            return model

        def keyframe_interval(self, model, clip, labels, first, last):
            return MemoryInterval(model, clip.frames, labels, (first, last), 0)

    operator = TrueSam2(keyframe_interval_s=0.5)
    found = operator.run(Truth(clip.frames, truth), clip)
    ids = found.segmentation.array[..., 0]
    names = {number: agreement(ids, truth, number) for number in (1, 2, 3)}
    assert len({name for name, _, _ in names.values()}) == found.instance_count == 3
    assert [share for _, share, _ in names.values()] == [1.0, 1.0, 1.0]
    assert np.array_equal(ids > 0, truth > 0)
    assert found.link_iou == 1.0


def test_a_clip_of_random_masks(checkpoint, model):
    frames = panned([(i, i // 2) for i in range(9)], 48, 80)
    operator = Sam2(checkpoint=checkpoint, keyframe_interval_s=0.16, min_area_share=0.02, **LOOSE)
    found = operator.run(model, DecodedClip.from_frames(frames))
    assert found.segmentation.array.shape == (9, 48, 80, 1)
    assert found.instance_count == len(found.instances) > 0
    assert found.instances[0].frames == 9
    few = Sam2(checkpoint=checkpoint, keyframe_interval_s=0.16, instances_per_batch=1, **LOOSE).run(
        model, DecodedClip.from_frames(frames)
    )
    assert few.segmentation.array[0].max() <= 2
    assert len(np.unique(few.segmentation.array[0])) <= 2


def test_holes_are_filled_without_an_extension():
    logits = torch.full((2, 16, 16), -3.0)
    logits[:, 2:14, 2:14] = 4.0
    logits[0, 5:8, 5:8] = -1.0  # 9 pixels: one too many
    logits[1, 5:7, 5:9] = -1.0  # 8 pixels
    done = filled(logits, 8)
    assert torch.equal(done[0], logits[0])
    assert (done[1, 5:7, 5:9] == torch.tensor(0.1)).all()
    assert torch.equal(
        done[1] > 0, logits[0].clone().index_fill_(0, torch.arange(2, 14), 4.0).where(done[1] > 0, -1) > 0
    )
    assert filled(logits, 0) is logits


def test_bf16_stays_near_fp32(model):
    image, logits = panned([(0, 0)], 48, 80)[0], []
    for precision in ("fp32", "bf16"):
        seen = Sam2Prompted(*model, precision)
        seen.use(*seen.embed([image]))
        logits.append(seen.predict_points(np.array([[30.0, 20.0]]))[0])
    assert logits[1].dtype == torch.float32
    difference = (logits[0] - logits[1]).abs()
    assert 0 < difference.mean() < 0.2 * logits[0].abs().mean()  # random weights blow rounding up
    frames, labels = panned([(i, 0) for i in range(4)], 48, 80), two_boxes()
    assert propagate(Sam2Prompted(*model, "bf16"), frames, labels, range(4), 8).any()


def test_wrong_checkpoints_are_explained(tmp_path, checkpoint):
    with pytest.raises(MissingRequirement, match="openuni checkpoints get somebody/no-such-sam2"):
        Sam2(checkpoint="somebody/no-such-sam2").load("cpu")
    (tmp_path / "config.json").write_text('{"model_type": "sam2"}')
    with pytest.raises(OpenUniError, match='is "sam2", must be "sam2_video"'):
        Sam2(checkpoint=str(tmp_path)).load("cpu")

    from pathlib import Path

    partial = tmp_path / "partial"
    partial.mkdir()
    for file in Path(checkpoint).glob("*.json"):
        (partial / file.name).write_bytes(file.read_bytes())
    weights = load_file(Path(checkpoint) / "model.safetensors")
    del weights["memory_temporal_positional_encoding"]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OpenUniError, match=r"1 tensors are missing .* memory_temporal_positional_encoding"):
        Sam2(checkpoint=str(partial)).load("cpu")


def test_published_checkpoints():
    (chosen,) = Sam2().checkpoints()
    assert (chosen.ref, chosen.store, chosen.licence) == ("facebook/sam2.1-hiera-small", "hub", "Apache-2.0")
    assert len(Sam2.published()) == 4


@pytest.mark.parametrize("wrong", [{"instances_per_batch": 0}, {"fill_holes_px": -1}, {"keyframe_interval_s": -1.0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match=r"sam2: .* Allowed"):
        Sam2(**wrong)

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.sam3_video import modeling_sam3_video
from transformers.models.sam3_video.modeling_sam3_video import (
    Sam3VideoSegmentationOutput,
    fill_holes_in_mask_scores,
    nms_masks,
)

from openuni.annotators import _sam3_session
from openuni.annotators._sam3_session import FramesOnDemand, HostOperations, prompted_frames, use_host_operations
from openuni.annotators.sam3 import Sam3
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import MissingRequirement, OpenUniError
from tests.annotators.tiny_sam3 import GRID, SIDE_PX, saved
from tests.moving_pictures import panned

PROMPTS = ("person", "dog")
# short delays and low thresholds: instances are removed, and their memory is renewed, within a few frames
QUICK = {
    "hotstart_delay": 4,
    "hotstart_unmatch_thresh": 3,
    "hotstart_dup_thresh": 2,
    "recondition_every_nth_frame": 3,
    "high_conf_thresh": 0.1,
    "high_iou_thresh": 0.1,
}
LOOSE = {"prompts": PROMPTS, "min_score": 0.1, "min_new_score": 0.2, "nms_iou": 0.9, "max_tracked": 5}


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: a tiny random checkpoint in the library's own format."""
    few = LOOSE | {"max_tracked": 2, "prompts": ("dog",)}
    return Sam3(checkpoint=saved(folder, seed=5, **QUICK), **few), DecodedClip.from_frames(frames)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("sam3"), seed=5, **QUICK)


@pytest.fixture(scope="module")
def model(checkpoint):
    return Sam3(checkpoint=checkpoint, **LOOSE).load("cpu")


def slow_pan(count):
    return panned([(i // 5, 0) for i in range(count)], 48, 80)


def as_the_library(network, processor, frames):
    """Its pass over a stored video, with its own post-processing: label maps, -1 for the background."""
    session = processor.init_video_session(video=frames)
    processor.add_text_prompt(session, list(PROMPTS))
    maps, prompts, removed = [], {}, set()
    for output in network.propagate_in_video_iterator(session):
        found = processor.postprocess_outputs(session, output)
        labels = np.full(frames.shape[1:3], -1)
        for prompt in PROMPTS:  # in order: the later prompt is on top
            for number in found["prompt_to_obj_ids"].get(prompt, []):
                labels[found["masks"][found["object_ids"].tolist().index(number)].numpy()] = number
                prompts[number] = prompt
        maps.append(labels)
        removed |= output.removed_obj_ids
    return np.stack(maps), prompts, removed


@pytest.mark.parametrize(
    ("seed", "found"), [pytest.param(2, {"person"}, marks=pytest.mark.slow), (5, {"person", "dog"})]
)
def test_frames_are_those_of_the_librarys_pass_over_a_stored_video(tmp_path, seed, found):
    frames = slow_pan(16)
    operator = Sam3(checkpoint=saved(tmp_path, seed=seed, **QUICK), **LOOSE)
    network, processor = operator.load("cpu")
    theirs, prompts, removed = as_the_library(network, processor, frames)
    ours = list(prompted_frames(network, processor, frames, PROMPTS, "fp32"))
    assert len(ours) == 16
    assert np.array_equal(np.stack([frame.labels for frame in ours]), theirs)
    assert {number: prompt for frame in ours for number, prompt in frame.prompts.items()} == prompts
    assert set(prompts.values()) == found
    assert removed  # some were not confirmed
    assert not removed & {number for frame in ours for number in frame.scores}


@pytest.mark.slow
def test_memory_is_bounded_whatever_the_length(model, monkeypatch):
    network, processor = model
    sizes, lists, kept = [], [], []
    prune = _sam3_session.prune_session

    def watched(session, index, network):
        prune(session, index, network)
        entries = [
            at for one in session.output_dict_per_obj.values() for group in one.values() for at in group.values()
        ]
        tensors = [tensor for entry in entries for tensor in entry.values()]
        sizes.append(sum(tensor.numel() for tensor in tensors) / max(1, session.get_obj_num()))
        past = (session.unmatched_frame_inds, session.overlap_pair_to_frame_inds)
        lists.append(max((len(found) for one in past for found in one.values()), default=0))
        kept.append(session)

    monkeypatch.setattr(_sam3_session, "prune_session", watched)
    list(prompted_frames(network, processor, slow_pan(30), PROMPTS, "fp32"))
    memory = GRID * GRID * 64 * 2  # of one frame: features and their position codes
    config = network.tracker_model.config
    assert max(sizes) < (config.num_maskmem + config.max_cond_frame_num) * memory + 64 * 128 * 2
    assert max(lists) <= 3
    session = kept[-1]
    assert not session.obj_id_to_tracker_score_frame_wise
    assert not session.suppressed_obj_ids
    assert not any(session.mask_inputs_per_obj.values())
    assert not any(session.frames_tracked_per_obj.values())
    assert max(len(one["non_cond_frame_outputs"]) for one in session.output_dict_per_obj.values()) <= 16


@pytest.mark.slow
def test_the_table_names_the_prompt_of_every_instance(checkpoint, model):
    frames = slow_pan(16)
    clip = DecodedClip.from_frames(frames)
    found = Sam3(checkpoint=checkpoint, **LOOSE).run(model, clip)
    ids = found.segmentation.array[..., 0]
    theirs, prompts, _ = as_the_library(*model, frames)
    assert found.instance_count == len(found.instances) == len(np.unique(theirs)) - 1 > 1
    for instance in found.instances:
        where = ids == instance.id
        numbers = np.unique(theirs[where])
        assert len(numbers) == 1
        assert np.array_equal(theirs == numbers[0], where)
        assert instance.prompt == prompts[int(numbers[0])]
        assert 0.1 < instance.score <= 1
        left, top, width, height = instance.box_px
        assert where[instance.largest_frame, top : top + height, left : left + width].sum() == where.sum((1, 2)).max()
    areas = [int((ids == instance.id).sum()) for instance in found.instances]
    assert areas == sorted(areas, reverse=True)
    assert found.prompts_found == len({instance.prompt for instance in found.instances})
    few = Sam3(checkpoint=checkpoint, max_instances=1, **LOOSE).run(model, clip)
    assert [instance.id for instance in few.instances] == [1]
    assert np.array_equal(few.segmentation.array[..., 0] == 1, ids == 1)


@pytest.mark.slow
def test_no_more_instances_are_tracked_than_allowed(checkpoint):
    counts = []
    for most in (2, 1):
        operator = Sam3(checkpoint=checkpoint, **LOOSE | {"max_tracked": most})
        counts.append(operator.run(operator.load("cpu"), DecodedClip.from_frames(slow_pan(1))).instance_count)
    assert counts == [2, 1]


def test_nothing_found_is_an_empty_map(checkpoint):
    operator = Sam3(checkpoint=checkpoint, min_score=1.0, min_new_score=1.0)
    found = operator.run(operator.load("cpu"), DecodedClip.from_frames(slow_pan(3)))
    assert not found.segmentation.array.any()
    assert found[1:] == ([], 0, 0, 0.0, None, None)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (3, 3)])
def test_frames_of_any_size(checkpoint, model, size):
    frames = np.zeros((2, *size, 3), np.uint8)
    frames[..., 0] = 255
    pixels = FramesOnDemand(frames, model[1], "cpu")[1]
    assert pixels.shape == (3, SIDE_PX, SIDE_PX)
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(pixels.shape)
    assert torch.allclose(pixels, red, rtol=0, atol=1e-6)  # not a stripe of each colour
    found = Sam3(checkpoint=checkpoint, **LOOSE).run(model, DecodedClip.from_frames(frames))
    assert found.segmentation.array.shape == (2, *size, 1)


def painted(processor, prompts, masks, scores, **known):
    """`_painted` of instances 0, 1, ... with binary masks [h, w], each of the prompt of that index."""
    session = processor.init_video_session()
    session.video_height, session.video_width = masks[0].shape
    processor.add_text_prompt(session, list(prompts))
    session.obj_id_to_prompt_id = dict(enumerate(known.get("of_prompt", range(len(masks)))))
    session.hotstart_removed_obj_ids = known.get("removed", set())
    output = Sam3VideoSegmentationOutput(
        obj_id_to_mask={n: torch.from_numpy(np.where(mask, 4.0, -4.0))[None].float() for n, mask in enumerate(masks)},
        obj_id_to_score=dict(enumerate(scores)),
        obj_id_to_tracker_score=dict(enumerate(scores)),
        suppressed_obj_ids=known.get("suppressed", set()),
    )
    return _sam3_session._painted(session, processor, output, masks[0].shape)


def test_later_prompts_are_on_top_and_within_one_the_higher_score(model):
    processor = model[1]
    person, hat = np.zeros((2, 16, 16), bool)
    person[2:14, 4:12], hat[2:5, 2:14] = True, True
    over = painted(processor, ("person", "hat"), [person, hat], [0.9, 0.5])
    assert (over.labels == 1).sum() == hat.sum()
    assert (over.labels == 0).sum() == (person & ~hat).sum()
    assert over.prompts == {0: "person", 1: "hat"}
    under = painted(processor, ("hat", "person"), [person, hat], [0.9, 0.5], of_prompt=(1, 0))
    assert (under.labels == 0).sum() == person.sum()
    same = painted(processor, ("thing",), [person, hat], [0.9, 0.5], of_prompt=(0, 0))
    assert (same.labels == 0).sum() == person.sum()
    same = painted(processor, ("thing",), [person, hat], [0.4, 0.5], of_prompt=(0, 0))
    assert (same.labels == 1).sum() == hat.sum()


def test_removed_and_suppressed_instances_do_not_show(model):
    mask = np.ones((8, 8), bool)
    for hidden in ({"removed": {0}}, {"suppressed": {0}}):
        found = painted(model[1], ("thing",), [mask], [0.9], **hidden)
        assert (found.labels == -1).all()
        assert not found.scores


# ---------------------------------------------------------------------- operations that the library downloads


def test_suppression_keeps_the_better_of_two_masks(model):
    masks = torch.full((4, 8, 8), -1.0)
    masks[0, :, :4] = masks[1, :, :5] = masks[2, :, 6:] = masks[3, :, :4] = 1.0
    scores = torch.tensor([0.6, 0.9, 0.55, 0.3])
    keep = nms_masks(scores, masks, prob_threshold=0.5, iou_threshold=0.7)
    assert keep.tolist() == [False, True, True, False]  # 0 has an IoU of 0.8 with 1; 3 is below the threshold
    keep = nms_masks(scores, masks, prob_threshold=0.5, iou_threshold=0.85)
    assert keep.tolist() == [True, True, True, False]
    with pytest.raises(ValueError, match="all pairs"):
        HostOperations().generic_nms(masks, scores, 0.5, use_iou_matrix=False)


def test_a_discarded_mask_discards_no_other():
    ious = torch.tensor([[1.0, 0.6, 0.0], [0.6, 1.0, 0.6], [0.0, 0.6, 1.0]])
    kept = HostOperations().generic_nms(ious, torch.tensor([0.9, 0.8, 0.7]), 0.5, use_iou_matrix=True)
    assert kept.tolist() == [0, 2]


def test_holes_are_filled_and_sprinkles_removed(model):
    mask = torch.full((1, 1, 15, 16), -3.0)
    mask[0, 0, 1:11, 1:11] = 3.0
    mask[0, 0, 3, 3] = mask[0, 0, 4, 4] = -3.0  # a hole of two pixels that touch at a corner
    mask[0, 0, 6:9, 6] = -3.0  # one of three
    mask[0, 0, [2, 3, 4], [7, 8, 9]] = -3.0  # one of three that touch at corners
    mask[0, 0, 13, 13] = 3.0  # a sprinkle
    done = fill_holes_in_mask_scores(mask, max_area=2)
    expected = mask.clone()
    expected[0, 0, 3, 3] = expected[0, 0, 4, 4] = 0.1
    expected[0, 0, 13, 13] = -0.1
    assert torch.equal(done, expected)


def test_components_have_their_areas():
    masks = np.zeros((2, 1, 4, 4), np.uint8)
    masks[0, 0, 0, :3] = masks[0, 0, 3, 3] = masks[1] = 1
    labels, areas = HostOperations().cc_2d(torch.from_numpy(masks), get_counts=True)
    assert areas.dtype == labels.dtype == torch.int32
    assert areas[0, 0, 0].tolist()[:3] == [3, 3, 3]
    assert areas[0, 0, 3, 3] == 1
    assert (areas[1] == 16).all()
    assert (labels[0, 0] > 0).sum() == 4


def test_no_code_is_downloaded(checkpoint, monkeypatch):
    def download(*given, **more):
        raise AssertionError("a run must not download code")

    monkeypatch.setattr(modeling_sam3_video, "cv_utils_kernel", None)
    monkeypatch.setattr(modeling_sam3_video, "is_kernels_available", lambda: True)
    monkeypatch.setattr(modeling_sam3_video, "get_kernel", download, raising=False)
    operator = Sam3(checkpoint=checkpoint, **LOOSE)
    assert operator.run(operator.load("cpu"), DecodedClip.from_frames(slow_pan(1))).instance_count
    assert isinstance(modeling_sam3_video.cv_utils_kernel, HostOperations)
    with pytest.raises(OpenUniError, match="Install the version"):
        use_host_operations(_sam3_session)


# ---------------------------------------------------------------------- precision, checkpoints, options


def test_bf16_stays_near_fp32(model):
    network, processor = model
    scores = [
        next(iter(prompted_frames(network, processor, slow_pan(1), PROMPTS, precision))).scores
        for precision in ("fp32", "bf16")
    ]
    assert scores[0]
    assert scores[0] != scores[1]
    best = [max(found.values()) for found in scores]
    assert best[0] == pytest.approx(best[1], abs=0.05)


def test_the_network_is_float32_whatever_the_file_says(tmp_path, checkpoint):
    for file in Path(checkpoint).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = {name: value.half() for name, value in load_file(tmp_path / "model.safetensors").items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    network, _ = Sam3(checkpoint=str(tmp_path)).load("cpu")
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


def test_wrong_checkpoints_are_explained(tmp_path, checkpoint):
    with pytest.raises(MissingRequirement, match="openuni checkpoints get somebody/no-such-sam3"):
        Sam3(checkpoint="somebody/no-such-sam3").load("cpu")
    (tmp_path / "config.json").write_text('{"model_type": "sam2_video"}')
    with pytest.raises(OpenUniError, match='is "sam2_video", must be "sam3_video"'):
        Sam3(checkpoint=str(tmp_path)).load("cpu")

    def copy(name, without=()):
        folder = tmp_path / name
        folder.mkdir()
        for file in Path(checkpoint).iterdir():
            if not file.name.startswith(without or "-"):
                (folder / file.name).write_bytes(file.read_bytes())
        return folder

    with pytest.raises(OpenUniError, match=r"is not a SAM 3 video checkpoint .* no tokenizer\.json"):
        Sam3(checkpoint=str(copy("no tokenizer", "tokenizer"))).load("cpu")
    partial = copy("partial")
    weights = load_file(partial / "model.safetensors")
    del weights[next(name for name in weights if "maskmem_tpos_enc" in name or "memory_temporal_pos" in name)]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OpenUniError, match=r"1 tensors are missing .*memory_temporal_positional_encoding"):
        Sam3(checkpoint=str(partial)).load("cpu")
    pickled = copy("pickled", "model")
    torch.save(weights, pickled / "pytorch_model.bin")
    with pytest.raises(OpenUniError, match="is not a SAM 3 video checkpoint"):
        Sam3(checkpoint=str(pickled)).load("cpu")


def test_the_published_checkpoint_is_gated_and_its_uses_are_restricted():
    (chosen,) = Sam3().checkpoints()
    assert (chosen.ref, chosen.store, chosen.licence) == ("facebook/sam3", "hub", "LicenseRef-SAM-License")
    assert chosen.gated
    assert chosen.terms == "use-restricted"
    assert chosen.requires_acceptance


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ((), r"prompts = .* Allowed: .*at least 1"),
        (("",), "without spaces at either end"),
        (("dog", " cat"), r'prompts = \["dog", " cat"\]. Allowed: noun phrases without spaces'),
        (("dog", "dog"), "each prompt once"),
        (tuple(f"thing {number}" for number in range(65)), "65 prompts. Allowed: at most 64"),
    ],
)
def test_wrong_prompts_are_explained(prompts, message):
    with pytest.raises(OpenUniError, match=message):
        Sam3(prompts=prompts)


def test_a_prompt_that_is_too_long_is_explained(checkpoint):
    with pytest.raises(OpenUniError, match=r'prompt "a{31}" has 33 tokens. Allowed: at most 32'):
        Sam3(checkpoint=checkpoint, prompts=("a" * 31,)).load("cpu")
    Sam3(checkpoint=checkpoint, prompts=("a" * 30,)).load("cpu")


@pytest.mark.parametrize("wrong", [{"min_score": 1.5}, {"max_tracked": 0}, {"max_instances": 0}, {"precision": "fp8"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match=r"sam3: .* Allowed"):
        Sam3(**wrong)

"""Instances over time, with a network that knows the truth: what is left is linking, carrying and the table."""

from functools import cache

import numpy as np
import pytest

from openuni.annotators._flow_propagation import propagate_labels
from openuni.annotators._guide_flow import guide_flow
from openuni.annotators._instance_table import flow_iou
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.world import make_clip
from tests.annotators.oracles import TrueSam, Truth, agreement, hidden_for_a_while
from tests.moving_pictures import texture

FPS = 16.0


def clip_of(world):
    return DecodedClip.from_frames(world.frames, fps=FPS), world.modalities["segmentation"].array[..., 0]


@cache
def crossing(seed):
    world = make_clip(
        seed, preset="persons", frames=33, height_px=144, width_px=216, fps=FPS, modalities=("segmentation",)
    )
    return clip_of(world)


@cache
def behind_a_box():
    return clip_of(hidden_for_a_while(fps=FPS))


def annotate(clip, truth, missing=(), **options):
    return TrueSam(**{"keyframe_interval_s": 0.25} | options).run(Truth(clip.frames, truth, missing), clip)


def squares(count, *paths, size=(64, 96), side=16):
    """Textured squares on a textured ground: each path gives left and top per frame, None where it is not there.

    Returns the clip and the truth, uint16 [T, H, W]; later squares lie in front.
    """
    ground = texture(*size, seed=99)
    patches = [texture(side, side, seed=7 + number) for number in range(len(paths))]
    frames, truth = np.stack([ground] * count), np.zeros((count, *size), np.uint16)
    for index in range(count):
        for number, path in enumerate(paths):
            if (place := path(index)) is not None:
                left, top = place
                frames[index, top : top + side, left : left + side] = patches[number]
                truth[index, top : top + side, left : left + side] = number + 1
    return DecodedClip.from_frames(frames, fps=FPS), truth


def test_an_id_stays_through_an_occlusion():
    clip, truth = behind_a_box()
    visible = (truth == 2).sum(axis=(1, 2))
    assert (visible == 0).sum() >= 10  # of 33 frames
    found = annotate(clip, truth)
    ids = found.segmentation.array[..., 0]
    ball, share, _ = agreement(ids, truth, 2)
    assert share > 0.9  # the rest: edges that are carried by flow, and slivers at the box
    assert [agreement(ids, truth, number)[1] > 0.99 for number in (1, 3)] == [True, True]
    assert len({agreement(ids, truth, number)[0] for number in (1, 2, 3)}) == found.instance_count == 3
    assert found.relinked == 1
    assert not (ids[visible == 0] == ball)[2:-2].any()
    assert found.instances[ball - 1].frames < 33


def test_an_id_stays_when_little_is_in_sight_at_the_key_frames_beside_the_occlusion():
    clip, truth = behind_a_box()
    assert (truth[24] == 2).sum() < 0.3 * (truth[0] == 2).sum()
    ids = annotate(clip, truth, keyframe_interval_s=0.5).segmentation.array[..., 0]  # key frames 0, 8, 16, 24, 32
    _, share, lost = agreement(ids, truth, 2)
    assert share > 0.75  # half of its frames lie between a sliver and a whole ball
    assert share + lost > 0.98  # no other id, but for stray pixels


def test_without_a_memory_for_gaps_the_ball_comes_back_as_another():
    clip, truth = behind_a_box()
    found = annotate(clip, truth, max_gap_s=0.2)
    assert agreement(found.segmentation.array[..., 0], truth, 2)[1] < 0.6
    assert found.relinked == 0


@pytest.mark.parametrize(
    ("seed", "hidden"),
    [
        (34, 2),
        pytest.param(10, 7, marks=pytest.mark.slow),
        pytest.param(46, 9, marks=pytest.mark.slow),
    ],
)
def test_persons_who_cross_keep_their_ids(seed, hidden):
    clip, truth = crossing(seed)
    visible = (truth == hidden).sum(axis=(1, 2))
    assert visible[4:-4].min() < 0.2 * min(visible[0], visible[-1])  # behind the other one
    ids = annotate(clip, truth).segmentation.array[..., 0]
    seen = [number for number in np.unique(truth)[1:] if (truth == number).mean(axis=(1, 2)).max() > 0.005]
    named = {}
    for number in seen:
        named[number], share, lost = agreement(ids, truth, number)
        assert share > 0.8
        assert 1 - share - lost < 0.05  # hardly a pixel has another's id
    assert len(set(named.values())) == len(seen)


def test_an_instance_that_enters_in_the_middle_has_its_id_from_its_first_frame_on():
    clip, truth = squares(17, lambda t: (10 + t, 10), lambda t: (60 - t, 40) if t >= 6 else None)
    found = annotate(clip, truth, keyframe_interval_s=0.5)  # key frames 0, 8, 16: it enters between two
    ids = found.segmentation.array[..., 0]
    number, share, _ = agreement(ids, truth, 2)
    assert share > 0.95
    first = found.instances[number - 1].first_frame
    assert abs(first - 6) <= 1  # the frame before may show a pixel of it: the flow is not exact
    assert found.new_share == pytest.approx(0.25, abs=0.02)  # new once, of four masks found in later key frames


def test_what_moves_less_than_half_a_pixel_per_frame_is_carried_along():
    clip, truth = squares(17, lambda t: (20 + t // 4, 20))
    found = annotate(clip, truth, keyframe_interval_s=1.0)
    wrong = (found.segmentation.array[..., 0] != truth).mean()
    assert wrong < 0.01
    flow = guide_flow(clip)
    there = propagate_labels(truth[0], flow, 0, 16)
    assert there.labels.shape == (16, 64, 96)
    iou = ((there.labels[-1] == 1) & (truth[-1] == 1)).sum() / ((there.labels[-1] == 1) | (truth[-1] == 1)).sum()
    assert iou > 0.8
    assert ((truth[0] == 1) & (truth[-1] == 1)).sum() / (
        (truth[0] == 1) | (truth[-1] == 1)
    ).sum() < 0.65  # had it stayed
    back = propagate_labels(truth[-1], flow, 16, 0)
    assert (back.labels[-1] != truth[0]).mean() < 0.02


def test_a_mask_that_the_network_misses_in_one_key_frame_is_bridged():
    clip, truth = squares(17, lambda t: (10 + t, 10), lambda t: (60 - t, 40))
    whole = annotate(clip, truth)
    found = annotate(clip, truth, missing=[(8, 2)])
    assert found.instance_count == whole.instance_count == 2
    ids = found.segmentation.array[..., 0]
    assert agreement(ids, truth, 2)[1] > 0.9
    assert (ids[8] == agreement(ids, truth, 2)[0]).sum() > 0.8 * 256
    assert found.relinked == 0


def test_order_of_masks_does_not_matter():
    clip, truth = squares(9, lambda t: (10 + t, 10), lambda t: (60 - t, 40), lambda t: (40, 20))

    class Backwards(Truth):
        def predict_points(self, points_px):
            logits, sure = super().predict_points(points_px.flip(0))
            return logits, sure

    options = TrueSam(keyframe_interval_s=0.25)
    one, other = (options.run(kind(clip.frames, truth), clip) for kind in (Truth, Backwards))
    assert np.array_equal(one.segmentation.array, other.segmentation.array)
    assert one[1:] == other[1:]


def test_one_frame_and_nothing_found():
    clip, truth = squares(9, lambda t: (10 + t, 10))
    single = DecodedClip.from_frames(clip.frames[:1], fps=FPS)
    found = annotate(single, truth)
    assert np.array_equal(found.segmentation.array[..., 0], truth[:1])
    assert (found.link_iou, found.flow_iou, found.new_share, found.relinked) == (None, None, None, 0)
    (row,) = found.instances
    assert row[:4] == (1, 0, 0, 1)
    assert row.area_share == pytest.approx(256 / (64 * 96))
    assert row.box_px == [10, 10, 16, 16]

    nothing = annotate(clip, np.zeros_like(truth))
    assert nothing.segmentation.array.max() == 0
    assert nothing.segmentation.array.shape == (9, 64, 96, 1)
    assert (nothing.instances, nothing.instance_count, nothing.covered_share) == ([], 0, 0.0)
    assert (nothing.link_iou, nothing.flow_iou, nothing.predicted_iou, nothing.new_share) == (None, None, None, None)


def test_the_table_says_what_is_in_the_map():
    clip, truth = squares(9, lambda t: (10 + t, 10), lambda t: (60, 40) if t < 5 else None)
    found = annotate(clip, truth)
    ids = found.segmentation.array[..., 0]
    assert [row.id for row in found.instances] == [1, 2]
    for row in found.instances:
        areas = (ids == row.id).sum(axis=(1, 2))
        assert row.frames == (areas > 0).sum()
        assert (row.first_frame, row.last_frame) == (np.flatnonzero(areas)[0], np.flatnonzero(areas)[-1])
        assert row.area_share == pytest.approx(areas[areas > 0].mean() / ids[0].size)
        assert areas[row.largest_frame] == areas.max()
        left, top, width, height = row.box_px
        inside = ids[row.largest_frame, top : top + height, left : left + width] == row.id
        assert inside.sum() == areas.max()
        assert inside.any(axis=0).all()
        assert inside.any(axis=1).all()
        assert row.predicted_iou == pytest.approx(0.95)
    assert found.covered_share == pytest.approx((ids > 0).mean())
    assert found.instances[0].area_share * found.instances[0].frames > found.instances[1].frames * 0.03


def test_only_the_largest_instances_get_ids():
    clip, truth = squares(5, lambda t: (10 + t, 10), lambda t: (60, 40), lambda t: (40, 20) if t < 3 else None)
    found = annotate(clip, truth, max_instances=2)
    assert found.instance_count == 2
    assert np.unique(found.segmentation.array).tolist() == [0, 1, 2]
    assert not found.segmentation.array[0][truth[0] == 3].any()


def test_steadiness_along_the_flow_is_high_for_the_truth_and_low_for_masks_that_jump():
    clip, truth = squares(9, lambda t: (10 + 2 * t, 10))
    flow = guide_flow(clip)
    assert flow_iou(truth, flow) > 0.95
    jumping = truth.copy()
    jumping[1::2] = np.roll(truth[1::2], 8, axis=2)
    assert flow_iou(jumping, flow) < 0.6
    steady, shaky = annotate(clip, truth), annotate(clip, jumping, keyframe_interval_s=0.0625)
    assert steady.link_iou > 0.85
    assert shaky.flow_iou < steady.flow_iou - 0.2

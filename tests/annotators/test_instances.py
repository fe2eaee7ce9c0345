from itertools import permutations

import numpy as np
import pytest

from openuni.annotators._automatic_masks import Masks
from openuni.annotators._instances import (
    Appearance,
    FrameInstances,
    Tracks,
    appearance_similarity,
    appearances,
    iou_of,
    joint,
    keyframe_indices,
    largest,
    merge_masks,
)

STILL = np.zeros((8, 12, 2), np.float32)


def masks(*boxes, sure=None, size=(8, 12)):
    """Masks of boxes (left, top, right, bottom; half-open)."""
    found = np.zeros((len(boxes), *size), bool)
    for mask, (left, top, right, bottom) in zip(found, boxes, strict=True):
        mask[top:bottom, left:right] = True
    count = len(boxes)
    sure = np.full(count, 0.9) if sure is None else np.array(sure)
    return Masks(found, sure, np.ones(count), np.zeros((count, 4), np.int64), np.zeros((count, 2)))


def shuffled(given, order):
    return Masks(*(field[list(order)] for field in given))


def test_key_frames_are_evenly_spread_and_have_both_ends():
    even = np.arange(33) / 16
    assert keyframe_indices(even, 0.5).tolist() == [0, 8, 16, 24, 32]
    assert keyframe_indices(even, 0.6).tolist() == [
        0,
        8,
        16,
        24,
        32,
    ]  # 2 s in 4 steps of 0.5, not 3 of 0.6 and one of 0.2
    assert keyframe_indices(even, 99).tolist() == [0, 32]
    assert keyframe_indices(even, 1e-3).tolist() == list(range(33))
    assert keyframe_indices(np.zeros(1), 0.5).tolist() == [0]
    uneven = np.array([0.0, 0.1, 0.8, 1.0])
    assert keyframe_indices(uneven, 0.5).tolist() == [
        0,
        2,
        3,
    ]  # a frame for every instant wanted: 0.5 is nearest to 0.8


@pytest.mark.parametrize("overlap_priority", ["small", "large", "confident"])
def test_order_of_masks_does_not_matter(overlap_priority):
    given = masks(
        (0, 0, 8, 8), (2, 2, 5, 5), (3, 3, 7, 7), (2, 2, 5, 5), (9, 0, 12, 3), sure=[0.9, 0.8, 0.95, 0.99, 0.7]
    )
    first = merge_masks(given, overlap_priority, 0.0, 1.0)
    for order in permutations(range(5)):
        other = merge_masks(shuffled(given, order), overlap_priority, 0.0, 1.0)
        assert np.array_equal(first.labels, other.labels)
        assert np.array_equal(first.predicted_iou, other.predicted_iou)


def test_which_mask_is_seen_where_two_overlap():
    given = masks((0, 0, 6, 6), (2, 2, 8, 5), sure=[0.8, 0.9])  # 36 and 18 pixels
    seen = {rule: merge_masks(given, rule, 0.0, 1.0) for rule in ("small", "large", "confident")}
    ious = {rule: found.predicted_iou[found.labels[3, 3] - 1] for rule, found in seen.items()}
    assert ious == {"small": 0.9, "large": 0.8, "confident": 0.9}
    assert all(np.bincount(found.labels.ravel())[1:].sum() == 42 for found in seen.values())


def test_too_little_in_sight_and_too_much_are_left_out():
    given = masks((0, 0, 12, 8), (0, 0, 4, 4), (0, 0, 4, 3), sure=[0.7, 0.8, 0.9])
    assert merge_masks(given, "small", 0.05, 1.0).predicted_iou.tolist() == [
        0.7,
        0.9,
    ]  # 4 pixels of the second are left
    whole = merge_masks(given, "small", 0.05, 0.5)
    assert whole.predicted_iou.tolist() == [0.9]
    assert merge_masks(masks(), "small", 0.0, 1.0).total == 0
    assert merge_masks(masks((3, 3, 3, 3)), "small", 0.0, 1.0).total == 0  # an empty mask


def test_the_largest_are_kept():
    found = merge_masks(masks((0, 0, 2, 2), (4, 0, 8, 4), (0, 4, 3, 7)), "small", 0.0, 1.0)
    few = largest(found, 2)
    assert few.total == 2
    assert (np.bincount(few.labels.ravel())[1:] == [16, 9]).all()
    assert few.labels[1, 5] == 1
    assert few.labels[0, 0] == 0


def test_iou_of_labels_over_one_frame_and_two():
    one = merge_masks(masks((0, 0, 4, 4), (6, 0, 8, 2)), "large", 0.0, 1.0).labels
    other = merge_masks(masks((2, 0, 6, 4)), "large", 0.0, 1.0).labels
    counts = joint(one, other, (3, 2))
    big = one[0, 0]
    assert iou_of(counts)[big, 1] == pytest.approx(8 / 24)
    assert iou_of(counts)[0].tolist() == [0, 0]
    only = np.zeros(one.shape, bool)
    only[:, :4] = True
    assert iou_of(joint(one, other, (3, 2), only))[big, 1] == pytest.approx(8 / 16)
    assert iou_of(counts + joint(one, one > 0, (3, 2)))[big, 1] == pytest.approx(24 / 44)


def test_looks_are_those_of_the_pixels():
    found = merge_masks(masks((0, 0, 4, 4), (8, 2, 10, 6)), "large", 0.0, 1.0)
    frame = np.zeros((8, 12, 3), np.uint8)
    frame[:4, :4] = (255, 0, 17)
    motion = STILL.copy()
    motion[2:6, 8:10] = (3.0, -1.0)
    motion[2, 8] = 99.0
    looks = appearances(found, frame, motion)
    square, bar = looks[found.labels[0, 0] - 1], looks[found.labels[3, 9] - 1]
    assert (square.area_px, square.centre_px.tolist(), square.motion_px_per_s.tolist()) == (16, [1.5, 1.5], [0.0, 0.0])
    assert (bar.area_px, bar.centre_px.tolist(), bar.motion_px_per_s.tolist()) == (8, [8.5, 3.5], [3.0, -1.0])
    assert square.colours.argmax(axis=1).tolist() == [15, 0, 1]
    assert np.allclose(square.colours.sum(axis=1), 1)


def linked(keys, max_gap_s=1.0, colours=None):
    """Track numbers of boxes in still key frames half a second apart; carried masks stay where they are."""
    tracks, labels, numbers = Tracks(0.5, max_gap_s), None, []
    for index, boxes in enumerate(keys):
        found = merge_masks(masks(*boxes), "large", 0.0, 1.0)
        frame = np.zeros((8, 12, 3), np.uint8)
        for (left, top, right, bottom), colour in zip(boxes, (colours or {}).get(index, [0] * len(boxes)), strict=True):
            frame[top:bottom, left:right] = colour
        looks = appearances(found, frame, STILL)
        if labels is None:
            labels = tracks.start(found, looks, 0.0)
        else:
            affinity = iou_of(joint(found.labels, labels, (found.total + 1, len(tracks.known) + 1)))
            labels = tracks.link(found, looks, labels, affinity, index / 2)
        numbers.append([int(labels[top, left]) for left, top, _, _ in boxes])
    return tracks, numbers, labels


SQUARE, BAR = (0, 0, 4, 4), (8, 2, 10, 6)


def test_what_stays_keeps_its_number_and_what_enters_gets_a_new_one():
    tracks, numbers, _ = linked([[SQUARE], [BAR, SQUARE], [SQUARE, BAR]])
    assert numbers == [[1], [2, 1], [1, 2]]
    assert (tracks.later_px, tracks.unlinked_px) == (24 + 24, 8)
    assert sorted(tracks.link_iou) == [(1.0, 8), (1.0, 16), (1.0, 16)]


def test_what_the_network_misses_goes_on_for_a_while():
    tracks, numbers, labels = linked([[SQUARE, BAR], [BAR], [BAR], [BAR], [BAR]])
    assert (labels[:4, :4] == 0).all()  # not found for more than a second
    assert tracks.in_sight == {numbers[0][1]}
    tracks, numbers, _ = linked([[SQUARE, BAR], [BAR], [BAR], [SQUARE, BAR]], max_gap_s=2.0)
    assert numbers[-1] == numbers[0]
    assert tracks.relinked == 0  # it was in sight all the time


def test_what_is_covered_by_something_else_does_not_go_on():
    tracks, numbers, _ = linked([[SQUARE], [(0, 0, 5, 6)]], colours={0: [255], 1: [10]})
    assert tracks.known.keys() == {1}  # 16 of 30 pixels: the same thing
    tracks, numbers, _ = linked([[SQUARE], [(0, 0, 12, 6)]], colours={0: [255], 1: [10]})
    assert numbers == [[1], [2]]
    assert tracks.in_sight == {2}


def test_likeness_falls_with_distance_size_and_colour():
    def looks(area, x, colour, motion=0.0):
        shares = np.zeros((3, 16))
        shares[:, colour] = 1
        return Appearance(area, np.array([x, 0.0]), np.array([motion, 0.0]), shares)

    tracks = Tracks(0.5, 1.0)
    tracks.start(FrameInstances(np.ones((1, 1), np.uint16), np.array([0.9])), [looks(100, 0.0, 3, motion=40.0)], 0.0)
    track = tracks.known[1]
    assert appearance_similarity(looks(100, 20.0, 3), track, 0.5) == pytest.approx(1)  # where its motion brings it
    assert appearance_similarity(looks(25, 20.0, 3), track, 0.5) == pytest.approx(0.5)
    assert appearance_similarity(looks(100, 20.0, 4), track, 0.5) == 0
    assert appearance_similarity(looks(100, 30.0, 3), track, 0.5) == pytest.approx(np.exp(-100 / (100 + 20**2 / 4)))

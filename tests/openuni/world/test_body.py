"""A walking body is a body that walks: bones keep their length, feet stay where they stand, left is left."""

import numpy as np
import pytest

from openuni.world.figures.body import PARTS, Body, PartPath, posture
from openuni.world.figures.gait import Walk
from openuni.world.figures.keypoints import key_points, places, surface_codes

TIMES_S = np.linspace(0.0, 2.5, 126)
STRAIGHT = Walk((0.3, -1.0), 0.0, 1.3, 0.0, 1.3, 0.2)
BENT = Walk((0.3, -1.0), 2.0, 1.1, -0.8, 1.2, 0.7)
STANDS = Walk((0.0, 0.0), 1.0, 0.0, 0.1, 1.3, 0.4)
WALKS = [STRAIGHT, BENT, STANDS]
# joints by COCO's numbers: shoulder-elbow, elbow-wrist, hip-knee, knee-ankle, ankle-heel, big toe-small toe, ear-ear
BONES = [(5, 7), (6, 8), (7, 9), (8, 10), (11, 13), (12, 14), (13, 15), (14, 16), (15, 19), (16, 22), (17, 18), (3, 4)]


def body(walk: Walk, height_m: float = 1.75) -> Body:
    return Body(1, height_m, 1.0, walk)


def joints(walk: Walk) -> dict[int, np.ndarray]:
    """[T, 3] by COCO's number."""
    who = body(walk)
    found = places(who, posture(who, TIMES_S))
    return {point.number: found[:, index] for index, point in enumerate(key_points())}


def lowest_m(who: Body, part: str, times_s: np.ndarray) -> np.ndarray:
    """Height of a part's lowest point: of both end balls, which are all of it but the hull between. [T]."""
    limb = who.limb(part)
    rotation, middle = posture(who, times_s)[part]
    ends = []
    for sign, radius in ((-1.0, limb.low_m), (1.0, limb.high_m)):
        across = np.array([limb.flat_x, 1.0, limb.flat_z]) * rotation[:, 1, :]  # the ball's support downwards
        centre = middle[:, 1] + sign * limb.half_height_m * rotation[:, 1, 1]
        ends.append(centre - radius * np.linalg.norm(across, axis=1))
    return np.minimum(*ends)


@pytest.mark.parametrize("walk", WALKS)
def test_parts_are_rigid_and_bones_keep_their_length(walk: Walk) -> None:
    for rotation, _ in posture(body(walk), TIMES_S).values():
        assert np.allclose(rotation @ rotation.transpose(0, 2, 1), np.eye(3), atol=1e-9)
        assert np.allclose(np.linalg.det(rotation), 1.0)
    found = joints(walk)
    for one, other in BONES:
        length = np.linalg.norm(found[one] - found[other], axis=1)
        assert np.ptp(length) < 0.02 * length.mean() + 1e-9, (one, other)
    assert np.linalg.norm(found[11] - found[13], axis=1).mean() == pytest.approx(0.245 * 1.75, rel=0.01)


@pytest.mark.parametrize("walk", WALKS)
def test_limbs_meet_at_the_joints(walk: Walk) -> None:
    """The end of each limb is where the next begins."""
    who = body(walk)
    placed = posture(who, TIMES_S)

    def end(part: str, sign: float) -> np.ndarray:
        rotation, middle = placed[part]
        return middle + sign * who.limb(part).half_height_m * rotation[..., 1]

    for side in ("left", "right"):
        assert np.allclose(end(f"{side}_thigh", -1), end(f"{side}_shank", 1), atol=1e-9)
        assert np.allclose(end(f"{side}_upper_arm", -1), end(f"{side}_forearm", 1), atol=1e-9)


@pytest.mark.parametrize("walk", WALKS)
def test_someone_who_walks_stands_on_the_floor(walk: Walk) -> None:
    """At every instant one foot touches the floor within 2 cm, and nothing goes below it by more."""
    who = body(walk)
    lowest = {part: lowest_m(who, part, TIMES_S) for part in PARTS}
    feet = np.minimum(lowest["left_foot"], lowest["right_foot"])
    assert np.abs(feet).max() < 0.02
    assert min(height.min() for height in lowest.values()) > -0.02


@pytest.mark.parametrize("walk", [STRAIGHT, BENT])
def test_a_foot_that_carries_does_not_slide(walk: Walk) -> None:
    """While a foot is flat its toes stay within a millimetre a frame of 20 ms; in between they move a stride ahead."""
    for toe in (17, 20):
        place = joints(walk)[toe]
        step = np.linalg.norm(np.diff(place, axis=0), axis=1)
        standing = step < 0.001
        assert 0.22 < standing.mean() < 0.42  # flat from 0.11 to 0.4 of its cycle
        assert step.max() > 0.03  # the other times it swings, faster than the body goes


def test_left_is_left_and_ahead_is_ahead() -> None:
    """Heading 0 is towards +z; looking along +z with y up, left is +x."""
    found = joints(STRAIGHT)
    for left in (1, 3, 5, 11, 13, 17):
        right = {17: 20}.get(left, left + 1)
        assert (found[left][:, 0] > found[right][:, 0]).all(), left
    middle = (found[11] + found[12]) / 2.0
    assert (found[0][:, 2] > middle[:, 2]).all()  # the nose
    assert (np.diff(middle[:, 2]) > 0.0).all()
    assert (found[17][:, 2] > found[19][:, 2]).all()  # toes before the heel
    hip, knee, ankle = found[11], found[13], found[15]
    straight = hip + (ankle - hip) * ((knee - hip)[:, 1:2] / (ankle - hip)[:, 1:2])
    assert (knee[:, 2] >= straight[:, 2] - 1e-9).all()  # knees bend ahead
    hands = found[9][:, 2] - found[10][:, 2]
    feet = found[15][:, 2] - found[16][:, 2]
    assert np.corrcoef(hands, feet)[0, 1] < -0.8  # arms swing against the legs


def test_right_does_what_left_does_half_a_stride_later() -> None:
    half_s = STRAIGHT.stride_m / STRAIGHT.speed_m_per_s / 2.0
    who = body(STRAIGHT)
    now, later = (places(who, posture(who, TIMES_S + shift)) for shift in (0.0, half_s))
    order = {point.number: index for index, point in enumerate(key_points())}
    ahead = np.array([0.0, 0.0, STRAIGHT.stride_m / 2.0])
    mirror, middle = np.array([-1.0, 1.0, 1.0]), np.array([2.0 * STRAIGHT.start_m[0], 0.0, 0.0])
    for left, right in ((13, 14), (15, 16), (17, 20), (7, 8), (9, 10)):
        mirrored = now[:, order[left]] * mirror + middle + ahead
        assert np.allclose(later[:, order[right]], mirrored, atol=1e-9)


@pytest.mark.parametrize("walk", WALKS)
def test_many_times_at_once_are_each_time_alone(walk: Walk) -> None:
    who = body(walk)
    whole = posture(who, TIMES_S)
    for index in (0, 40, 125):
        for part in PARTS:
            pose = PartPath(who, part).pose(TIMES_S[index])
            assert np.allclose(pose.position_m, whole[part][1][index], atol=1e-12)
            assert np.allclose(pose.rotation, whole[part][0][index], atol=1e-12)


def test_movement_is_smooth() -> None:
    """No part jumps: speeds stay below five times the walk's, between instants 2 ms apart."""
    times_s = np.arange(0.0, 1.4, 0.002)
    for walk in (STRAIGHT, BENT):
        for part, (_, middle) in posture(body(walk), times_s).items():
            speed = np.linalg.norm(np.diff(middle, axis=0), axis=1) / 0.002
            assert speed.max() < 5.0 * walk.speed_m_per_s, part


def test_a_bent_walk_is_an_arc() -> None:
    along = np.linspace(0.0, 6.0, 50)
    place = BENT.place(along)
    assert np.allclose(np.linalg.norm(np.diff(place, axis=0), axis=1), 6.0 / 49, rtol=1e-3)
    to_the_left = np.array([np.cos(BENT.heading_rad), 0.0, -np.sin(BENT.heading_rad)])
    centre = BENT.place(np.zeros(1))[0] + to_the_left / BENT.turn_rad_per_m
    assert np.allclose(np.linalg.norm(place - centre, axis=1), 1.0 / abs(BENT.turn_rad_per_m))


def test_every_part_of_the_surface_has_its_number() -> None:
    """All of DensePose's 24 are there; a right part is never called as a left one is."""
    numbers = {number for part in PARTS for number in surface_codes(part)[:2]}
    assert numbers == set(range(1, 25))
    left, right = ({n for p in PARTS if p.startswith(s) and p[-3:] not in ("eye", "ear") for n in surface_codes(p)[:2]}
                   for s in ("left_", "right_"))  # fmt: skip
    assert left == {4, 5, 8, 10, 12, 14, 15, 17, 19, 21}
    assert right == {3, 6, 7, 9, 11, 13, 16, 18, 20, 22}


def test_key_points_are_cocos() -> None:
    numbers = [point.number for point in key_points()]
    assert sorted(numbers) == [*range(23), 91, 112]

"""Ground truth checks itself: what one modality says is held against another, against projections, against the picture.

Every check is a function that measures an error; it is shown to stay within a stated bound on what is rendered, and to
leave it when a fault is planted."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from openuni.world import WorldClip, make_clip, render_clip
from openuni.world.figures.body import PARTS
from openuni.world.figures.keypoints import key_points, surface_codes
from openuni.world.presets import PRESETS
from openuni.world.rendering.camera import CameraPath, Lens
from tests.openuni.world.ground_truth import PERSON_SEEDS, arrays, clip

# ---------------------------------------------------------------------- people


def joint_pixels(made: WorldClip, time_s: float) -> dict[tuple[int, int], tuple[float, float, float, Callable]]:
    """By person and number: x, y, depth and owners of the joints at the ends of limbs, from the solids' poses alone."""
    ends = {5: ("left_upper_arm", 1), 7: ("left_forearm", 1), 9: ("left_forearm", -1), 11: ("left_thigh", 1)}
    ends |= {13: ("left_shank", 1), 15: ("left_shank", -1)}
    ends |= {number + 1: (part.replace("left", "right"), sign) for number, (part, sign) in list(ends.items())}
    moment, lens = made.scene.at(time_s), made.lens
    found = {}
    for person, body in enumerate(made.scene.bodies):
        first = next(i for i, solid in enumerate(made.scene.solids) if solid.instance == body.instance)
        for number, (part, sign) in ends.items():
            index = first + list(PARTS).index(part)
            pose, limb = moment.poses[index], made.scene.solids[index].shape
            world = np.eye(4)
            world[:3, :3], world[:3, 3] = pose.rotation, pose.position_m
            camera = np.eye(4)
            camera[:3, :3], camera[:3, 3] = moment.view.rotation, -moment.view.rotation @ moment.view.eye_m
            x, y, z, _ = camera @ world @ np.array([0.0, sign * limb.half_height_m, 0.0, 1.0])
            place = (lens.focal_px * x / z + lens.width_px / 2, lens.focal_px * y / z + lens.height_px / 2)
            found[person, number] = (*place, z, body)
    return found


def projection_error_px(made: WorldClip, skeleton: np.ndarray) -> float:
    """Largest distance of a joint that is in the picture from where the solids' poses put it."""
    worst = 0.0
    for step in range(len(skeleton)):
        for (person, number), (x, y, z, _) in joint_pixels(made, step / made.fps).items():
            inside = z > 0 and 0 <= x <= made.lens.width_px and 0 <= y <= made.lens.height_px
            given = skeleton[step, person, number]
            assert inside == (given[2] > 0.0)
            if inside:
                worst = max(worst, float(np.hypot(given[0] - x, given[1] - y)))
    return worst


@pytest.mark.parametrize("seed", PERSON_SEEDS)
def test_key_points_are_where_the_limbs_end(seed: int) -> None:
    skeleton = arrays("persons", seed)["skeleton"]
    assert projection_error_px(clip("persons", seed), skeleton) < 1e-3
    there = skeleton[..., 2:] > 0
    assert projection_error_px(clip("persons", seed), np.where(there, skeleton + np.float32([0.5, 0, 0]), 0)) > 0.4


def off_body(made: WorldClip, known: dict[str, np.ndarray]) -> float:
    """Share of the visible key points with no pixel around them that shows their person, their part and their depth."""
    owners = {point.number: point for point in key_points()}
    wrong = []
    for step, people in enumerate(known["skeleton"]):
        for person, points in enumerate(people):
            body = made.scene.bodies[person]
            for number in np.flatnonzero(points[:, 2] == 1.0):
                x, y = points[number, :2]
                window = np.s_[step, max(int(y) - 1, 0) : int(y) + 2, max(int(x) - 1, 0) : int(x) + 2]
                codes = {code for part in owners[number].owners for code in surface_codes(part)[:2]}
                mine = known["segmentation"][window][..., 0] == body.instance
                wrong.append(not (mine & np.isin(known["densepose"][window][..., 0], list(codes))).any())
    assert len(wrong) > 60
    return float(np.mean(wrong))


@pytest.mark.parametrize("seed", PERSON_SEEDS)
def test_a_key_point_that_is_seen_lies_on_its_part_of_its_person(seed: int) -> None:
    made, known = clip("persons", seed), arrays("persons", seed)
    assert off_body(made, known) < 0.03  # a part thinner than a pixel may fall between centres
    moved = known["skeleton"].copy()
    moved[..., 0] += np.where(moved[..., 2] > 0, 9.0, 0.0)
    assert off_body(made, known | {"skeleton": moved}) > 0.3
    swapped = known["skeleton"].copy()
    for left in (5, 7, 9, 11, 13, 15):
        swapped[..., [left, left + 1], :] = swapped[..., [left + 1, left], :]
    assert off_body(made, known | {"skeleton": swapped}) > 0.1
    renamed = known["densepose"].copy()
    renamed[..., 0] = 25 - renamed[..., 0]
    assert off_body(made, known | {"densepose": renamed}) > 0.5


def depth_misfits(made: WorldClip, known: dict[str, np.ndarray]) -> tuple[float, float]:
    """Share of joints called seen that lie far behind what is seen there, and of those called hidden that do not."""
    seen_wrong, hidden_wrong = [], []
    for step in range(len(known["skeleton"])):
        for (person, number), (x, y, z, body) in joint_pixels(made, step / made.fps).items():
            confidence = known["skeleton"][step, person, number, 2]
            if not confidence:
                continue
            row, column = min(int(y), made.lens.height_px - 1), min(int(x), made.lens.width_px - 1)
            before_m = z - known["depth"][step, row, column, 0]
            ids = known["segmentation"][step, row, column, 0]
            (seen_wrong if confidence == 1.0 else hidden_wrong).append(
                abs(before_m) > 0.13 * body.height_m if confidence == 1.0 else before_m < 0.01 and ids == body.instance
            )
    assert len(seen_wrong) > 30
    return float(np.mean(seen_wrong)), float(np.mean(hidden_wrong or [0.0]))


@pytest.mark.parametrize("seed", PERSON_SEEDS)
def test_depth_fits_the_key_points(seed: int) -> None:
    made, known = clip("persons", seed), arrays("persons", seed)
    seen_wrong, hidden_wrong = depth_misfits(made, known)
    assert seen_wrong < 0.05 and hidden_wrong < 0.1
    assert depth_misfits(made, known | {"depth": known["depth"] * np.float32(1.2)})[0] > 0.5
    everything_seen = known["skeleton"].copy()
    everything_seen[..., 2] = np.where(everything_seen[..., 2] > 0, 1.0, 0.0)
    fault = depth_misfits(made, known | {"skeleton": everything_seen})[0]
    assert fault > seen_wrong or not (known["skeleton"][..., 2] == 0.5).any()


@pytest.mark.parametrize("seed", PERSON_SEEDS)
def test_body_surface_covers_exactly_the_persons(seed: int) -> None:
    made, known = clip("persons", seed), arrays("persons", seed)
    persons = np.isin(known["segmentation"][..., 0], [body.instance for body in made.scene.bodies])
    assert persons.any()
    assert np.array_equal(known["densepose"][..., 0] > 0, persons)
    assert not known["densepose"][~persons].any()
    assert known["densepose"][persons][:, 1:].std(axis=0).min() > 30.0  # U and V go over the parts


def test_the_front_of_a_person_who_comes_and_the_back_of_one_who_goes() -> None:
    """DensePose's front of the trunk is 2, its back 1; face points are seen of the first only."""
    made = clip("person", 12)
    for heading, trunk, sees_face in ((0.0, 2, True), (np.pi, 1, False)):
        scene = made.scene
        body = replace(scene.bodies[0], walk=replace(scene.bodies[0].walk, start_m=(0.0, 0.0), heading_rad=heading))
        solids = tuple(
            replace(solid, path=replace(solid.path, body=body)) if solid.instance == body.instance else solid
            for solid in scene.solids
        )
        camera = CameraPath("static", (0.0, 1.4, 3.0), (0.0, 0.9, 0.0), view_deg=50.0)
        seen = render_clip(
            replace(scene, bodies=(body,), solids=solids, camera=camera), 1, 16.0, Lens.with_view(96, 96, 50.0)
        )
        parts = seen.modalities["densepose"].array[..., 0]
        assert (parts == trunk).sum() > 10 * max((parts == 3 - trunk).sum(), 1)
        face = seen.modalities["skeleton"].array[0, 0, :3, 2]
        assert (face == (1.0 if sees_face else 0.5)).all()
        left_hand, right_hand = seen.modalities["skeleton"].array[0, 0, [91, 112], 0]
        assert (left_hand > right_hand) == sees_face  # the left of who comes is on the right of the picture


# ---------------------------------------------------------------------- presets


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_supplies_what_it_says(preset: str) -> None:
    made = make_clip(1, preset=preset, frames=2, height_px=32, width_px=48)
    assert sorted(made.modalities) == sorted(("rgb", *PRESETS[preset].modalities))
    assert all(modality.size_px == (32, 48) for modality in made.modalities.values())
    assert all(len(modality.array) == 2 for modality in made.modalities.values())
    assert made.caption.endswith(".") and made.brief.endswith(".") and len(made.brief) <= len(made.caption)

"""Random scenes with people and furniture: nothing runs into anything, cameras see something, captions are true."""

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest

from openuni.world import make_clip
from openuni.world.caption import brief_caption
from openuni.world.figures.body import Body, posture
from openuni.world.figures.people import SHIRTS
from openuni.world.furniture import CLOTHS
from openuni.world.places import draw_room
from openuni.world.presets import PRESETS, random_scene
from openuni.world.rendering.camera import CameraPath, HandheldCamera, Lens
from openuni.world.rendering.rays import cast
from openuni.world.rendering.shading import render
from openuni.world.scene import COLOURS, Scene

FILLED = ("person", "persons", "scenes", "interiors", "layers")


def gap_m(one: Body, other: Body, times_s: np.ndarray) -> float:
    """Least distance between the surfaces of two bodies: balls along every limb against one another."""
    balls = []
    for body in (one, other):
        centres, radii = [], []
        for part, (rotation, middle) in posture(body, times_s).items():
            limb = body.limb(part)
            for share in np.linspace(-1.0, 1.0, 4):
                centres.append(middle + share * limb.half_height_m * rotation[..., 1])
                radii.append(max(limb.extent_m[0], limb.extent_m[2]))
        balls.append((np.stack(centres, axis=1), np.array(radii)))
    (first, wide), (second, broad) = balls
    apart = np.linalg.norm(first[:, :, None] - second[:, None], axis=-1)
    return float((apart - wide[:, None] - broad).min())


@pytest.mark.parametrize("duration_s", [0.5, 2.0, 8.0])
def test_people_never_meet(duration_s: float) -> None:
    times_s = np.linspace(0.0, duration_s, 41)
    pairs = 0
    for seed in range(8):
        bodies = random_scene(seed, duration_s, "persons").bodies
        assert len(bodies) in (2, 3)
        for number, body in enumerate(bodies):
            for other in bodies[:number]:
                pairs += 1
                assert gap_m(body, other, times_s) > 0.0
    assert pairs >= 8
    planted = replace(bodies[1], walk=bodies[0].walk)
    assert gap_m(bodies[0], planted, times_s) < 0.0


@pytest.mark.parametrize("preset", ["persons", "scenes", "layers"])
def test_people_stay_clear_of_furniture_and_in_view(preset: str) -> None:
    for seed in range(15):
        scene = random_scene(seed, 2.0, preset)
        mine = {body.instance for body in scene.bodies}
        for time_s in (0.0, 1.0, 2.0):
            moment = scene.at(time_s)
            for body in scene.bodies:
                middle = body.walk.place(body.walk.travelled(np.array([time_s])))[0] + (0.0, body.height_m / 2.0, 0.0)
                x, y, z = moment.view.to_camera(middle[:, None])[:, 0]
                half = np.tan(np.radians(scene.camera.view_deg) / 2.0)
                assert z > 1.0 and max(abs(x), abs(y)) < half * z
                for solid, pose in zip(scene.solids, moment.poses, strict=True):
                    if solid.instance not in mine and np.isfinite(solid.shape.bound_m):
                        assert outside(middle, solid.shape.extent_m, pose) > 0.12


def outside(point: np.ndarray, extent: tuple[float, float, float], pose) -> float:
    """Distance of a point from a box."""
    inside = np.abs(pose.rotation.T @ (point - pose.position_m)) - extent
    return float(np.linalg.norm(np.maximum(inside, 0.0)))


@pytest.mark.parametrize("crowded", [True, False])
def test_pieces_of_furniture_do_not_stand_in_one_another(crowded: bool) -> None:
    """On the floor plan: the solids of two pieces that reach the same height never overlap, carpets aside."""
    counts = []
    for seed in range(15):
        place = draw_room(np.random.default_rng(seed), crowded=crowded)
        nouns = {thing.instance: thing.brief for thing in place.captioned}
        boxes: dict[int, list[np.ndarray]] = {}
        for solid in place.solids:
            if solid.instance and "rug" not in nouns[solid.instance]:
                pose = solid.path.pose(0.0)
                reach = np.abs(pose.rotation) @ np.array(solid.shape.extent_m)
                boxes.setdefault(solid.instance, []).append(
                    np.stack([pose.position_m - reach, pose.position_m + reach])
                )
        counts.append(len(boxes))
        for number, mine in boxes.items():
            for other, theirs in boxes.items():
                if number < other:
                    low = np.maximum(np.array(mine)[:, None, 0], np.array(theirs)[None, :, 0])
                    high = np.minimum(np.array(mine)[:, None, 1], np.array(theirs)[None, :, 1])
                    assert not (high - low > 0.02).all(axis=-1).any(), (seed, nouns[number], nouns[other])
        half_width, _, half_length = place.clear_m
        assert half_width > 0.9 and half_length > 1.3
    assert np.mean(counts) > (8 if crowded else 4)


@pytest.mark.parametrize("preset", FILLED)
def test_cameras_stand_in_no_thing_and_see_some(preset: str) -> None:
    """The nearest thing is 25 cm away at least, and pictures are neither black nor white."""
    for seed in range(8):
        scene = random_scene(seed, 1.5, preset)
        for time_s in (0.0, 0.75, 1.5):
            moment = scene.at(time_s)
            for solid, pose in zip(scene.solids, moment.poses, strict=True):
                if np.isfinite(solid.shape.bound_m):
                    assert outside(moment.view.eye_m, solid.shape.extent_m, pose) > 0.1
            side = np.linspace(-0.5, 0.5, 24)
            hits = cast(moment, side, side)
            assert hits.depth_m.min() > 0.25
    made = make_clip(3, preset=preset, frames=1, height_px=48, width_px=64, modalities=())
    assert 40.0 < made.frames.mean() < 215.0 and made.frames.std() > 15.0


def test_a_wandering_camera_is_smooth_and_stays_within_its_knots() -> None:
    rng = np.random.default_rng(0)
    eyes, targets = (tuple(map(tuple, rng.uniform(low, low + 2.0, (9, 3)).tolist())) for low in (0.0, 5.0))
    camera = HandheldCamera(eyes, targets, 0.5, 50.0)
    times_s = np.arange(0.0, 3.0, 0.001)
    way = np.stack([camera.view(time_s).eye_m for time_s in times_s])
    assert (way >= np.min(eyes, axis=0)).all() and (way <= np.max(eyes, axis=0)).all()
    bend = np.diff(way, n=2, axis=0) / 0.001**2
    assert np.abs(np.diff(bend, axis=0)).max() < 0.2  # acceleration has no jumps
    assert np.ptp(way, axis=0).min() > 0.1
    assert np.array_equal(camera.view(3.0).eye_m, camera.view(9.0).eye_m)


def test_focal_lengths_lamps_and_places_vary() -> None:
    scenes = [random_scene(seed, 1.3, "interiors") for seed in range(12)]
    views = [scene.camera.view_deg for scene in scenes]
    assert min(views) < 60.0 and max(views) > 74.0
    lamps = [len(scene.lights) for scene in scenes]
    assert min(lamps) >= 2 and max(lamps) > min(lamps)
    assert all(isinstance(scene.camera, HandheldCamera) and not scene.bodies and scene.matt for scene in scenes)
    people = [random_scene(seed, 1.3, "persons") for seed in range(12)]
    assert {scene.place.split()[-1] for scene in people} >= {"sky", "room"}
    assert any(isinstance(scene.camera, CameraPath) for scene in people)


def test_scenes_are_equal_for_equal_seeds_and_pickle() -> None:
    for preset in FILLED:
        scene: Scene = random_scene(4, 1.0, preset)
        assert scene == random_scene(4, 1.0, preset) == pickle.loads(pickle.dumps(scene))  # noqa: S301
        assert scene != random_scene(5, 1.0, preset)


@pytest.mark.parametrize("preset", FILLED)
def test_captions_tell_what_is_in_the_picture(preset: str) -> None:
    for seed in range(3):
        made = make_clip(seed, preset=preset, frames=2, height_px=48, width_px=64, modalities=("segmentation",))
        ids = made.modalities["segmentation"].array
        share = {thing.instance: (ids == thing.instance).mean(axis=(1, 2, 3)).max() for thing in made.scene.captioned}
        persons = {body.instance for body in made.scene.bodies}
        for thing in made.scene.captioned:
            told = thing.detailed in made.caption or f"{thing.brief.split(' ', 1)[1]}s" in made.caption
            assert told or share[thing.instance] < 0.0025, (thing, made.caption)
        seen = [thing for thing in made.scene.captioned if thing.instance in persons and share[thing.instance] > 0.0025]
        assert made.brief.lower().count("person") == len(seen)
        assert made.caption.endswith(".") and "\n" not in made.caption
        for article, word in re.findall(r"\b(an?) (\w+)", made.caption.lower()):
            assert (article == "an") == (word[0] in "aeiou"), made.caption
        assert ("by hand" in made.caption) == isinstance(made.scene.camera, HandheldCamera)


def test_a_person_walks_where_the_caption_says() -> None:
    told = 0
    for seed in range(25):
        scene = random_scene(seed, 1.0, "person")
        (body,) = scene.bodies
        words = brief_caption(scene)
        view = scene.camera.view(0.0)
        start, end = (view.to_camera(body.walk.place(np.array([along])).T)[:, 0] for along in (0.0, 0.3))
        for text, (axis, sign) in {
            "to the left": (0, -1),
            "to the right": (0, 1),
            "away from": (2, 1),
            "towards": (2, -1),
        }.items():
            if f"walks {text}" in words:
                told += 1
                assert sign * (end - start)[axis] > 0.6 * np.linalg.norm(end - start)
    assert told > 12


def test_a_circle_goes_where_the_caption_says() -> None:
    """In a long clip people walk in circles: to their left, when the way turns from ahead towards it."""
    told = set()
    for seed in range(12):
        scene = random_scene(seed, 8.0, "person")
        (body,) = scene.bodies
        first, middle, last = body.walk.place(np.array([0.0, 0.3, 0.6]))
        ahead, then = middle - first, last - middle
        turns_left = np.cross(ahead, then)[1] > 0.0  # y is up: from ahead to the left is right-handed
        words = brief_caption(scene)
        if "in a circle" in words:
            told.add(turns_left)
            assert ("circle to the left" in words) == turns_left
            assert ("circle to the right" in words) != turns_left
    assert told == {True, False}


def test_cameras_choose_their_exposure() -> None:
    """The first frame's linear light is about a quarter of white on average, whatever the lamps are."""
    for preset in FILLED:
        for seed in range(3):
            scene = random_scene(seed, 1.0, preset)
            light = render(scene.opening, Lens.with_view(36, 48, scene.camera.view_deg), intrinsics=False).light
            assert 0.15 < light.max(axis=0).mean() < 0.32
            assert scene.exposure != 1.0


def test_every_colour_that_is_used_exists() -> None:
    assert set(SHIRTS) | set(CLOTHS) <= set(COLOURS)
    for preset in PRESETS:
        for seed in range(6):
            for solid in random_scene(seed, 1.0, preset).solids:
                assert {solid.material.colour, solid.material.second} <= set(COLOURS)

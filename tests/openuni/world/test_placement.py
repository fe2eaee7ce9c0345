"""Clear ways, one obstacle at a time."""

import numpy as np
import pytest

from openuni.world.placement import Track, Watch, is_clear
from openuni.world.presets import random_scene
from openuni.world.rendering.camera import CameraPath
from openuni.world.rendering.pose import Motion, Vector
from openuni.world.sample import ROOM_M
from openuni.world.scene import BACKGROUND

CAMERA = CameraPath("static", (0.0, 1.5, 3.0), (0.0, 1.0, 0.0))


def track(place: Vector, velocity: Vector = (0.0, 0.0, 0.0), bound_m: float = 0.5) -> Track:
    return Watch.of(CAMERA, 1.0).follow(Motion("slides", place, velocity), bound_m)


@pytest.mark.parametrize(
    ("place", "velocity"),
    [
        ((0.0, 0.6, 2.4), (0.0, 0.0, 0.0)),  # at the camera
        ((0.0, 2.6, -2.0), (0.0, 0.0, 0.0)),  # through the ceiling
        ((0.0, 0.6, -2.0), (0.0, 0.0, -3.0)),  # through the back wall
        ((0.0, 0.6, 0.0), (3.0, 0.0, 0.0)),  # out of the picture
    ],
)
def test_a_way_that_is_not_clear(place: Vector, velocity: Vector) -> None:
    assert is_clear(track((0.0, 0.6, 0.0)), [], ROOM_M)
    assert not is_clear(track(place, velocity), [], ROOM_M)


def test_objects_neither_meet_nor_stay_behind_one_another() -> None:
    resting = track((0.0, 0.5, 0.0))
    assert is_clear(track((-1.3, 0.5, 0.0), bound_m=0.4), [resting], ROOM_M)
    assert not is_clear(track((-1.3, 0.5, 0.0), (1.3, 0.0, 0.0), bound_m=0.4), [resting], ROOM_M)  # meets it
    assert not is_clear(track((0.0, 0.3, -1.4), bound_m=0.3), [resting], ROOM_M)  # behind it all the time
    assert is_clear(track((0.0, 0.3, -1.4), (1.4, 0.0, 0.0), bound_m=0.3), [resting], ROOM_M)  # comes out
    assert is_clear(track((0.2, 0.7, 0.65), bound_m=0.05), [resting], ROOM_M)  # before its side, hiding no middle


@pytest.mark.parametrize("preset", ["solids", "still"])
@pytest.mark.parametrize("duration_s", [0.1, 1.3, 20.0])
def test_random_scenes_are_clear_between_the_instants_too(preset: str, duration_s: float) -> None:
    for seed in range(25):
        scene = random_scene(seed, duration_s, preset)
        objects = list(scene.objects.values())
        for time_s in np.linspace(0.0, duration_s, 41):
            places = [solid.path.pose(time_s).position_m for solid in objects]
            for number, (solid, place) in enumerate(zip(objects, places, strict=True)):
                assert place[1] >= solid.shape.rest_height_m * 0.79  # a lying cylinder is lower than a standing one
                assert (np.abs(place) + solid.shape.bound_m)[[0, 2]].max() < max(ROOM_M)
                for other, there in zip(objects[:number], places[:number], strict=True):
                    assert np.linalg.norm(place - there) > solid.shape.bound_m + other.shape.bound_m


def test_presets_and_counts_are_spread() -> None:
    scenes = [random_scene(seed, 1.3) for seed in range(90)]
    counts = [len(scene.objects) for scene in scenes]
    assert all(15 < counts.count(number) < 45 for number in (1, 2, 3))
    kinds = {solid.path.kind for scene in scenes for solid in scene.objects.values()}
    assert kinds == {"rolls", "slides", "spins", "bobs", "tumbles"}
    assert all(solid.instance == BACKGROUND for scene in scenes for solid in scene.solids[:6])

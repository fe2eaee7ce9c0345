"""Light that can be computed by hand: a lamp straight above a floor, a ball in between."""

import numpy as np
import pytest

from openuni.world.presets import random_scene
from openuni.world.rendering.camera import CameraPath, Lens
from openuni.world.rendering.pose import Motion
from openuni.world.rendering.rays import Chunks, cast, lit
from openuni.world.rendering.shading import Surface, frame, irradiance, shade, to_srgb
from openuni.world.rendering.shapes import Sphere
from openuni.world.rendering.textures import GRAINS, NOISE_SHARE, albedo, linear_colour, pyramid
from openuni.world.sample import draw_room
from openuni.world.scene import Light, Material, Scene, Solid

FLOOR, BALL = 0, 6
LAMP = Light((0.0, 2.5, 0.0), 5.0)


def scene() -> Scene:
    ball = Solid(Sphere(0.5), Material("red", "white", "spotted"), Motion("rests", (0.0, 1.25, 0.0)), 1)
    camera = CameraPath("static", (0.0, 1.5, 3.0), (0.0, 1.0, 0.0))
    return Scene((*draw_room(np.random.default_rng(0)), ball), (LAMP,), 0.3, camera)


def test_the_shadow_of_a_ball_on_the_floor_has_the_size_of_geometry() -> None:
    """The lamp is 1.25 m above the ball's middle and as far from the floor again: sin of the cone is 0.5 / 1.25."""
    edge_m = 2.5 * np.tan(np.arcsin(0.5 / 1.25))
    away_m = np.linspace(0.0, 3.0, 601)
    points = np.stack([away_m, np.zeros(601), np.zeros(601)])
    up = np.zeros((3, 601))
    up[1] = 1.0
    ((light,), _) = irradiance(scene().opening, Surface(points, up, np.full(601, FLOOR, np.int16)))
    dark = away_m < edge_m
    assert np.allclose(light[dark], 0.3)
    assert np.allclose(light[~dark], 0.3 + 5.0 * 2.5 / (2.5**2 + away_m[~dark] ** 2) ** 1.5)


def test_a_solid_does_not_shade_its_own_lit_side() -> None:
    normals = np.random.default_rng(0).normal(size=(3, 5000)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=0)
    points = normals * np.float32(0.5) + np.array([[0.0], [1.25], [0.0]], np.float32)
    ((light,), _) = irradiance(scene().opening, Surface(points, normals, np.full(5000, BALL, np.int16)))
    assert light.dtype == np.float32
    cosine_m = 1.25 * normals[1] - 0.5  # times the distance to the lamp, 1.25 m above the middle
    distance_m = np.hypot(np.hypot(points[0], points[2]), 2.5 - points[1])
    ambient = 0.3 * (0.55 + 0.45 * normals[1])
    assert np.allclose(light, ambient + 5.0 * np.maximum(cosine_m, 0.0) / distance_m**3, rtol=1e-4)


@pytest.mark.parametrize(("preset", "seed"), [("solids", 3), ("persons", 3), ("interiors", 1)])
def test_no_shadow_is_lost_by_looking_for_it_run_by_run(preset: str, seed: int) -> None:
    """Every sample against every solid, one by one, gives the same shadows; every lamp has some."""
    moment = random_scene(seed, 1.0, preset).at(0.5)
    view = moment.scene.camera.view_deg
    lens = Lens.with_view(36, 48, view)
    x, y = lens.rays()
    hits = cast(moment, x, y)
    order = np.argsort(hits.solid.ravel(), kind="stable")
    solid, depth = hits.solid.ravel()[order], hits.depth_m.ravel()[order]
    row, column = np.divmod(order, 48)
    points = moment.view.to_world(np.stack([x[column] * depth, y[row] * depth, depth]))
    everywhere = np.ones(len(solid))
    for light in moment.scene.lights:
        from_light = points - np.array(light.position_m)[:, None]
        reached = np.ones(len(solid), bool)
        for index, (placed, pose) in enumerate(zip(moment.scene.solids, moment.poses, strict=True)):
            if placed.shades and np.isfinite(placed.shape.bound_m):
                start = pose.rotation.T @ (np.array(light.position_m) - pose.position_m)
                with np.errstate(all="ignore"):
                    factor = placed.shape.hit(start.tolist(), pose.rotation.T @ from_light)
                reached &= ~((factor < 1.0 - 1e-4) & (solid != index))
        found = lit(moment, light, Chunks.of(points, solid), from_light, everywhere)
        assert 0.002 < (~reached).mean() < 0.99
        assert np.array_equal(found, reached)


def test_light_becomes_srgb() -> None:
    coded = to_srgb(np.array([0.0, 0.0031308, 0.2140, 0.5, 1.0, 7.0])[None, None].repeat(3, axis=0))
    assert coded[0, :, 0].tolist() == [0, 10, 127, 188, 255, 255]


def test_colours_of_a_material_are_those_of_its_name() -> None:
    """Whatever the pattern, reflectance lies between its two colours and varies."""
    uv = np.random.default_rng(0).random((2, 5000))
    for pattern in NOISE_SHARE:
        found = albedo(Material("blue", "white", pattern), Sphere(0.5), uv, 0.004)
        low, high = np.array(linear_colour("blue")), np.array(linear_colour("white"))
        assert (found >= low[:, None] - 1e-6).all() and (found <= high[:, None] + 1e-6).all()
        assert found[0].std() > 0.1
    spotted = albedo(Material("blue", "white", "spotted"), Sphere(0.5), uv, 0.004)
    assert spotted[0].mean() < (low[0] + high[0]) / 2.0  # white spots on blue, not blue spots on white


def test_coarser_tiles_keep_the_mean() -> None:
    for grain in range(GRAINS):
        means = [level.mean() for level in pyramid("spotted", grain)]
        assert means == pytest.approx([means[0]] * len(means), abs=1e-5)


def test_more_samples_only_soften_the_picture() -> None:
    world = random_scene(200, 1.0)
    lens = Lens.with_view(48, 64, world.camera.view_deg)
    rough, fine = (frame(world.opening, lens, samples).astype(float) for samples in (1, 4))
    assert 0.3 < np.abs(rough - fine).mean() < 8.0


def test_rays_that_meet_nothing_of_interest_bring_nothing() -> None:
    moment = scene().opening
    side = np.linspace(-0.4, 0.4, 8, dtype=np.float32)
    nothing = shade(moment, 50.0, side, side, frozenset())
    assert nothing.ray.size == 0 and nothing.colour.shape == (3, 0)
    ball = shade(moment, 50.0, side, side, frozenset({BALL}))
    everything = shade(moment, 50.0, side, side)
    assert 0 < ball.ray.size < everything.ray.size == 64
    assert set(ball.ray.tolist()) == set(everything.ray[everything.solid == BALL].tolist())

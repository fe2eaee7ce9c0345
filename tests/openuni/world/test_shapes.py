"""Rays against shapes, held against the definition of each shape as a set of points."""

import numpy as np
import pytest

from openuni.world.figures.limb import Limb
from openuni.world.rendering.shapes import Box, Capsule, Cone, Cylinder, Dome, Shape, Sphere, Wall

SHAPES = [
    Sphere(0.5),
    Box((0.5, 0.3, 0.4)),
    Cylinder(0.4, 0.5),
    Cone(0.5, 0.6),
    Capsule(0.3, 0.35),
    Limb(0.35, 0.2, 0.3, 1.0, 0.6),
    Limb(0.15, 0.3, 0.3, 0.9, 1.0),
    Limb(0.25, 0.25, 0.25),
]
ids = [f"{shape.name} {number}" for number, shape in enumerate(SHAPES)]


def inside(shape: Shape, points: np.ndarray) -> np.ndarray:
    """Whether points [3, n] are in the shape, from its definition alone."""
    x, y, z = points
    match shape:
        case Sphere(radius):
            return x**2 + y**2 + z**2 < radius**2
        case Box((a, b, c)):
            return (abs(x) < a) & (abs(y) < b) & (abs(z) < c)
        case Cylinder(radius, half):
            return (x**2 + z**2 < radius**2) & (abs(y) < half)
        case Cone(radius, half):
            return (np.hypot(x, z) < radius * (half - y) / (2 * half)) & (abs(y) < half)
        case Capsule(radius, half):
            return x**2 + z**2 + (y - np.clip(y, -half, half)) ** 2 < radius**2
        case Limb(low, high, half, wide, deep):  # many balls from one end to the other
            round_m2, found = (x / wide) ** 2 + (z / deep) ** 2, np.zeros(x.shape, bool)
            for share in np.linspace(0.0, 1.0, 61):
                found |= round_m2 + (y - (2.0 * share - 1.0) * half) ** 2 < (low + share * (high - low)) ** 2
            return found
    raise AssertionError(shape)


def random_rays(seed: int, count: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """An origin 2.5 m away and directions [3, n] towards the neighbourhood of the shape, of many lengths."""
    rng = np.random.default_rng(seed)
    origin = rng.normal(size=3)
    origin *= 2.5 / np.linalg.norm(origin)
    return origin, (rng.uniform(-0.8, 0.8, (3, count)) - origin[:, None]) * rng.uniform(0.2, 3.0, count)


@pytest.mark.parametrize("shape", SHAPES, ids=ids)
@pytest.mark.parametrize("seed", range(6))
def test_a_ray_meets_a_shape_where_it_first_enters_the_set(shape: Shape, seed: int) -> None:
    origin, direction = random_rays(seed)
    with np.errstate(invalid="ignore"):
        factor = shape.hit(origin.tolist(), direction)
    steps = np.linspace(0.0, 4.0, 801) / np.linalg.norm(direction, axis=0)[:, None]  # 5 mm apart, [n, 801]
    along = inside(shape, origin[:, None, None] + direction[:, :, None] * steps)
    walked = np.where(along.any(axis=1), np.take_along_axis(steps, along.argmax(axis=1)[:, None], 1)[:, 0], np.inf)
    length = np.linalg.norm(direction, axis=0)
    both = np.isfinite(walked) & np.isfinite(factor)
    assert both.sum() > 300
    late_m = (walked[both] - factor[both]) * length[both]
    # a ray that cuts a rim more thinly than the step may be entered later by the walk, never earlier
    assert (late_m > -1e-9).all()
    assert np.mean(late_m < 0.00501) > 0.99
    assert not (np.isfinite(walked) & np.isinf(factor)).any()
    assert np.mean(np.isfinite(factor) & np.isinf(walked)) < 0.01


@pytest.mark.parametrize("shape", SHAPES, ids=ids)
def test_normals_have_unit_length_and_point_out(shape: Shape) -> None:
    origin, direction = random_rays(3)
    with np.errstate(invalid="ignore"):
        factor = shape.hit(origin.tolist(), direction)
    seen = np.isfinite(factor)
    points = origin[:, None] + direction[:, seen] * factor[seen]
    normals, uv = shape.surface(points)
    assert np.allclose(np.linalg.norm(normals, axis=0), 1.0)
    assert not inside(shape, points + 1e-4 * normals).any()
    assert inside(shape, points - 1e-4 * normals).mean() > 0.99  # but for points at a rim
    assert ((normals * direction[:, seen]).sum(axis=0) < 1e-6).all()
    assert uv.shape == (2, seen.sum()) and uv.min() >= 0.0 and uv.max() <= 1.0


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if not isinstance(shape, Box)])
def test_a_normal_is_across_the_surface(shape: Shape) -> None:
    """Two close rays meet the surface at points whose difference is perpendicular to the normal."""
    origin, direction = random_rays(5)
    with np.errstate(invalid="ignore"):
        one = shape.hit(origin.tolist(), direction)
        other = shape.hit(origin.tolist(), direction + 1e-5)
    seen = np.isfinite(one) & np.isfinite(other)
    first = origin[:, None] + direction[:, seen] * one[seen]
    step = origin[:, None] + (direction[:, seen] + 1e-5) * other[seen] - first
    slant = np.abs((shape.surface(first)[0] * step).sum(axis=0)) / np.linalg.norm(step, axis=0)
    assert np.quantile(slant, 0.95) < 2e-3


@pytest.mark.parametrize("shape", SHAPES, ids=ids)
def test_the_bound_holds_the_shape(shape: Shape) -> None:
    points = np.random.default_rng(0).uniform(-1.2, 1.2, (3, 200_000))
    farthest = np.linalg.norm(points[:, inside(shape, points)], axis=0).max()
    assert 0.9 * shape.bound_m < farthest <= shape.bound_m
    reach = np.abs(points[:, inside(shape, points)]).max(axis=1)
    assert (reach <= shape.extent_m).all()
    assert (reach > 0.9 * np.array(shape.extent_m)).all()


def test_a_dome_is_met_from_inside() -> None:
    origin, direction = np.array([3.0, 1.0, -2.0]), np.random.default_rng(0).normal(size=(3, 500))
    dome = Dome(60.0)
    points = origin[:, None] + direction * dome.hit(origin.tolist(), direction)
    assert np.allclose(np.linalg.norm(points, axis=0), 60.0)
    assert ((points - origin[:, None]) * direction > 0.0).any(axis=0).all()  # ahead, not behind
    normals, uv = dome.surface(points)
    assert np.allclose(normals, -points / 60.0)
    assert uv.min() >= 0.0 and uv.max() <= 1.0


def test_rays_along_an_axis_are_no_exception() -> None:
    straight = [np.array([0.0]), np.array([0.0]), np.array([-1.0])]
    down = [np.array([0.0]), np.array([-1.0]), np.array([0.0])]
    up = [np.array([0.0]), np.array([1.0]), np.array([0.0])]
    assert Box((0.5, 0.3, 0.4)).hit((0.0, 0.0, 2.0), straight) == pytest.approx(1.6)
    assert Cone(0.5, 0.6).hit((0.0, 0.0, 2.0), straight) == pytest.approx(1.75)
    assert Cone(0.5, 0.6).hit((0.1, -2.0, 0.0), up) == pytest.approx(1.4)
    for shape, top in [
        (Cylinder(0.4, 0.5), 0.5),
        (Capsule(0.3, 0.35), 0.65),
        (Sphere(0.5), 0.5),
    ]:
        assert shape.hit((0.0, 2.0, 0.0), down) == pytest.approx(2.0 - top, abs=1e-5)
    with np.errstate(divide="ignore"):
        assert np.isinf(Wall().hit((0.0, 1.0, 0.0), straight))
        assert Wall().hit((0.0, 1.5, 0.0), down) == 1.5

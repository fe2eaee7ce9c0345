"""Intersections of rays with slabs, balls and columns, and coordinates on their surfaces; shared by the shapes."""

import math
from collections.abc import Sequence

import numpy as np

from openuni.world.rendering.pose import Components

Point = Sequence[float]  # x, y, z as Python floats, which do not promote float32 arrays
TINY = 1e-12  # avoids division by zero for axis-parallel rays


def slab(start: float | np.ndarray, half_m: float | np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The factors at which rays enter and leave the slab -half_m..half_m of one axis."""
    along = np.abs(step) < TINY
    reach = 1.0 / (np.where(along, TINY, step) if along.any() else step)
    middle = -start * reach
    np.abs(reach, out=reach)
    reach *= half_m
    first = middle - reach
    middle += reach
    return first, middle


def ball_hit(origin: Sequence[float | np.ndarray], direction: Components, radius_m: float) -> np.ndarray:
    """The factors at which rays enter a ball about the origin; infinity for a miss."""
    squared, middle, root = ball_roots(origin, direction, radius_m)
    factor = (-middle - root) / squared
    return np.where(factor > 0.0, factor, np.inf)  # a NaN root (no meeting) compares false


def ball_roots(
    origin: Sequence[float | np.ndarray], direction: Components, radius_m: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, b and sqrt(b^2 - a c) of `a t^2 + 2 b t + c = 0`, the ball about the origin; NaN root for a miss."""
    x, y, z = direction
    squared = x * x + y * y + z * z
    middle = origin[0] * x + origin[1] * y + origin[2] * z
    rest = origin[0] * origin[0] + origin[1] * origin[1] + origin[2] * origin[2] - radius_m * radius_m
    return squared, middle, np.sqrt(middle * middle - squared * rest)


def column_roots(origin: Point, direction: Components, radius_m: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, b and sqrt(b^2 - a c) of `a t^2 + 2 b t + c = 0`, the endless column about y; NaN root for a miss."""
    x, _, z = direction
    squared = np.maximum(x * x + z * z, TINY)
    middle = origin[0] * x + origin[2] * z
    rest = origin[0] ** 2 + origin[2] ** 2 - radius_m**2
    return squared, middle, np.sqrt(middle * middle - squared * rest)


def longitude(points: np.ndarray) -> np.ndarray:
    """The angle about y as 0..1, [n]."""
    return np.arctan2(points[0], points[2]) / (2.0 * math.pi) + 0.5


def disc_uv(points: np.ndarray, radius_m: float) -> np.ndarray:
    """x and z across a flat round end as 0..1, [2, n]."""
    return points[[0, 2]] / (2.0 * radius_m) + 0.5

"""Shapes of solids: ray intersection, normals and texture coordinates.

All in the solid's axes (metres, origin at its centre, y along its axis of symmetry). Solids are convex and seen from
outside. A shape has a bounding radius about its origin, so that rays that cannot hit it are skipped. Arrays keep their
dtype.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from openuni.world.rendering.intersections import (
    TINY,
    Point,
    ball_hit,
    ball_roots,
    column_roots,
    disc_uv,
    longitude,
    slab,
)
from openuni.world.rendering.pose import Components, Vector


class Shape(ABC):
    """Base of the shapes: frozen dataclasses of sizes in metres."""

    name: ClassVar[str]  # the noun of the caption

    @property
    @abstractmethod
    def bound_m(self) -> float:
        """Radius about the origin that holds the shape; infinite for walls."""

    @property
    @abstractmethod
    def extent_m(self) -> Vector:
        """Half of width, height and depth of a box about the origin that holds the shape; infinite for walls."""

    @property
    @abstractmethod
    def chart_m(self) -> tuple[float, float]:
        """Size in metres of the surface that u and v span from 0 to 1 (about, where the surface is curved)."""

    @property
    def rest_height_m(self) -> float:
        """Height of the origin above a floor on which the shape stands upright."""
        return self.bound_m

    @abstractmethod
    def hit(self, origin: Point, direction: Components) -> np.ndarray:
        """Where rays from one point enter the shape: the factor of `direction`, infinity for a miss.

        `direction`: three arrays of one shape, not normalised. Only factors above zero count.
        """

    @abstractmethod
    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of points [3, n] on the surface: unit normals outwards [3, n] and texture coordinates u, v [2, n].

        u and v are in 0..1 (walls: any), fixed to the solid.
        """


@dataclass(frozen=True)
class Sphere(Shape):
    """A ball. u is the longitude, v the latitude."""

    radius_m: float

    name: ClassVar[str] = "sphere"

    @property
    def bound_m(self) -> float:
        """The radius."""
        return self.radius_m

    @property
    def extent_m(self) -> Vector:
        """The radius."""
        return self.radius_m, self.radius_m, self.radius_m

    @property
    def chart_m(self) -> tuple[float, float]:
        """Equator by meridian."""
        return 2.0 * math.pi * self.radius_m, math.pi * self.radius_m

    def hit(self, origin: Point, direction: Components) -> np.ndarray:
        """See `Shape`."""
        return ball_hit(origin, direction, self.radius_m)

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Shape`."""
        normals = points / self.radius_m
        latitude = np.arcsin(np.clip(normals[1], -1.0, 1.0))
        return normals, np.stack([longitude(points), latitude / math.pi + 0.5])


@dataclass(frozen=True)
class Box(Shape):
    """A cuboid. u and v run across each face at one scale."""

    half_m: Vector  # half of width, height, depth

    name: ClassVar[str] = "box"

    @property
    def bound_m(self) -> float:
        """From the middle to a corner."""
        return math.hypot(*self.half_m)

    @property
    def rest_height_m(self) -> float:
        """Half of the height."""
        return self.half_m[1]

    @property
    def extent_m(self) -> Vector:
        """Itself."""
        return self.half_m

    @property
    def chart_m(self) -> tuple[float, float]:
        """The longest edge, both ways."""
        return 2.0 * max(self.half_m), 2.0 * max(self.half_m)

    def hit(self, origin: Point, direction: Components) -> np.ndarray:
        """See `Shape`. The ray is inside between the last entry into and the first exit from the three slabs."""
        enter, leave = slab(origin[0], self.half_m[0], direction[0])
        for axis in (1, 2):
            first, last = slab(origin[axis], self.half_m[axis], direction[axis])
            np.maximum(enter, first, out=enter)
            np.minimum(leave, last, out=leave)
        missed = (enter >= leave) | (enter <= 0.0)
        np.putmask(enter, missed, np.inf)
        return enter

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Shape`. The face is the one nearest to the point."""
        x, y, z = points
        half_x, half_y, half_z = self.half_m
        gap_x, gap_y, gap_z = np.abs(x) - half_x, np.abs(y) - half_y, np.abs(z) - half_z
        on_x = (gap_x >= gap_y) & (gap_x >= gap_z)
        on_y = ~on_x & (gap_y >= gap_z)
        on_z = ~(on_x | on_y)
        normals = np.sign(points) * np.stack([on_x, on_y, on_z])
        size_m = self.chart_m[0]
        return normals, np.stack([np.where(on_x, z, x), np.where(on_y, z, y)]) / size_m + 0.5


@dataclass(frozen=True)
class UprightShape(Shape):
    """Base of shapes that are round about the y axis and flat at the bottom."""

    radius_m: float  # at the bottom
    half_height_m: float

    @property
    def bound_m(self) -> float:
        """From half the height to the rim."""
        return math.hypot(self.radius_m, self.half_height_m)

    @property
    def rest_height_m(self) -> float:
        """Half of the height."""
        return self.half_height_m

    @property
    def extent_m(self) -> Vector:
        """Radius and half of the height."""
        return self.radius_m, self.half_height_m, self.radius_m

    @property
    def chart_m(self) -> tuple[float, float]:
        """Circumference of the bottom by height."""
        return 2.0 * math.pi * self.radius_m, 2.0 * self.half_height_m


@dataclass(frozen=True)
class Cylinder(UprightShape):
    """An upright round column with flat ends. u is the longitude and v the height; flat across the ends."""

    name: ClassVar[str] = "cylinder"

    def hit(self, origin: Point, direction: Components) -> np.ndarray:
        """See `Shape`. The ray is inside both the endless column and the slab between the ends."""
        first, last = slab(origin[1], self.half_height_m, direction[1])
        squared, middle, root = column_roots(origin, direction, self.radius_m)
        enter = np.maximum(first, (-middle - root) / squared)
        leave = np.minimum(last, (-middle + root) / squared)
        return np.where((enter < leave) & (enter > 0.0), enter, np.inf)  # a NaN root (no meeting) compares false

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Shape`."""
        x, y, z = points
        on_end = np.abs(y) - self.half_height_m > np.hypot(x, z) - self.radius_m
        side = np.stack([x, np.zeros_like(y), z]) / self.radius_m
        end = np.stack([np.zeros_like(x), np.sign(y), np.zeros_like(z)])
        side_uv = np.stack([longitude(points), y / (2.0 * self.half_height_m) + 0.5])
        return np.where(on_end, end, side), np.where(on_end, disc_uv(points, self.radius_m), side_uv)


@dataclass(frozen=True)
class Cone(UprightShape):
    """A cone with its tip at +y and a flat base. u is the longitude and v the height; flat across the base."""

    name: ClassVar[str] = "cone"

    def hit(self, origin: Point, direction: Components) -> np.ndarray:
        """See `Shape`. The nearest hit of the infinite double cone, limited to its height, and of the base."""
        x, y, z = direction
        slope = self.radius_m / (2.0 * self.half_height_m)
        below_tip = self.half_height_m - origin[1]
        squared = x * x + z * z - slope * slope * (y * y)
        squared = np.where(np.abs(squared) < TINY, TINY, squared)
        middle = origin[0] * x + origin[2] * z + slope * slope * below_tip * y
        rest = origin[0] ** 2 + origin[2] ** 2 - (slope * below_tip) ** 2
        root = np.sqrt(middle * middle - squared * rest)
        step_y = np.where(np.abs(y) < TINY, TINY, y)
        base = (-self.half_height_m - origin[1]) / step_y
        on_base = (origin[0] + base * x) ** 2 + (origin[2] + base * z) ** 2 < self.radius_m**2
        nearest = np.where(on_base & (base > 0.0), base, np.inf)
        for factor in ((-middle - root) / squared, (-middle + root) / squared):
            on_side = np.abs(origin[1] + factor * y) <= self.half_height_m
            nearest = np.where(on_side & (factor > 0.0) & (factor < nearest), factor, nearest)
        return nearest

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Shape`."""
        x, y, z = points
        slant_m = math.hypot(self.radius_m, 2.0 * self.half_height_m)
        across, up = 2.0 * self.half_height_m / slant_m, self.radius_m / slant_m
        axis_m = np.hypot(x, z)
        allowed_m = self.radius_m * (self.half_height_m - y) / (2.0 * self.half_height_m)
        on_base = (y + self.half_height_m) < (allowed_m - axis_m) * across
        outwards = across / np.maximum(axis_m, TINY)
        side = np.stack([x * outwards, np.full_like(y, up), z * outwards])
        base = np.stack([np.zeros_like(x), np.full_like(y, -1.0), np.zeros_like(z)])
        side_uv = np.stack([longitude(points), y / (2.0 * self.half_height_m) + 0.5])
        return np.where(on_base, base, side), np.where(on_base, disc_uv(points, self.radius_m), side_uv)


@dataclass(frozen=True)
class Capsule(Shape):
    """A column with half balls on its ends. u is the longitude, v the height."""

    radius_m: float
    half_height_m: float  # of the straight part

    name: ClassVar[str] = "capsule"

    @property
    def bound_m(self) -> float:
        """From the middle to a pole."""
        return self.half_height_m + self.radius_m

    @property
    def extent_m(self) -> Vector:
        """Radius and pole."""
        return self.radius_m, self.bound_m, self.radius_m

    @property
    def chart_m(self) -> tuple[float, float]:
        """Circumference by height."""
        return 2.0 * math.pi * self.radius_m, 2.0 * self.bound_m

    def hit(self, origin: Point, direction: Components) -> np.ndarray:
        """See `Shape`. The side where the ray enters the endless column between the ends, else the ball of that end."""
        squared, middle, root = column_roots(origin, direction, self.radius_m)
        enter = (-middle - root) / squared
        height = origin[1] + enter * direction[1]
        centre = np.where(height > 0.0, self.half_height_m, -self.half_height_m)
        ball = ball_hit((origin[0], origin[1] - centre, origin[2]), direction, self.radius_m)
        on_side = np.abs(height) <= self.half_height_m
        factor = np.where(on_side, enter, ball)
        return np.where((factor > 0.0) & np.isfinite(enter), factor, np.inf)

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Shape`."""
        x, y, z = points
        beyond = y - np.clip(y, -self.half_height_m, self.half_height_m)
        normals = np.stack([x, beyond, z]) / self.radius_m
        return normals, np.stack([longitude(points), y / (2.0 * self.bound_m) + 0.5])


@dataclass(frozen=True)
class Wall(Shape):
    """An infinite plane through the origin, seen from +y. u and v are x and z in units of `size_m`."""

    size_m: float = 1.0

    name: ClassVar[str] = "wall"

    @property
    def bound_m(self) -> float:
        """Infinite."""
        return math.inf

    @property
    def extent_m(self) -> Vector:
        """Infinite."""
        return math.inf, math.inf, math.inf

    @property
    def chart_m(self) -> tuple[float, float]:
        """The unit of u and v."""
        return self.size_m, self.size_m

    def hit(self, origin: Point, direction: Components) -> np.ndarray:
        """See `Shape`. Only rays that go down meet it."""
        factor = -origin[1] / direction[1]
        factor[direction[1] >= 0.0] = np.inf
        return factor

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Shape`. One normal [3, 1] serves all points."""
        normal = np.array([[0.0], [1.0], [0.0]], points.dtype)
        return normal, points[[0, 2]] / self.size_m


@dataclass(frozen=True)
class Dome(Sphere):
    """A ball seen from inside that contains everything else: a sky. u is the longitude, v the latitude."""

    name: ClassVar[str] = "dome"

    @property
    def bound_m(self) -> float:
        """Infinite, as for walls: it closes the view, and occludes and shades nothing."""
        return math.inf

    @property
    def extent_m(self) -> Vector:
        """Infinite."""
        return math.inf, math.inf, math.inf

    def hit(self, origin: Point, direction: Components) -> np.ndarray:
        """See `Shape`. Where rays leave the ball."""
        squared, middle, root = ball_roots(origin, direction, self.radius_m)
        return (-middle + root) / squared

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Shape`. Normals point inwards."""
        normals, uv = super().surface(points)
        return -normals, uv

"""The shape of a body's parts: a capsule whose ends may differ in radius, and that may be flattened."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from openuni.world.rendering.intersections import TINY, Point, ball_hit, longitude
from openuni.world.rendering.pose import Components, Vector
from openuni.world.rendering.shapes import Shape


@dataclass(frozen=True)
class Limb(Shape):
    """The hull of two balls on the y axis, then made `flat_x` times as wide and `flat_z` times as deep.

    u is the longitude (0.5 at +z), v the height. Neither ball may hold the other.
    """

    low_m: float  # radius of the ball at -half_height_m
    high_m: float  # radius of the ball at +half_height_m
    half_height_m: float
    flat_x: float = 1.0
    flat_z: float = 1.0

    name: ClassVar[str] = "limb"

    @property
    def bound_m(self) -> float:
        """From the middle to the farther pole, or more where the shape is widened."""
        return self.half_height_m + max(self.low_m, self.high_m) * max(1.0, self.flat_x, self.flat_z)

    @property
    def extent_m(self) -> Vector:
        """Widest and deepest place, and the farther pole."""
        wide = max(self.low_m, self.high_m)
        return wide * self.flat_x, self.half_height_m + wide, wide * self.flat_z

    @property
    def chart_m(self) -> tuple[float, float]:
        """Mean circumference before flattening, by height."""
        return math.pi * (self.low_m + self.high_m), 2.0 * self.half_height_m + self.low_m + self.high_m

    @property
    def tilt(self) -> float:
        """Sine of the angle between the side and the axis; positive when the lower ball is the larger one."""
        return (self.low_m - self.high_m) / (2.0 * self.half_height_m)

    def hit(self, origin: Point, direction: Components) -> np.ndarray:
        """See `Shape`. The nearest of the entries into both balls and into the cone that touches them."""
        start = (origin[0] / self.flat_x, origin[1], origin[2] / self.flat_z)
        step = (direction[0] * (1.0 / self.flat_x), direction[1], direction[2] * (1.0 / self.flat_z))
        nearest = np.minimum(
            ball_hit((start[0], start[1] + self.half_height_m, start[2]), step, self.low_m),
            ball_hit((start[0], start[1] - self.half_height_m, start[2]), step, self.high_m),
        )
        sine = self.tilt
        slope = -sine / math.sqrt(1.0 - sine * sine)  # of the radius along y
        middle_m = (self.low_m + self.high_m) / (2.0 * math.sqrt(1.0 - sine * sine))  # radius of the cone at y = 0
        lowest, highest = -self.half_height_m + self.low_m * sine, self.half_height_m + self.high_m * sine
        radius = middle_m + slope * start[1]
        squared = step[0] * step[0] + step[2] * step[2] - slope * slope * (step[1] * step[1])
        squared = np.where(np.abs(squared) < TINY, TINY, squared)
        half = start[0] * step[0] + start[2] * step[2] - slope * radius * step[1]
        root = np.sqrt(half * half - squared * (start[0] ** 2 + start[2] ** 2 - radius * radius))
        for factor in ((-half - root) / squared, (-half + root) / squared):
            height = start[1] + factor * step[1]
            on_side = (height >= lowest) & (height <= highest)  # a NaN root (no meeting) compares false
            nearest = np.where(on_side & (factor > 0.0) & (factor < nearest), factor, nearest)
        return nearest

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Shape`. The normal of the round shape comes from the point of the axis below it."""
        x, y, z = points[0] / self.flat_x, points[1], points[2] / self.flat_z
        sine = self.tilt
        axis = y - np.hypot(x, z) * (sine / math.sqrt(1.0 - sine * sine))
        outwards = np.stack(
            [x / self.flat_x, y - np.clip(axis, -self.half_height_m, self.half_height_m), z / self.flat_z]
        )
        normals = outwards / np.maximum(np.sqrt((outwards * outwards).sum(axis=0)), TINY)
        height = (y + self.half_height_m + self.low_m) / self.chart_m[1]
        return normals, np.stack([longitude(np.stack([x, y, z])), np.clip(height, 0.0, 1.0)])

"""Ray casting: which solid is seen, how deep, and whether something stands in between.

Rays of the camera are (x, y, 1), so that the factor at which a ray meets a solid is the depth z. Every solid is tried
only for the rays that can meet the ball around it.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from openuni.world.pose import Components, dot, transform
from openuni.world.scene import Light, Moment

SAME_SURFACE = 1e-6  # relative depth below which two meetings are the same point


class Hits(NamedTuple):
    """What each ray of a grid meets first."""

    solid: np.ndarray  # int16 [H, W]: index in `scene.solids`
    depth_m: np.ndarray  # [H, W]: camera-space z, in the dtype of the rays


def cast(moment: Moment, x: np.ndarray, y: np.ndarray) -> Hits:
    """First meetings of the rays (x, y, 1); x [W] and y [H] increasing, of one float dtype, which the depth keeps."""
    solid = np.full((len(y), len(x)), -1, np.int16)
    depth = np.full((len(y), len(x)), np.inf, x.dtype)
    for index, (placed, (rotation, shift)) in enumerate(zip(moment.scene.solids, moment.placements, strict=True)):
        left, right = span(float(shift[0]), float(shift[2]), placed.shape.bound_m)
        top, bottom = span(float(shift[1]), float(shift[2]), placed.shape.bound_m)
        columns = slice(*np.searchsorted(x, (left, right)))
        rows = slice(*np.searchsorted(y, (top, bottom)))
        if columns.start == columns.stop or rows.start == rows.stop:
            continue
        direction = GridDirections(rotation, x[columns], y[rows])
        if math.isinf(placed.shape.bound_m) and direction.lowest(1) >= 0.0:
            continue  # no ray goes towards this wall
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # rays that miss have NaN roots
            factor = placed.shape.hit((-rotation.T @ shift).tolist(), direction)
        nearer = factor < depth[rows, columns]
        np.copyto(depth[rows, columns], factor, where=nearer)
        np.copyto(solid[rows, columns], index, where=nearer)
    return Hits(solid, depth)


class GridDirections(Sequence[np.ndarray]):
    """Directions of a grid of rays in a solid's axes: three arrays [H, W], each made when it is asked for.

    `rotation`: camera from object. Walls need one component of three.
    """

    def __init__(self, rotation: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
        self.factors: list[list[float]] = rotation.T.tolist()  # of x, y and 1, per component
        self.x, self.y = x, y
        self.made: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return 3

    def __getitem__(self, component: Any) -> Any:
        if component not in self.made:
            of_x, of_y, rest = self.factors[component]  # raises IndexError past the third
            self.made[component] = self.x * of_x + (self.y * of_y + rest)[:, None]
        return self.made[component]

    def lowest(self, component: int) -> float:
        """The smallest value of a component: in a corner, because it is linear in x and y."""
        of_x, of_y, rest = self.factors[component]
        ends_x, ends_y = (self.x[0] * of_x, self.x[-1] * of_x), (self.y[0] * of_y, self.y[-1] * of_y)
        return float(min(ends_x) + min(ends_y) + rest)


def hidden(moment: Moment, x: np.ndarray, y: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
    """bool [n]: whether any solid is nearer than `depth_m` [n] along the rays (x, y, 1); x, y [n] anywhere."""
    found = np.zeros(len(x), bool)
    for placed, (rotation, shift) in zip(moment.scene.solids, moment.placements, strict=True):
        bound_m = placed.shape.bound_m
        if math.isinf(bound_m):
            continue  # walls hide nothing
        left, right = span(float(shift[0]), float(shift[2]), bound_m)
        top, bottom = span(float(shift[1]), float(shift[2]), bound_m)
        within = (x >= left) & (x <= right) & (y >= top) & (y <= bottom) & (depth_m > float(shift[2]) - bound_m)
        tried = np.flatnonzero(within)
        if not len(tried):
            continue
        across, down = x.take(tried), y.take(tried)
        direction = [across * a + down * b + c for a, b, c in rotation.T.tolist()]
        with np.errstate(invalid="ignore", over="ignore"):
            factor = placed.shape.hit((-rotation.T @ shift).tolist(), direction)
        found[tried] |= factor < depth_m.take(tried) * (1.0 - SAME_SURFACE)
    return found


def lit(moment: Moment, light: Light, own: int, from_light: Components) -> np.ndarray:
    """bool [n]: whether light reaches points at `from_light` [3, n] (world axes, from the lamp) on solid `own`.

    A convex solid never shades its own lit side, so `own` is not tried: no speckle from rounding. Walls shade nothing.
    """
    reached = np.ones(len(from_light[0]), bool)
    distance2 = dot(from_light, from_light)
    for index, (placed, pose) in enumerate(zip(moment.scene.solids, moment.poses, strict=True)):
        if index == own or math.isinf(placed.shape.bound_m):
            continue
        centre = pose.position_m - np.array(light.position_m)
        along = sum(float(c) * part for c, part in zip(centre, from_light, strict=True))
        reach2 = float(centre @ centre) - placed.shape.bound_m**2
        # a ray meets the ball when its nearest distance to the centre is below the radius; here with both squared
        tried = np.flatnonzero((along > 0.0) & (along * along > reach2 * distance2))
        if not len(tried):
            continue
        direction = transform(pose.rotation.T, [part.take(tried) for part in from_light])
        with np.errstate(invalid="ignore", over="ignore"):
            factor = placed.shape.hit((-pose.rotation.T @ centre).tolist(), direction)
        reached[tried] &= ~(factor < 1.0 - 1e-4)
    return reached


def span(middle: float, depth_m: float, bound_m: float) -> tuple[float, float]:
    """The range of x (or y) of the rays (x, y, 1) that can meet a ball; empty when it is behind the camera."""
    distance = math.hypot(middle, depth_m)
    if distance <= bound_m:
        return -math.inf, math.inf
    angle, half = math.atan2(middle, depth_m), math.asin(bound_m / distance)
    low, high, limit = angle - half, angle + half, math.pi / 2.0
    if low >= limit or high <= -limit:
        return 0.0, 0.0
    return (-math.inf if low <= -limit else math.tan(low)), (math.inf if high >= limit else math.tan(high))

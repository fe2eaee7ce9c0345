"""Ray casting: the visible solid, its depth, and occlusion.

Camera rays are (x, y, 1), so that the ray parameter at a hit is the depth z. Every solid is tested only against the
rays that can hit its bounding ball.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from openuni.world.rendering.intersections import slab
from openuni.world.rendering.pose import Components, dot, transform
from openuni.world.rendering.shapes import Shape, Wall
from openuni.world.scene import Light, Moment

SAME_SURFACE = 1e-6  # relative depth difference below which two hits are the same point
TILE = 16  # rays are ordered in tiles of 16 x 16, so that neighbours in memory are neighbours in space
CHUNK = 256  # samples whose shadows are computed together
SLACK_M = 1e-4  # for the rounding of float32
TINY_M = 1e-9
NEAREST_M = 0.01  # closer than this, the corners of a box do not bound its outline
ROUNDING = 1e-6  # of rays in float32
CORNERS = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)]).T


class Hits(NamedTuple):
    """The first hit of each ray of a grid."""

    solid: np.ndarray  # int16 [H, W]: index in `scene.solids`
    depth_m: np.ndarray  # [H, W]: camera-space z, in the dtype of the rays


def cast(moment: Moment, x: np.ndarray, y: np.ndarray) -> Hits:
    """First hits of the rays (x, y, 1); x [W] and y [H] increasing, of one float dtype, which the depth keeps."""
    solid = np.full((len(y), len(x)), -1, np.int16)
    depth = np.full((len(y), len(x)), np.inf, x.dtype)
    for index, (placed, (rotation, shift)) in enumerate(zip(moment.scene.solids, moment.placements, strict=True)):
        left, right, top, bottom = outlines(moment)[index]
        columns = slice(*np.searchsorted(x, (left, right)))
        rows = slice(*np.searchsorted(y, (top, bottom)))
        if columns.start >= columns.stop or rows.start >= rows.stop:
            continue
        direction = GridDirections(rotation, x[columns], y[rows])
        if isinstance(placed.shape, Wall) and direction.lowest(1) >= 0.0:
            continue  # no ray points towards this wall
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # rays that miss have NaN roots
            factor = placed.shape.hit((-rotation.T @ shift).tolist(), direction)
        nearer = factor < depth[rows, columns]
        np.copyto(depth[rows, columns], factor, where=nearer)
        np.copyto(solid[rows, columns], index, where=nearer)
    return Hits(solid, depth)


class GridDirections(Sequence[np.ndarray]):
    """Directions of a grid of rays in a solid's axes: three arrays [H, W], each computed on access.

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


@lru_cache(maxsize=8)
def tile_order(rows: int, columns: int) -> np.ndarray:
    """int32 [rows * columns]: the row-major indices of a grid, tile after tile."""
    row, column = np.divmod(np.arange(rows * columns, dtype=np.int32), columns)
    order = np.lexsort((column, row, column // TILE, row // TILE)).astype(np.int32)
    order.flags.writeable = False
    return order


def hidden(moment: Moment, x: np.ndarray, y: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
    """bool [n]: whether any solid is nearer than `depth_m` [n] along the rays (x, y, 1); x, y [n] anywhere."""
    found = np.zeros(len(x), bool)
    for _, tried, factor in candidate_hits(moment, x, y, depth_m):
        found[tried] |= factor < depth_m.take(tried) * (1.0 - SAME_SURFACE)
    return found


def probe(moment: Moment, x: np.ndarray, y: np.ndarray) -> Hits:
    """First hits of the rays (x, y, 1) with solids other than walls; x, y [n] in any order.

    Both arrays are [n]; -1 and infinity for misses.
    """
    solid, depth = np.full(len(x), -1, np.int16), np.full(len(x), np.inf)
    for index, tried, factor in candidate_hits(moment, x, y, depth):
        nearer = factor < depth.take(tried)
        depth[tried[nearer]], solid[tried[nearer]] = factor[nearer], index
    return Hits(solid, depth)


def candidate_hits(
    moment: Moment, x: np.ndarray, y: np.ndarray, depth_m: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Per solid that rays (x, y, 1) may hit before `depth_m`, all [n]: its index, these rays, and their hits.

    Walls are left out, because they occlude nothing. Fast if consecutive rays are close together.
    """
    runs = Runs.of(x, y, depth_m)
    for index, (placed, (rotation, shift)) in enumerate(zip(moment.scene.solids, moment.placements, strict=True)):
        if math.isinf(placed.shape.bound_m):
            continue
        left, right, top, bottom = outlines(moment)[index]
        tried = runs.overlapping(left, right, top, bottom, float(shift[2]) - placed.shape.bound_m)
        across, down = x.take(tried), y.take(tried)
        within = (across >= left) & (across <= right) & (down >= top) & (down <= bottom)
        if not within.any():
            continue
        tried, across, down = tried[within], across[within], down[within]
        direction = [across * a + down * b + c for a, b, c in rotation.T.tolist()]
        with np.errstate(invalid="ignore", over="ignore"):
            yield index, tried, placed.shape.hit((-rotation.T @ shift).tolist(), direction)


class Runs(NamedTuple):
    """Runs of 256 rays that follow one another, with the bounds of each: arrays [c]."""

    rays: int
    left: np.ndarray
    right: np.ndarray
    top: np.ndarray
    bottom: np.ndarray
    farthest: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, depth_m: np.ndarray) -> "Runs":
        """Of rays (x, y, 1) that end at `depth_m`; all [n]."""
        starts = np.arange(0, len(x), CHUNK)
        if not len(x):
            return cls(0, *(np.empty(0),) * 5)
        low, high = np.minimum.reduceat, np.maximum.reduceat
        return cls(len(x), low(x, starts), high(x, starts), low(y, starts), high(y, starts), high(depth_m, starts))

    def overlapping(self, left: float, right: float, top: float, bottom: float, nearest_m: float) -> np.ndarray:
        """int [m]: rays of the runs that reach into a rectangle, beyond a depth."""
        across = (self.right >= left) & (self.left <= right)
        chosen = np.flatnonzero(across & (self.bottom >= top) & (self.top <= bottom) & (self.farthest > nearest_m))
        index = (chosen[:, None] * CHUNK + np.arange(CHUNK)).ravel()
        return index[index < self.rays]


def segments(solid: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """First, one past the last, and value of every run of equal values in `solid` [n]."""
    starts = np.flatnonzero(np.diff(solid, prepend=-1))
    ends = [*starts.tolist(), len(solid)][1:]
    yield from zip(starts.tolist(), ends, solid[starts].tolist(), strict=True)


@dataclass(frozen=True, eq=False)
class Chunks:
    """Runs of up to 256 samples of one solid, each with a bounding ball, for shadow tests."""

    starts: np.ndarray  # int [c]: first sample
    stops: np.ndarray  # int [c]: one past the last
    solid: np.ndarray  # int16 [c]
    centres_m: np.ndarray  # [3, c]
    radii_m: np.ndarray  # [c]

    @classmethod
    def of(cls, points_m: np.ndarray, solid: np.ndarray) -> "Chunks":
        """Of samples [3, n] that are grouped by solid [n]."""
        runs = [np.arange(first, last, CHUNK) for first, last, _ in segments(solid)]
        if not runs:
            nothing = np.empty(0, np.int64)
            return cls(nothing, nothing, solid, points_m, np.empty(0, points_m.dtype))
        starts = np.concatenate(runs)
        low, high = (reduce.reduceat(points_m, starts, axis=1) for reduce in (np.minimum, np.maximum))
        radii = np.sqrt(((high - low) ** 2).sum(axis=0)) / 2.0
        stops = np.append(starts[1:], len(solid))
        return cls(starts, stops, solid.take(starts), (low + high) / 2.0, radii)

    def samples(self, chosen: np.ndarray) -> np.ndarray:
        """int [m]: the samples of some runs."""
        index = self.starts.take(chosen)[:, None] + np.arange(CHUNK)
        return index[index < self.stops.take(chosen)[:, None]]


def lit(moment: Moment, light: Light, chunks: Chunks, from_light: Components, facing: np.ndarray) -> np.ndarray:
    """bool [n]: whether light reaches the samples of `chunks`, which are at `from_light` [3, n] (world axes) from it.

    `facing` [n]: above 0 if the surface faces the light; no light arrives otherwise. A convex solid never shades its
    own lit side and is not tested against its own samples, which avoids speckle from rounding. Walls shade nothing.
    """
    reached = facing > 0.0
    for index, runs in may_shade(moment, light, chunks, facing).items():
        placed, pose = moment.scene.solids[index], moment.poses[index]
        within = chunks.samples(runs)
        within = within[reached.take(within)]  # not those that are in some shadow already
        towards = [part.take(within) for part in from_light]
        centre = pose.position_m - np.array(light.position_m)
        direction = transform(pose.rotation.T, towards)
        with np.errstate(invalid="ignore", over="ignore"):
            factor = placed.shape.hit((-pose.rotation.T @ centre).tolist(), direction)
        reached[within[factor < 1.0 - 1e-4]] = False
    return reached


def may_shade(moment: Moment, light: Light, chunks: Chunks, facing: np.ndarray) -> dict[int, np.ndarray]:
    """Per solid that casts shadows: the runs that it may shade.

    Tested first by the balls of solid and run, as seen from the lamp; then by the solid's box, enlarged by the run's
    ball, on the path from the lamp to the run.
    """
    scene = moment.scene
    solids = [index for index, solid in enumerate(scene.solids) if solid.shades and math.isfinite(solid.shape.bound_m)]
    if not solids or not len(chunks.starts):
        return {}
    lamp = np.array(light.position_m)[:, None]
    balls = np.stack([moment.poses[index].position_m for index in solids], axis=1) - lamp
    bounds = np.array([scene.solids[index].shape.bound_m for index in solids])
    runs, radii = chunks.centres_m.astype(np.float64) - lamp, chunks.radii_m.astype(np.float64) + SLACK_M
    away, run_away = np.sqrt(dot(balls, balls)), np.sqrt(dot(runs, runs))
    half, run_half = half_angle(bounds, away), half_angle(radii, run_away)
    cosine = np.einsum("ij,ik->jk", balls / np.maximum(away, TINY_M), runs / np.maximum(run_away, TINY_M))
    together = np.minimum(half[:, None] + run_half, math.pi)
    shaded = (cosine >= np.cos(together) - 1e-6) & (run_away + radii > (away - bounds)[:, None])
    shaded &= (np.array(solids)[:, None] != chunks.solid) & (np.maximum.reduceat(facing, chunks.starts) > 0.0)
    number, run = np.nonzero(shaded)  # pairs, ordered by solid
    rotations = np.stack([moment.poses[index].rotation for index in solids])  # world from solid
    extents = np.array([scene.solids[index].shape.extent_m for index in solids])
    starts = -np.einsum("sji,js->si", rotations, balls)
    steps = np.einsum("pji,jp->ip", rotations[number], runs[:, run])
    enter, leave = np.zeros(len(run)), np.ones(len(run))
    for start, extent, step in zip(starts[number].T, extents[number].T, steps, strict=True):
        first, last = slab(start, extent + radii[run], step)
        enter, leave = np.maximum(enter, first), np.minimum(leave, last)
    number, run = number[enter <= leave], run[enter <= leave]
    ends = np.searchsorted(number, np.arange(len(solids) + 1)).tolist()
    pairs = zip(solids, ends[:-1], ends[1:], strict=True)
    return {index: run[first:last] for index, first, last in pairs if first < last}


def half_angle(radius: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Half the angle under which balls are seen, rad; pi from inside."""
    outside = distance > radius
    return np.where(outside, np.arcsin(np.minimum(radius / np.where(outside, distance, 1.0), 1.0)), math.pi)


@lru_cache(maxsize=8)  # reused for the bands of a picture, and for optical flow
def outlines(moment: Moment) -> list[tuple[float, float, float, float]]:
    """`outline` of every solid."""
    placed = zip(moment.scene.solids, moment.placements, strict=True)
    return [outline(solid.shape, rotation, shift) for solid, (rotation, shift) in placed]


def outline(shape: Shape, rotation: np.ndarray, shift: np.ndarray) -> tuple[float, float, float, float]:
    """Ranges of x and y of the rays (x, y, 1) that can hit a shape: from its ball, and from its box if close."""
    bound_m, (across, down, away) = shape.bound_m, shift.tolist()
    left, right = span(across, away, bound_m)
    top, bottom = span(down, away, bound_m)
    if math.isinf(bound_m):
        return left, right, top, bottom
    x, y, z = (rotation * shape.extent_m) @ CORNERS + shift[:, None]
    if z.min() < NEAREST_M:
        return left, right, top, bottom
    x, y = x / z, y / z
    return (
        max(left, x.min() - ROUNDING),
        min(right, x.max() + ROUNDING),
        max(top, y.min() - ROUNDING),
        min(bottom, y.max() + ROUNDING),
    )


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

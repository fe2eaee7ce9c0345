"""Random scenes: a lit room, one to three solids, a camera that stays or moves. A seed gives one scene, always.

Scenes are drawn until one passes `is_clear`: nothing runs into anything else, every object is in the picture at the
start, in the middle and at the end, and none stays behind another one.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from manifests.errors import OpenUniError, unknown_name
from openuni.world.camera import CameraPath
from openuni.world.pose import NOWHERE, UP, Motion, MotionKind, Vector
from openuni.world.scene import BACKGROUND, Light, Material, Pattern, Scene, Solid
from openuni.world.shapes import Box, Capsule, Cone, Cylinder, Shape, Sphere, Wall

ROOM_M: Vector = (3.6, 3.0, 4.2)  # half of the width, the height, half of the length; the floor is y = 0
OBJECT_COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
OBJECT_PATTERNS: tuple[Pattern, ...] = ("checkered", "striped", "spotted", "marbled", "mottled")
ROOM_COLOURS = (("cream", "brown"), ("grey", "slate"), ("white", "grey"), ("sage", "slate"), ("cream", "sage"))
ATTEMPTS = 2000
GAP_M = 0.08  # least distance between things
IN_PICTURE = 0.85  # how far from the middle of the picture (1 is the border) the middle of an object may be
MAX_TRAVEL_M = 2.2  # in a long clip things move more slowly
MAX_TURN_RAD = 0.5


@dataclass(frozen=True)
class Preset:
    """A kind of scene."""

    doc: str
    moves: bool = True
    light: float = 1.0  # factor on all light


PRESETS = {
    "solids": Preset("one to three moving solids in a lit room; the camera moves in about half of the clips"),
    "still": Preset("nothing moves, neither solids nor camera", moves=False),
    "dark": Preset("as solids, with so little light that the mean luma is below 0.05", light=0.006),
}


def find_preset(name: str) -> Preset:
    """The preset of that name; raises `OpenUniError` when there is none."""
    if name not in PRESETS:
        raise OpenUniError(unknown_name("world preset", name, PRESETS))
    return PRESETS[name]


def random_scene(seed: int, duration_s: float, preset: str = "solids") -> Scene:
    """The scene of that seed. `duration_s` bounds speeds, so that everything stays in the room and in view."""
    kind = find_preset(preset)
    rng = np.random.default_rng([seed, *preset.encode()])
    count = int(rng.integers(1, 4))  # drawn once, so that crowded scenes are not rarer for being harder to draw
    for _ in range(ATTEMPTS):
        camera = draw_camera(rng, duration_s, moves=kind.moves)
        objects = draw_objects(rng, count, duration_s, moves=kind.moves)
        if is_clear(camera, objects, duration_s):
            lamp = Light((rng.uniform(-1.8, 1.8), rng.uniform(2.4, 2.8), rng.uniform(1.0, 2.6)), 5.5 * kind.light)
            return Scene((*draw_room(rng), *objects), (lamp,), 0.32 * kind.light, camera)
    raise OpenUniError(f"world: no clear scene for seed {seed}, preset {preset}, {duration_s:.2f} s; try another seed")


def draw_camera(rng: np.random.Generator, duration_s: float, *, moves: bool) -> CameraPath:
    """A camera near one end of the room at about eye height."""
    eye: Vector = (rng.uniform(-0.9, 0.9), rng.uniform(1.0, 1.9), rng.uniform(2.9, 3.5))
    target: Vector = (rng.uniform(-0.3, 0.3), rng.uniform(0.6, 0.9), rng.uniform(-1.0, -0.2))
    if not moves or rng.random() < 0.5:
        return CameraPath("static", eye, target)
    sign = 1.0 if rng.random() < 0.5 else -1.0
    turn = sign * min(rng.uniform(0.15, 0.4), MAX_TURN_RAD / duration_s)
    choice = rng.integers(3)
    if choice == 0:
        return CameraPath("pan", eye, target, turn_rad_per_s=turn)
    if choice == 1:
        return CameraPath("orbit", eye, target, turn_rad_per_s=turn)
    return CameraPath("dolly", eye, target, travel_m_per_s=sign * min(rng.uniform(0.3, 0.7), 0.7 / duration_s))


def draw_objects(rng: np.random.Generator, count: int, duration_s: float, *, moves: bool) -> tuple[Solid, ...]:
    """Objects of different colours."""
    colours = rng.choice(OBJECT_COLOURS, count, replace=False)
    solids = []
    for instance, colour in enumerate(colours.tolist(), start=1):
        pattern = OBJECT_PATTERNS[rng.integers(len(OBJECT_PATTERNS))]
        second = "white" if colour in ("red", "green", "teal", "blue", "purple") else "black"
        gloss = float(rng.choice([0.0, 0.12]))
        material = Material(colour, second, pattern, rng.uniform(0.55, 0.9), gloss, int(rng.integers(64)))
        shape = draw_shape(rng)
        path = draw_motion(rng, shape, duration_s) if moves else draw_rest(rng, shape)
        solids.append(Solid(shape, material, path, instance))
    return tuple(solids)


def draw_shape(rng: np.random.Generator) -> Shape:
    """A shape half a metre to a metre across."""
    size = rng.uniform(0.34, 0.6)
    makers: tuple[Callable[[], Shape], ...] = (
        lambda: Sphere(size),
        lambda: Box((size, size * rng.uniform(0.7, 1.2), size * rng.uniform(0.7, 1.0))),
        lambda: Cylinder(size * 0.8, size),
        lambda: Cone(size, size * 1.2),
        lambda: Capsule(size * 0.6, size * 0.6),
    )
    return makers[rng.integers(len(makers))]()


def draw_place(rng: np.random.Generator) -> tuple[float, float]:
    """x and z of a free place on the floor."""
    return rng.uniform(-1.8, 1.8), rng.uniform(-1.6, 1.3)


def draw_rest(rng: np.random.Generator, shape: Shape) -> Motion:
    """Stand on the floor, turned by any angle."""
    x, z = draw_place(rng)
    return Motion("rests", (x, shape.rest_height_m, z), orientation_rad=(0.0, rng.uniform(0.1, 6.2), 0.0))


def draw_motion(rng: np.random.Generator, shape: Shape, duration_s: float) -> Motion:
    """A movement that suits the shape."""
    kinds: tuple[MotionKind, ...] = ("slides", "spins", "bobs", "tumbles")
    if isinstance(shape, Sphere | Cylinder):
        kinds = ("rolls", "rolls", "spins", "bobs", "tumbles")
    kind = kinds[rng.integers(len(kinds))]
    x, z = draw_place(rng)
    speed = min(rng.uniform(0.5, 1.5), MAX_TRAVEL_M / duration_s)
    heading = rng.uniform(-0.6, 0.6) + rng.choice([0.0, math.pi, math.pi / 2.0, -math.pi / 2.0], p=[0.4, 0.4, 0.1, 0.1])
    velocity: Vector = (speed * math.cos(heading), 0.0, -speed * math.sin(heading))
    spin = float(rng.choice([-1.0, 1.0])) * rng.uniform(0.8, 2.2)
    turned: Vector = (0.0, rng.uniform(0.1, 6.2), 0.0)
    if kind == "rolls":
        return rolling(shape, (x, z), velocity)
    if kind == "slides":
        return Motion("slides", (x, shape.rest_height_m, z), velocity, orientation_rad=turned)
    if kind == "spins":
        return Motion("spins", (x, shape.rest_height_m, z), NOWHERE, UP, spin, turned)
    if kind == "bobs":
        height = shape.rest_height_m + rng.uniform(0.35, 0.7)
        bob_hz = rng.uniform(0.5, 0.9)
        return Motion("bobs", (x, height, z), NOWHERE, UP, 0.4 * spin, turned, rng.uniform(0.15, 0.3), bob_hz)
    height = shape.bound_m + rng.uniform(0.15, 0.6)
    axis: Vector = (rng.normal(), rng.normal(), rng.normal() + 0.1)
    return Motion("tumbles", (x, height, z), velocity, axis, spin, turned)


def rolling(shape: Shape, place_m: tuple[float, float], velocity: Vector) -> Motion:
    """Roll without slipping; a cylinder lies on its side across the direction of travel."""
    radius_m = shape.radius_m if isinstance(shape, Cylinder) else shape.bound_m
    speed = math.hypot(*velocity)
    axis = (velocity[2] / speed, 0.0, -velocity[0] / speed)  # up x velocity
    lying = (axis[2] * math.pi / 2.0, 0.0, -axis[0] * math.pi / 2.0)  # takes the object's y onto that axis
    start = (place_m[0], radius_m, place_m[1])
    return Motion("rolls", start, velocity, axis, speed / radius_m, lying if isinstance(shape, Cylinder) else NOWHERE)


def draw_room(rng: np.random.Generator) -> tuple[Solid, ...]:
    """Floor, ceiling and four walls, seen from inside."""
    half_width, height, half_length = ROOM_M
    walls, floor, ceiling = (ROOM_COLOURS[index] for index in rng.integers(len(ROOM_COLOURS), size=3))
    floor_pattern: Pattern = ("checkered", "striped", "mottled")[rng.integers(3)]
    wall_pattern: Pattern = ("mottled", "marbled", "striped")[rng.integers(3)]
    grain = int(rng.integers(64))
    on_floor = Material(*floor, floor_pattern, 1.3, seed=grain)
    on_wall = Material(*walls, wall_pattern, 2.0, seed=grain + 1)
    on_ceiling = Material(*ceiling, "mottled", 2.0, seed=grain + 2)
    quarter = math.pi / 2.0
    placed: tuple[tuple[Material, Vector, Vector], ...] = (  # material, place, rotation vector that turns +y inwards
        (on_floor, (0.0, 0.0, 0.0), NOWHERE),
        (on_ceiling, (0.0, height, 0.0), (math.pi, 0.0, 0.0)),
        (on_wall, (0.0, 0.0, -half_length), (quarter, 0.0, 0.0)),
        (on_wall, (0.0, 0.0, half_length), (-quarter, 0.0, 0.0)),
        (on_wall, (-half_width, 0.0, 0.0), (0.0, 0.0, -quarter)),
        (on_wall, (half_width, 0.0, 0.0), (0.0, 0.0, quarter)),
    )
    return tuple(
        Solid(Wall(4.0), material, Motion("rests", place, orientation_rad=turned), BACKGROUND)
        for material, place, turned in placed
    )


def is_clear(camera: CameraPath, objects: tuple[Solid, ...], duration_s: float) -> bool:
    """Whether the scene can be shown: see the module's text. Objects are taken as the balls around them."""
    times_s = np.linspace(0.0, duration_s, 7)
    bounds = [solid.shape.bound_m for solid in objects]
    shown = np.zeros(len(objects), bool)
    half_view = math.tan(math.radians(camera.view_deg) / 2.0)
    for step, time_s in enumerate(times_s):
        view = camera.view(float(time_s))
        world = np.stack([solid.path.pose(float(time_s)).position_m for solid in objects], axis=1)
        seen = view.to_camera(world)
        if not fits(world, seen, bounds):
            return False
        off_centre = np.abs(seen[:2]).max(axis=0) / np.maximum(seen[2], 1e-9) / half_view
        if step % 3 == 0 and (off_centre > IN_PICTURE).any():
            return False
        shown |= ~covered(seen, bounds)
    return bool(shown.all())


def fits(world: np.ndarray, seen: np.ndarray, bounds: list[float]) -> bool:
    """Whether balls at `world` [3, n] (`seen` in camera axes) touch neither walls, nor camera, nor one another."""
    radius = np.array(bounds)
    if (np.abs(world[0]) + radius > ROOM_M[0] - GAP_M).any() or (np.abs(world[2]) + radius > ROOM_M[2] - GAP_M).any():
        return False
    if (seen[2] - radius < 0.9).any() or (world[1] + radius > ROOM_M[1] - GAP_M).any():
        return False
    pairs = itertools.combinations(range(len(bounds)), 2)
    return all(np.linalg.norm(world[:, a] - world[:, b]) > bounds[a] + bounds[b] + GAP_M for a, b in pairs)


def covered(seen: np.ndarray, bounds: list[float]) -> np.ndarray:
    """bool [n]: whether the middle of each ball, at `seen` [3, n] in camera axes, lies behind another ball."""
    distance = np.linalg.norm(seen, axis=0)
    direction = seen / distance
    angle = np.arccos(np.clip(direction.T @ direction, -1.0, 1.0))
    behind = distance[:, None] > distance[None, :]
    return (behind & (angle < np.arcsin(np.clip(np.array(bounds) / distance, 0.0, 1.0))[None, :])).any(axis=1)

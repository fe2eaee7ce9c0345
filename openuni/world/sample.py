"""Random solids in a lit room, and a static or moving camera.

Every object gets a position that passes `placement.is_clear`: nothing collides, all objects are in the picture at the
start, in the middle and at the end, and none stays hidden behind another.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from openuni.world.placement import Track, Watch, is_clear
from openuni.world.rendering.camera import CameraPath
from openuni.world.rendering.pose import ORIGIN, UP, Motion, MotionKind, Vector
from openuni.world.rendering.shapes import Box, Capsule, Cone, Cylinder, Shape, Sphere, Wall
from openuni.world.scene import BACKGROUND, Light, Material, Pattern, Scene, Solid

ROOM_M: Vector = (3.6, 3.0, 4.2)  # half of the width, the height, half of the length; the floor is y = 0
OBJECT_COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
OBJECT_PATTERNS: tuple[Pattern, ...] = ("checkered", "striped", "spotted", "marbled", "mottled")
ROOM_COLOURS = (("cream", "brown"), ("grey", "slate"), ("white", "grey"), ("sage", "slate"), ("cream", "sage"))
ATTEMPTS = 100  # attempts to draw a scene
PLACES = 25  # positions tried for one object
MAX_TRAVEL_M = 2.2  # objects move more slowly in long clips
MAX_TURN_RAD = 0.5


def solids_scene(
    rng: np.random.Generator, duration_s: float, *, moves: bool = True, light: float = 1.0
) -> Scene | None:
    """A lit room with one to three solids. `moves`: allow motion; `light`: factor on all light."""
    camera = draw_camera(rng, duration_s, moves=moves)
    count = int(rng.integers(1, 4))
    watch = Watch.of(camera, duration_s)
    for _ in range(ATTEMPTS):
        objects = draw_objects(rng, count, watch, Surroundings(), moves=moves)
        if objects:
            lamp = Light((rng.uniform(-1.8, 1.8), rng.uniform(2.4, 2.8), rng.uniform(1.0, 2.6)), 5.5 * light)
            return Scene((*draw_room(rng), *objects), (lamp,), 0.32 * light, camera)
    return None


def draw_camera(rng: np.random.Generator, duration_s: float, *, moves: bool) -> CameraPath:
    """A camera near one end of the room, at about eye height."""
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


@dataclass(frozen=True, eq=False)
class Surroundings:
    """Obstacles for new objects, and the number of the first object; `matt`: no gloss."""

    room_m: Vector = ROOM_M
    tracks: tuple[Track, ...] = ()
    first: int = 1
    matt: bool = False


def draw_objects(
    rng: np.random.Generator, count: int, watch: Watch, around: Surroundings, *, moves: bool = True
) -> list[Solid]:
    """Objects of different colours, each clear of those before; empty if one does not fit."""
    colours = rng.choice(OBJECT_COLOURS, count, replace=False)
    solids: list[Solid] = []
    tracks = list(around.tracks)
    for instance, colour in enumerate(colours.tolist(), start=around.first):
        material, shape = draw_material(rng, colour), draw_shape(rng)
        if around.matt:
            material = replace(material, gloss=0.0)
        kind = draw_kind(rng, shape) if moves else "rests"
        for _ in range(PLACES):
            path = draw_motion(rng, shape, kind, watch.duration_s)
            track = watch.follow(path, shape.bound_m)
            if is_clear(track, tracks, around.room_m):
                solids.append(Solid(shape, material, path, instance))
                tracks.append(track)
                break
        else:
            return []
    return solids


def draw_material(rng: np.random.Generator, colour: str) -> Material:
    """A pattern of the colour and white or black, whichever has more contrast."""
    pattern = OBJECT_PATTERNS[rng.integers(len(OBJECT_PATTERNS))]
    second = "white" if colour in ("red", "green", "teal", "blue", "purple") else "black"
    gloss = float(rng.choice([0.0, 0.12]))
    return Material(colour, second, pattern, rng.uniform(0.55, 0.9), gloss, int(rng.integers(64)))


def draw_shape(rng: np.random.Generator) -> Shape:
    """A shape of 0.5 to 1 m."""
    size = rng.uniform(0.34, 0.6)
    makers: tuple[Callable[[], Shape], ...] = (
        lambda: Sphere(size),
        lambda: Box((size, size * rng.uniform(0.7, 1.2), size * rng.uniform(0.7, 1.0))),
        lambda: Cylinder(size * 0.8, size),
        lambda: Cone(size, size * 1.2),
        lambda: Capsule(size * 0.6, size * 0.6),
    )
    return makers[rng.integers(len(makers))]()


def draw_kind(rng: np.random.Generator, shape: Shape) -> MotionKind:
    """A movement that suits the shape."""
    kinds: tuple[MotionKind, ...] = ("slides", "slides", "spins", "bobs", "tumbles")
    if isinstance(shape, Sphere | Cylinder):
        kinds = ("rolls", "rolls", "spins", "bobs", "tumbles")
    return kinds[rng.integers(len(kinds))]


def draw_motion(rng: np.random.Generator, shape: Shape, kind: MotionKind, duration_s: float) -> Motion:
    """A position in front of the camera and a movement of that kind."""
    x, z = rng.uniform(-1.8, 1.8), rng.uniform(-1.8, 1.3)
    turned: Vector = (0.0, rng.uniform(0.1, 6.2), 0.0)
    standing: Vector = (x, shape.rest_height_m, z)
    if kind == "rests":
        return Motion("rests", standing, orientation_rad=turned)
    speed = min(rng.uniform(0.5, 1.5), MAX_TRAVEL_M / duration_s)
    heading = rng.uniform(-0.6, 0.6) + rng.choice([0.0, math.pi, math.pi / 2.0, -math.pi / 2.0], p=[0.4, 0.4, 0.1, 0.1])
    velocity: Vector = (speed * math.cos(heading), 0.0, -speed * math.sin(heading))
    spin = float(rng.choice([-1.0, 1.0])) * rng.uniform(0.8, 2.2)
    if kind == "rolls":
        return rolling(shape, (x, z), velocity)
    if kind == "slides":
        return Motion("slides", standing, velocity, orientation_rad=turned)
    if kind == "spins":
        return Motion("spins", standing, ORIGIN, UP, spin, turned)
    if kind == "bobs":
        floating: Vector = (x, shape.rest_height_m + rng.uniform(0.35, 0.7), z)
        return Motion("bobs", floating, ORIGIN, UP, 0.4 * spin, turned, rng.uniform(0.15, 0.3), rng.uniform(0.5, 0.9))
    flying: Vector = (x, shape.bound_m + rng.uniform(0.15, 0.6), z)
    axis: Vector = (rng.normal(), rng.normal(), rng.normal() + 0.1)
    return Motion("tumbles", flying, velocity, axis, spin, turned)


def rolling(shape: Shape, place_m: tuple[float, float], velocity: Vector) -> Motion:
    """Roll without slipping; a cylinder lies on its side across the direction of travel."""
    radius_m = shape.radius_m if isinstance(shape, Cylinder) else shape.bound_m
    speed = math.hypot(*velocity)
    axis = (velocity[2] / speed, 0.0, -velocity[0] / speed)  # up x velocity
    lying = (axis[2] * math.pi / 2.0, 0.0, -axis[0] * math.pi / 2.0)  # takes the object's y onto that axis
    start = (place_m[0], radius_m, place_m[1])
    return Motion("rolls", start, velocity, axis, speed / radius_m, lying if isinstance(shape, Cylinder) else ORIGIN)


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
        (on_floor, (0.0, 0.0, 0.0), ORIGIN),
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

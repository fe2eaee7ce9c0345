"""People: appearance, and walks without collisions."""

import math
from typing import NamedTuple

import numpy as np

from openuni.world.figures.body import PARTS, Body, PartPath
from openuni.world.figures.gait import Walk
from openuni.world.furniture import article
from openuni.world.placement import Track, Watch, is_clear
from openuni.world.rendering.pose import Vector
from openuni.world.scene import CaptionedObject, Material, Pattern, Solid

BOUND_M = 0.55  # from the middle of a walker to the farthest toe or hand, seen from above
INSTANTS_PER_S = 6.0
PLACEMENT_ATTEMPTS = 60  # attempts per walk
SHIRTS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "white", "maroon", "navy")
TROUSERS = ("denim", "navy", "khaki", "charcoal", "black", "olive", "brown", "grey")
SHOES = ("black", "brown", "white", "charcoal", "red")
HAIR = (("black", "charcoal"), ("brown", "umber"), ("blond", "sand"), ("auburn", "brown"), ("grey", "slate"))
SKIN = (("fair", "peach"), ("peach", "tan"), ("tan", "bronze"), ("bronze", "umber"), ("umber", "sienna"))
SHIRT_PATTERNS: tuple[Pattern, ...] = ("mottled", "striped", "checkered", "spotted")
STANDING_SHARE = 0.12


class Walker(NamedTuple):
    """One person of a scene."""

    body: Body
    solids: list[Solid]
    captioned: CaptionedObject
    track: Track


def draw_people(rng: np.random.Generator, count: int, watch: Watch, room_m: Vector, first: int) -> list[Walker] | None:
    """People on walks without collisions, numbered from `first`; None if one does not fit."""
    found: list[Walker] = []
    shirts = rng.choice(len(SHIRTS), count, replace=False)
    for number, shirt in enumerate(shirts.tolist(), start=first):
        height_m, build = rng.uniform(1.52, 1.92), rng.uniform(0.88, 1.18)
        stands = bool(rng.random() < STANDING_SHARE)
        for _ in range(PLACEMENT_ATTEMPTS):
            body = Body(number, height_m, build, draw_walk(rng, watch, room_m, height_m, stands=stands))
            track = track_of(body, watch)
            if is_clear(track, [walker.track for walker in found], room_m):
                found.append(Walker(body, *dress(rng, body, SHIRTS[shirt]), track))
                break
        else:
            return None
    return found


def track_of(body: Body, watch: Watch) -> Track:
    """Where the middle of a body is while the camera watches."""
    middle = body.walk.place(body.walk.travelled(np.array(watch.times_s)))
    middle[:, 1] = body.height_m / 2.0
    return watch.track(middle, BOUND_M, upright=True)


def draw_walk(rng: np.random.Generator, watch: Watch, room_m: Vector, height_m: float, *, stands: bool) -> Walk:
    """A random walk in the room, or standing. In long clips, the path is a circle."""
    stride_m = height_m * rng.uniform(0.68, 0.78)
    speed = 0.0 if stands else stride_m * rng.uniform(0.78, 1.0)
    length_m = speed * watch.duration_s
    straight_m = 0.8 * min(room_m[0], room_m[2])
    bend = rng.uniform(-0.25, 0.25) if length_m < straight_m else float(rng.choice([-1.0, 1.0])) * rng.uniform(0.6, 1.0)
    heading = rng.uniform(-math.pi, math.pi)
    reach = (room_m[0] - BOUND_M, room_m[2] - BOUND_M)
    start = (rng.uniform(-reach[0], reach[0]), rng.uniform(-reach[1], 0.6 * reach[1]))
    return Walk(start, heading, speed, bend, stride_m, rng.uniform(0.0, 1.0))


def dress(rng: np.random.Generator, body: Body, shirt: str) -> tuple[list[Solid], CaptionedObject]:
    """The body's solids in the order of `PARTS`, with clothes, and the caption phrases of the person."""
    trousers, shoes = (str(rng.choice(names)) for names in (TROUSERS, SHOES))
    hair, skin = HAIR[rng.integers(len(HAIR))], SKIN[rng.integers(len(SKIN))]
    pattern = SHIRT_PATTERNS[rng.integers(len(SHIRT_PATTERNS))]
    sleeves = bool(rng.random() < 0.5)
    grain = int(rng.integers(64))
    second = "grey" if shirt in ("white", "yellow") else "white"
    on_shirt = Material(
        shirt, second if pattern != "mottled" else darker(shirt), pattern, rng.uniform(0.12, 0.3), seed=grain
    )
    on_legs = Material(trousers, darker(trousers), "mottled", 0.35, seed=grain + 1)
    on_skin = Material(*skin, "mottled", 0.4, seed=grain + 2)
    on_head = Material(*hair, "mottled", 0.12, seed=grain + 3)
    on_feet = Material(shoes, darker(shoes), "mottled", 0.2, seed=grain + 4)
    eyes = Material("black", "charcoal", "mottled", 0.1)
    worn = {"chest": on_shirt, "upper_arm": on_shirt, "forearm": on_shirt if sleeves else on_skin, "pelvis": on_legs}
    worn |= {"thigh": on_legs, "shank": on_legs, "foot": on_feet, "hair": on_head, "eye": eyes}
    solids = []
    for part in PARTS:
        kind = part.removeprefix("left_").removeprefix("right_")
        solids.append(Solid(body.limb(part), worn.get(kind, on_skin), PartPath(body, part), body.instance))
    figured = "" if pattern == "mottled" else f"{pattern} "
    above = f"{hair[0]} hair in {article(shirt)} {shirt} {figured}shirt"
    who = f"a person with {above}, {trousers} trousers and {shoes} shoes"
    return solids, CaptionedObject(body.instance, f"a person in {article(shirt)} {shirt} shirt", who)


def darker(colour: str) -> str:
    """A second colour for cloth, which gives folds without a pattern."""
    return {
        "white": "grey",
        "yellow": "khaki",
        "black": "charcoal",
        "red": "maroon",
        "pink": "red",
        "orange": "brown",
    }.get(colour, {"charcoal": "black", "navy": "black", "denim": "navy", "blue": "navy"}.get(colour, "slate"))

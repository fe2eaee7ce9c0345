"""Places: furnished rooms and a yard, with lights and the free space in them."""

import math
from dataclasses import dataclass

import numpy as np

from openuni.world import furniture
from openuni.world.furniture import Piece
from openuni.world.rendering.pose import ORIGIN, Motion, Vector
from openuni.world.rendering.shapes import Box, Cylinder, Dome, Sphere, Wall
from openuni.world.scene import BACKGROUND, CaptionedObject, Light, Material, Pattern, Solid

WALLS = (
    ("cream", "linen"),
    ("white", "pearl"),
    ("pearl", "silver"),
    ("linen", "sand"),
    ("mist", "sage"),
    ("blush", "linen"),
    ("cloud", "pearl"),
)
FLOORS: tuple[tuple[str, str, Pattern], ...] = (
    ("oak", "walnut", "planked"),
    ("beech", "oak", "planked"),
    ("walnut", "umber", "planked"),
    ("stone", "cream", "checkered"),
    ("white", "slate", "checkered"),
    ("sand", "stone", "mottled"),
)
GROUNDS: tuple[tuple[str, str, Pattern], ...] = (
    ("grass", "moss", "mottled"),
    ("stone", "slate", "bricked"),
    ("sand", "stone", "mottled"),
)
HEDGES: tuple[tuple[str, str, Pattern], ...] = (
    ("moss", "grass", "mottled"),
    ("brick", "sand", "bricked"),
    ("moss", "olive", "marbled"),
)
WARM, COOL, PLAIN = (1.0, 0.83, 0.62), (0.78, 0.88, 1.0), (1.0, 0.95, 0.88)
DEEPEST_M = 1.0  # maximum depth of furniture at walls; beds are deeper and reduce the free space
QUARTER = math.pi / 2.0
ATTEMPTS = 12  # attempts to place one piece at a wall


@dataclass(frozen=True)
class Environment:
    """The static part of a scene. Instances 1.. are its `captioned` objects.

    `clear_m`: half width, height and half length of the space about the origin that contains only carpets.
    """

    solids: tuple[Solid, ...]
    captioned: tuple[CaptionedObject, ...]
    lights: tuple[Light, ...]
    ambient: float
    clear_m: Vector
    description: str  # such as "in a bedroom"


def draw_room(rng: np.random.Generator, *, crowded: bool) -> Environment:
    """A furnished room. `crowded`: with furniture in the middle; otherwise the middle is free for moving objects."""
    half = (rng.uniform(2.1, 2.8), rng.uniform(2.5, 3.3)) if crowded else (rng.uniform(3.2, 3.8), rng.uniform(3.6, 4.3))
    height = rng.uniform(2.6, 3.0)
    layout = Layout(half)
    makers = list(furniture.AT_WALLS)
    rng.shuffle(makers)
    for make in makers[: int(rng.integers(7, 10)) if crowded else int(rng.integers(2, 5))]:
        piece = make(rng)
        if crowded or piece.half_m[1] < 0.5:
            layout.at_wall(rng, piece)
    if crowded:
        layout.in_middle(rng)
    for make in (furniture.window, furniture.picture, furniture.picture, furniture.window)[: int(rng.integers(2, 5))]:
        layout.on_wall(rng, make(rng))
    solids, captioned, lights = [*room_shell(rng, half, height)], [], []
    for number, (piece, place, turn) in enumerate(layout.placed, start=1):
        solids += piece.solids(number, place, turn)
        captioned.append(piece.captioned(number))
        lights += own_light(piece, place, turn)
    lamps, hanging = ceiling_lamps(rng, half, height, len(layout.placed), 1 if lights else 2)
    solids += hanging
    captioned += [CaptionedObject(solid.instance, "a ceiling lamp", "a round ceiling lamp") for solid in hanging]
    nouns = {piece.noun for piece, _, _ in layout.placed}
    kind = next((words for noun, words in KINDS if noun in nouns), "room")
    clear = (half[0] - DEEPEST_M, height, half[1] - DEEPEST_M)
    return Environment(
        tuple(solids), tuple(captioned), (*lamps, *lights[:2]), rng.uniform(0.16, 0.3), clear, f"in a {kind}"
    )


KINDS = (("bed", "bedroom"), ("table", "dining room"), ("sofa", "living room"), ("armchair", "living room"))
TALL = ("bookcase", "wardrobe", "plant", "floor lamp", "bed")
Rectangle = tuple[float, float, float, float]  # of the floor: x from and to, z from and to


class Layout:
    """Pieces put into a room of half width and half length `half_m`, none into another."""

    def __init__(self, half_m: tuple[float, float]) -> None:
        self.half_m = half_m
        self.placed: list[tuple[Piece, Vector, float]] = []
        self.on_floor: list[Rectangle] = []
        self.on_walls: list[Rectangle] = []

    def at_wall(self, rng: np.random.Generator, piece: Piece) -> None:
        """Place a piece with its back to a wall, unless no position is found."""
        for _ in range(ATTEMPTS):
            place, turn = self.draw_place(rng, piece, gap_m=0.06)
            if self.put(piece, place, turn):
                return

    def on_wall(self, rng: np.random.Generator, piece: Piece) -> None:
        """Hang a piece, clear of others and of tall furniture; windows, with long curtains, clear of all furniture."""
        for _ in range(ATTEMPTS):
            place, turn = self.draw_place(rng, piece, gap_m=0.0)
            box = rectangle(piece, place, turn, 0.04)
            below = self.on_floor if piece.noun == "window" else []
            if not any(overlap(box, other) for other in (*self.on_walls, *below)):
                self.on_walls.append(box)
                self.placed.append((piece, place, turn))
                return

    def draw_place(self, rng: np.random.Generator, piece: Piece, gap_m: float) -> tuple[Vector, float]:
        """Somewhere along a wall, one in three in a corner: place and turn."""
        half, wall = self.half_m, int(rng.integers(4))  # back, left, right, front
        room = max((half[0] if wall in (0, 3) else half[1]) - piece.half_m[0] - gap_m - 0.02, 0.0)
        along, away = rng.uniform(-room, room), piece.half_m[1] + gap_m
        if rng.random() < 0.3:
            along = math.copysign(room, along)
        places: tuple[tuple[Vector, float], ...] = (
            ((along, 0.0, -half[1] + away), 0.0),
            ((-half[0] + away, 0.0, along), QUARTER),
            ((half[0] - away, 0.0, along), -QUARTER),
            ((along, 0.0, half[1] - away), math.pi),
        )
        return places[wall]

    def put(self, piece: Piece, place: Vector, turn: float, around_m: float = 0.04) -> bool:
        """Place a piece unless the position is taken; returns whether it was placed."""
        box = rectangle(piece, place, turn, around_m)
        if any(overlap(box, other) for other in self.on_floor):
            return False
        self.on_floor.append(box)
        if piece.noun in TALL:
            self.on_walls.append(box)
        self.placed.append((piece, place, turn))
        return True

    def in_middle(self, rng: np.random.Generator) -> None:
        """Place a table with chairs, or a carpet with a low table."""
        middle: Vector = (rng.uniform(-0.3, 0.3), 0.0, rng.uniform(-0.5, 0.3))
        if rng.random() < 0.5:
            table, seat = furniture.table(rng), furniture.chair(rng)
            if self.put(table, middle, 0.0, around_m=0.3):
                for side in (-1.0, 1.0):
                    place = (middle[0] + 0.1 * side, 0.0, middle[2] + side * (table.half_m[1] + 0.12))
                    self.placed.append((seat, place, math.pi if side > 0 else 0.0))
            return
        low = furniture.coffee_table(rng)
        self.placed.append((furniture.rug(rng), middle, 0.0))  # below other pieces
        self.put(low, (middle[0], 0.012, middle[2]), 0.0)


def rectangle(piece: Piece, place: Vector, turn: float, around_m: float) -> Rectangle:
    """Footprint of a piece, turned by quarter turns, enlarged by `around_m` on every side."""
    wide, deep = piece.half_m[::-1] if abs(math.sin(turn)) > 0.5 else piece.half_m
    wide, deep = wide + around_m, deep + around_m
    return place[0] - wide, place[0] + wide, place[2] - deep, place[2] + deep


def overlap(one: Rectangle, other: Rectangle) -> bool:
    """Whether two rectangles share a point."""
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def own_light(piece: Piece, place: Vector, turn: float) -> list[Light]:
    """The light of a floor lamp or a window."""
    ahead = (math.sin(turn), 0.0, math.cos(turn))
    if piece.noun == "floor lamp":
        shade_m = max(middle[1] for _, _, middle, _ in piece.parts)
        return [Light((place[0], shade_m, place[2]), 0.6, WARM)]
    if piece.noun == "window":
        return [Light((place[0] + 0.35 * ahead[0], 1.75, place[2] + 0.35 * ahead[2]), 1.6, COOL)]
    return []


def ceiling_lamps(
    rng: np.random.Generator, half: tuple[float, float], height: float, numbered: int, least: int
) -> tuple[list[Light], list[Solid]]:
    """One or two globes of glass that hang from the ceiling, a light in each."""
    lights, solids = [], []
    glass = Material("white", "cream", "mottled", 0.5, even_light=1.4)
    count = max(int(rng.integers(1, 3)), least)
    colour = (WARM, PLAIN, PLAIN)[rng.integers(3)]
    for number in range(count):
        z = rng.uniform(-0.4, 0.4) + (number - (count - 1) / 2.0) * half[1]
        x = rng.uniform(-0.4, 0.4) * half[0]
        middle: Vector = (x, height - 0.42, z)
        solids.append(Solid(Sphere(0.14), glass, Motion("rests", middle), numbered + number + 1, shades=False))
        lights.append(Light(middle, 4.6 / count, colour))
    return lights, solids


def room_shell(rng: np.random.Generator, half: tuple[float, float], height: float) -> tuple[Solid, ...]:
    """Floor, ceiling, four walls, and a skirting along them."""
    first, second, pattern = FLOORS[rng.integers(len(FLOORS))]
    grain = int(rng.integers(64))
    on_floor = Material(first, second, pattern, 1.6 if pattern == "planked" else 1.2, seed=grain)
    on_walls = Material(*WALLS[rng.integers(len(WALLS))], "mottled", 2.0, seed=grain + 1)
    on_ceiling = Material("white", "cream", "mottled", 2.0, seed=grain + 2)
    white = Material("white", "grey", "mottled", 1.0, seed=grain + 3)
    sides: tuple[tuple[Material, Vector, Vector], ...] = (
        (on_floor, (0.0, 0.0, 0.0), ORIGIN),
        (on_ceiling, (0.0, height, 0.0), (math.pi, 0.0, 0.0)),
        (on_walls, (0.0, 0.0, -half[1]), (QUARTER, 0.0, 0.0)),
        (on_walls, (0.0, 0.0, half[1]), (-QUARTER, 0.0, 0.0)),
        (on_walls, (-half[0], 0.0, 0.0), (0.0, 0.0, -QUARTER)),
        (on_walls, (half[0], 0.0, 0.0), (0.0, 0.0, QUARTER)),
    )
    shell = [
        Solid(Wall(4.0), material, Motion("rests", middle, orientation_rad=turned), BACKGROUND)
        for material, middle, turned in sides
    ]
    for x, z, long, thick in (
        (0.0, -half[1], half[0], 0.0),
        (0.0, half[1], half[0], 0.0),
        (-half[0], 0.0, 0.0, half[1]),
        (half[0], 0.0, 0.0, half[1]),
    ):
        size = (long or 0.012, 0.04, thick or 0.012)
        shell.append(Solid(Box(size), white, Motion("rests", (x, 0.04, z)), BACKGROUND))
    return tuple(shell)


def draw_yard(rng: np.random.Generator) -> Environment:
    """A lawn or paving under the sky, within a hedge or a wall, with trees."""
    half = (rng.uniform(6.0, 8.0), rng.uniform(7.0, 9.0))
    grain = int(rng.integers(64))
    ground, around = GROUNDS[rng.integers(len(GROUNDS))], HEDGES[rng.integers(len(HEDGES))]
    sky = Material("cloud", "sky", "mottled", 60.0, even_light=0.95, seed=grain)
    on_ground, on_sides = Material(*ground, 2.4, seed=grain + 1), Material(*around, 1.6, seed=grain + 2)
    solids = [
        Solid(Wall(4.0), on_ground, Motion("rests", ORIGIN), BACKGROUND),
        Solid(Dome(60.0), sky, Motion("rests", ORIGIN), BACKGROUND),
    ]
    tall = rng.uniform(0.8, 1.1)
    for x, z, size in (
        (0.0, -half[1], (half[0], tall, 0.25)),
        (0.0, half[1], (half[0], tall, 0.25)),
        (-half[0], 0.0, (0.25, tall, half[1])),
        (half[0], 0.0, (0.25, tall, half[1])),
    ):
        solids.append(Solid(Box(size), on_sides, Motion("rests", (x, tall, z)), BACKGROUND))
    captioned = []
    for number in range(1, int(rng.integers(2, 5))):
        side = (-1.0, 1.0)[number % 2]
        middle: Vector = (side * rng.uniform(4.6, half[0] - 0.9), 0.0, rng.uniform(-half[1] + 1.2, 0.0))
        solids += tree(rng, number, middle)
        captioned.append(CaptionedObject(number, "a tree", "a tree with a round crown"))
    sun = Light(
        (rng.choice([-1.0, 1.0]) * rng.uniform(8.0, 18.0), rng.uniform(18.0, 26.0), rng.uniform(4.0, 16.0)), 0.0
    )
    power = rng.uniform(0.75, 1.0) * sum(part * part for part in sun.position_m)
    light = Light(sun.position_m, power, (1.0, 0.95, 0.86))
    return Environment(tuple(solids), tuple(captioned), (light,), 0.3, (3.2, 8.0, 4.6), "in a yard under a blue sky")


def tree(rng: np.random.Generator, instance: int, place: Vector) -> list[Solid]:
    """A trunk and a crown of balls."""
    trunk = Material("umber", "brown", "grained", 0.5)
    leaf = Material(*furniture.LEAVES[rng.integers(len(furniture.LEAVES))], "mottled", 0.8, seed=int(rng.integers(64)))
    height = rng.uniform(1.4, 2.2)
    solids = [Solid(Cylinder(0.12, height / 2.0), trunk, Motion("rests", (place[0], height / 2.0, place[2])), instance)]
    for _ in range(5):
        x, y, z = rng.uniform(-0.45, 0.45, 3)
        middle: Vector = (place[0] + float(x), height + 0.5 + float(y), place[2] + float(z))
        solids.append(Solid(Sphere(rng.uniform(0.5, 0.8)), leaf, Motion("rests", middle), instance))
    return solids

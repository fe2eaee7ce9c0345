"""Furniture made of boxes, cylinders and a few other solids.

A piece is built about the floor point below its centre, with its back to -z; `Piece.solids` places it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from openuni.world.figures.limb import Limb
from openuni.world.rendering.pose import ORIGIN, Motion, Vector
from openuni.world.rendering.shapes import Box, Cone, Cylinder, Shape, Sphere
from openuni.world.scene import CaptionedObject, Material, Pattern, Solid

CLOTHS = ("red", "teal", "blue", "navy", "maroon", "olive", "slate", "grey", "cream", "sage", "orange", "purple")
WOODS = (("oak", "walnut"), ("beech", "oak"), ("walnut", "brown"), ("white", "cream"), ("charcoal", "slate"))
LEAVES = (("moss", "grass"), ("grass", "moss"), ("green", "moss"))


@dataclass(frozen=True)
class Piece:
    """One piece of furniture: its parts with positions, and its footprint."""

    noun: str
    detailed: str
    half_m: tuple[float, float]  # of width and depth
    parts: tuple[tuple[Shape, Material, Vector, Vector], ...]  # shape, material, middle, rotation vector

    def solids(self, instance: int, place: Vector, turn_rad: float) -> list[Solid]:
        """All solids of the piece at a position, turned about the vertical."""
        cosine, sine = math.cos(turn_rad), math.sin(turn_rad)
        placed = []
        for shape, material, (x, y, z), own in self.parts:
            middle = (place[0] + cosine * x + sine * z, place[1] + y, place[2] - sine * x + cosine * z)
            path = Motion("rests", middle, orientation_rad=_turned(own, turn_rad))
            placed.append(Solid(shape, material, path, instance, shades=not material.even_light))
        return placed

    def captioned(self, instance: int) -> CaptionedObject:
        """The caption phrases of the piece."""
        return CaptionedObject(
            instance, f"{article(self.noun)} {self.noun}", f"{article(self.detailed)} {self.detailed}"
        )


def _turned(own: Vector, turn_rad: float) -> Vector:
    """The rotation vector of `own` followed by a turn about the vertical; `own` is nothing, or a turn about z."""
    if own == ORIGIN:
        return (0.0, turn_rad, 0.0)
    half_own, half_turn = own[2] / 2.0, turn_rad / 2.0  # quaternion (0, 1, 0; turn) times (0, 0, 1; own)
    w = math.cos(half_turn) * math.cos(half_own)
    axis = (
        math.sin(half_turn) * math.sin(half_own),
        math.sin(half_turn) * math.cos(half_own),
        math.cos(half_turn) * math.sin(half_own),
    )
    length = math.hypot(*axis)
    angle = 2.0 * math.atan2(length, w)
    return (axis[0] / length * angle, axis[1] / length * angle, axis[2] / length * angle)


def article(words: str) -> str:
    """ "a" or "an"."""
    return "an" if words[0] in "aeiou" else "a"


class Builder:
    """Collects the parts of a piece."""

    def __init__(self) -> None:
        self.parts: list[tuple[Shape, Material, Vector, Vector]] = []

    def box(self, size: Vector, middle: Vector, material: Material, own: Vector = ORIGIN) -> None:
        """Add a box of full width, height and depth."""
        self.parts.append((Box((size[0] / 2.0, size[1] / 2.0, size[2] / 2.0)), material, middle, own))

    def add(self, shape: Shape, middle: Vector, material: Material) -> None:
        """Add an upright shape."""
        self.parts.append((shape, material, middle, ORIGIN))

    def legs(self, width: float, depth: float, height: float, radius: float, material: Material) -> None:
        """Add four round legs at the corners."""
        for x in (-width / 2.0, width / 2.0):
            for z in (-depth / 2.0, depth / 2.0):
                self.add(Cylinder(radius, height / 2.0), (x, height / 2.0, z), material)

    def piece(self, noun: str, detailed: str, width: float, depth: float) -> Piece:
        """The finished piece; `width` and `depth` are full sizes."""
        return Piece(noun, detailed, (width / 2.0, depth / 2.0), tuple(self.parts))


def wood(rng: np.random.Generator) -> Material:
    """A wooden surface."""
    first, second = WOODS[rng.integers(len(WOODS))]
    pattern: Pattern = "mottled" if first in ("white", "charcoal") else "grained"
    return Material(first, second, pattern, rng.uniform(0.5, 0.9), seed=int(rng.integers(64)))


def cloth(rng: np.random.Generator, *, figured: bool = False) -> Material:
    """A covering in one colour, or with a pattern."""
    colour = str(rng.choice(CLOTHS))
    pattern: Pattern = ("striped", "checkered", "spotted", "marbled")[rng.integers(4)] if figured else "mottled"
    second = (
        "cream"
        if figured and colour != "cream"
        else {"cream": "sand", "grey": "slate", "slate": "charcoal"}.get(colour, "slate")
    )
    return Material(colour, second, pattern, rng.uniform(0.25, 0.5), seed=int(rng.integers(64)))


def sofa(rng: np.random.Generator) -> Piece:
    """One to three seats wide, with loose cushions."""
    seats = int(rng.integers(1, 4))
    cover, build, leg = cloth(rng), Builder(), wood(rng)
    seat, depth = rng.uniform(0.62, 0.72), rng.uniform(0.82, 0.92)
    width = seats * seat + 0.4
    build.legs(width - 0.16, depth - 0.16, 0.1, 0.025, leg)
    build.box((width, 0.22, depth), (0.0, 0.21, 0.0), cover)
    build.box((width - 0.36, 0.5, 0.2), (0.0, 0.57, -depth / 2.0 + 0.1), cover)
    for side in (-1.0, 1.0):
        build.box((0.18, 0.32, depth), (side * (width - 0.18) / 2.0, 0.48, 0.0), cover)
    for number in range(seats):
        x = (number - (seats - 1) / 2.0) * seat
        build.box((seat - 0.015, 0.13, depth - 0.22), (x, 0.385, 0.1), cover)
    if rng.random() < 0.8:
        x = rng.choice([-1.0, 1.0]) * (seats - 1) / 2.0 * seat
        build.add(Limb(0.17, 0.17, 0.05, 1.0, 0.35), (x, 0.63, -depth / 2.0 + 0.27), cloth(rng, figured=True))
    noun = "armchair" if seats == 1 else "sofa"
    return build.piece(noun, f"{cover.colour} {noun}", width, depth)


def table(rng: np.random.Generator) -> Piece:
    """A dining table, round or not, with something on it."""
    top, build = wood(rng), Builder()
    height, width, depth = rng.uniform(0.7, 0.76), rng.uniform(0.9, 1.5), rng.uniform(0.75, 0.9)
    round_one = bool(rng.random() < 0.35)
    if round_one:
        width = depth = rng.uniform(0.95, 1.15)
        build.add(Cylinder(width / 2.0, 0.02), (0.0, height, 0.0), top)
        build.add(Cylinder(0.05, height / 2.0), (0.0, height / 2.0, 0.0), top)
        build.add(Cylinder(0.26, 0.02), (0.0, 0.02, 0.0), top)
    else:
        build.box((width, 0.04, depth), (0.0, height, 0.0), top)
        build.legs(width - 0.12, depth - 0.12, height - 0.02, 0.03, top)
    on_table(rng, build, height + 0.02, 0.3 * min(width, depth))
    return build.piece("table", f"{'round ' if round_one else ''}{top.colour} table", width, depth)


def coffee_table(rng: np.random.Generator) -> Piece:
    """A low table with something on it."""
    top, build = wood(rng), Builder()
    width, depth, height = rng.uniform(0.7, 1.0), rng.uniform(0.45, 0.6), rng.uniform(0.36, 0.44)
    build.box((width, 0.035, depth), (0.0, height, 0.0), top)
    build.legs(width - 0.1, depth - 0.1, height - 0.018, 0.025, top)
    on_table(rng, build, height + 0.018, 0.12)
    return build.piece("coffee table", f"low {top.colour} table", width, depth)


def on_table(rng: np.random.Generator, build: Builder, height: float, reach: float) -> None:
    """A vase, a bowl of fruit or a pile of books."""
    x, z = rng.uniform(-reach, reach), rng.uniform(-reach, reach)
    choice = rng.integers(3)
    if choice == 0:
        build.add(Limb(0.07, 0.04, 0.1), (x, height + 0.17, z), cloth(rng, figured=True))
    elif choice == 1:
        build.add(Cylinder(0.13, 0.03), (x, height + 0.03, z), Material("white", "grey", "mottled", 0.3))
        for angle, colour in zip((0.3, 2.4, 4.5), ("red", "orange", "green"), strict=True):
            place = (x + 0.055 * math.cos(angle), height + 0.085, z + 0.055 * math.sin(angle))
            build.add(
                Sphere(0.042), place, Material(colour, "yellow" if colour != "yellow" else "orange", "mottled", 0.2)
            )
    else:
        for number, colour in enumerate(rng.choice(CLOTHS, 3, replace=False).tolist()):
            build.box(
                (0.24 - 0.02 * number, 0.035, 0.17),
                (x, height + 0.018 + 0.036 * number, z),
                Material(colour, "slate", "mottled", 0.3),
            )


def chair(rng: np.random.Generator) -> Piece:
    """A wooden chair."""
    frame, build = wood(rng), Builder()
    seat = frame if rng.random() < 0.5 else cloth(rng)
    build.box((0.44, 0.045, 0.44), (0.0, 0.45, 0.0), seat)
    build.legs(0.38, 0.38, 0.43, 0.02, frame)
    for x in (-0.19, 0.19):
        build.box((0.035, 0.46, 0.035), (x, 0.7, -0.2), frame)
    for y in (0.68, 0.84):
        build.box((0.35, 0.09, 0.025), (0.0, y, -0.2), frame)
    return build.piece("chair", f"{frame.colour} chair", 0.46, 0.46)


def bookcase(rng: np.random.Generator) -> Piece:
    """Boards full of books."""
    board, build = wood(rng), Builder()
    width, height, depth, shelves = rng.uniform(0.8, 1.2), rng.uniform(1.5, 2.0), 0.32, 4
    build.box((width, height, 0.02), (0.0, height / 2.0, -depth / 2.0 + 0.01), board)
    for side in (-1.0, 1.0):
        build.box((0.03, height, depth), (side * (width - 0.03) / 2.0, height / 2.0, 0.0), board)
    gap = (height - 0.06) / shelves
    upright = (0.0, 0.0, math.pi / 2.0)  # stripes run up and down: backs of books
    for number in range(shelves + 1):
        build.box((width - 0.06, 0.025, depth - 0.02), (0.0, 0.06 + number * gap - 0.012, 0.0), board)
    for number in range(shelves):
        filled = rng.uniform(0.45, 0.95) * (width - 0.08)
        tall = gap * rng.uniform(0.6, 0.8)
        first, second = rng.choice(CLOTHS, 2, replace=False).tolist()
        x = (width - 0.08 - filled) / 2.0 * rng.choice([-1.0, 1.0])
        books = Material(first, second, "striped", 0.075, seed=number)
        build.box((tall, filled, 0.2), (x, 0.062 + number * gap + tall / 2.0, -0.03), books, upright)
    return build.piece("bookcase", f"{board.colour} bookcase full of books", width, depth)


def cabinet(rng: np.random.Generator) -> Piece:
    """A sideboard, a chest of drawers or a wardrobe."""
    board, build = wood(rng), Builder()
    tall = bool(rng.random() < 0.4)
    width, depth = (rng.uniform(0.9, 1.3), 0.55) if tall else (rng.uniform(1.0, 1.7), 0.45)
    height = rng.uniform(1.8, 2.1) if tall else rng.uniform(0.6, 0.85)
    doors = 2 if tall else int(rng.integers(2, 4))
    build.box((width, height - 0.06, depth), (0.0, height / 2.0 + 0.03, 0.0), board)
    build.box((width - 0.06, 0.06, depth - 0.06), (0.0, 0.03, 0.0), board)
    step = width / doors
    knob = Material("charcoal", "slate", "mottled", 0.2)
    for number in range(doors):
        x = (number - (doors - 1) / 2.0) * step
        build.box((step - 0.03, height - 0.12, 0.02), (x, height / 2.0 + 0.03, depth / 2.0 + 0.01), board)
        side = 1.0 if number < doors / 2.0 else -1.0
        build.add(Sphere(0.02), (x + side * (step / 2.0 - 0.07), height / 2.0 + 0.08, depth / 2.0 + 0.035), knob)
    if not tall:
        on_table(rng, build, height, 0.15)
    noun = "wardrobe" if tall else "sideboard"
    return build.piece(noun, f"{board.colour} {noun}", width, depth + 0.1)


def bed(rng: np.random.Generator) -> Piece:
    """A bed with its head at the wall."""
    frame, cover, build = wood(rng), cloth(rng, figured=bool(rng.random() < 0.5)), Builder()
    width = rng.uniform(1.0, 1.6)
    linen = Material("white", "cream", "mottled", 0.5)
    build.box((width, 0.2, 2.0), (0.0, 0.2, 0.0), frame)
    build.legs(width - 0.1, 1.9, 0.1, 0.03, frame)
    build.box((width - 0.04, 0.2, 1.94), (0.0, 0.4, 0.02), linen)
    build.box((width, 0.19, 1.3), (0.0, 0.42, 0.36), cover)
    build.box((width + 0.06, 0.95, 0.06), (0.0, 0.475, -1.0), frame)
    for x in (-width / 4.0, width / 4.0) if width > 1.3 else (0.0,):
        build.add(Limb(0.1, 0.1, 0.03, 2.4, 1.5), (x, 0.55, -0.74), linen)
    return build.piece("bed", f"{frame.colour} bed with a {cover.colour} blanket", width + 0.06, 2.08)


def plant(rng: np.random.Generator) -> Piece:
    """A plant in a pot."""
    first, second = LEAVES[rng.integers(len(LEAVES))]
    leaf, build = Material(first, second, "mottled", 0.3, seed=int(rng.integers(64))), Builder()
    pot = Material(str(rng.choice(["brick", "white", "charcoal"])), "slate", "mottled", 0.4)
    height = rng.uniform(0.5, 0.9)
    build.add(Limb(0.1, 0.14, 0.09, 1.0, 1.0), (0.0, 0.19, 0.0), pot)
    build.add(Cylinder(0.02, height / 2.0), (0.0, 0.25 + height / 2.0, 0.0), Material("umber", "brown", "mottled", 0.2))
    for number in range(6):
        angle, up = 2.4 * number, 0.3 + height * (0.35 + 0.13 * number)
        out = 0.17 - 0.018 * number
        build.add(Limb(0.12, 0.05, 0.09, 0.8, 0.8), (out * math.cos(angle), up, out * math.sin(angle)), leaf)
    return build.piece("plant", f"{pot.colour} pot with a green plant", 0.56, 0.56)


def lamp(rng: np.random.Generator) -> Piece:
    """A floor lamp whose shade glows."""
    metal, build = Material("charcoal", "slate", "mottled", 0.3), Builder()
    height = rng.uniform(1.4, 1.65)
    build.add(Cylinder(0.15, 0.012), (0.0, 0.012, 0.0), metal)
    build.add(Cylinder(0.013, height / 2.0), (0.0, height / 2.0, 0.0), metal)
    shade = Material("cream", "blond", "mottled", 0.4, even_light=1.3)
    build.add(Cone(0.22, 0.16), (0.0, height + 0.02, 0.0), shade)
    return build.piece("floor lamp", "floor lamp with a cream shade", 0.46, 0.46)


def rug(rng: np.random.Generator) -> Piece:
    """A carpet."""
    cover, build = cloth(rng, figured=True), Builder()
    width, depth = rng.uniform(1.6, 2.4), rng.uniform(1.1, 1.7)
    build.box((width, 0.012, depth), (0.0, 0.006, 0.0), cover)
    return build.piece("rug", f"{cover.colour} {cover.pattern} rug", width, depth)


def picture(rng: np.random.Generator) -> Piece:
    """A framed picture; its back is on the wall and its middle at the height of the eyes."""
    frame, build = wood(rng), Builder()
    width, height = rng.uniform(0.5, 1.0), rng.uniform(0.45, 0.75)
    build.box((width, height, 0.03), (0.0, 1.6, 0.015), frame)
    first, second = rng.choice(CLOTHS, 2, replace=False).tolist()
    pattern: Pattern = ("marbled", "spotted", "checkered", "striped")[rng.integers(4)]
    shown = Material(first, second, pattern, rng.uniform(0.3, 0.8), seed=int(rng.integers(64)))
    build.box((width - 0.09, height - 0.09, 0.01), (0.0, 1.6, 0.034), shown)
    return build.piece("picture", f"{pattern} picture in {first} and {second}", width, 0.04)


def window(rng: np.random.Generator) -> Piece:
    """A window with the day behind it, and curtains."""
    frame, build = Material("white", "cream", "mottled", 0.5), Builder()
    width, height, middle = rng.uniform(1.0, 1.6), rng.uniform(1.0, 1.3), 1.5
    build.box((width, height, 0.05), (0.0, middle, 0.02), frame)
    day = Material("cloud", "sky", "mottled", 1.4, even_light=1.15, seed=int(rng.integers(64)))
    for side in (-1.0, 1.0):
        build.box((width / 2.0 - 0.07, height - 0.1, 0.01), (side * width / 4.0, middle, 0.045), day)
    curtain = cloth(rng)
    for side in (-1.0, 1.0):
        for number in range(3):
            x = side * (width / 2.0 + 0.02 + 0.085 * number)
            build.add(Cylinder(0.05, (height + 0.5) / 2.0), (x, middle - 0.1, 0.07), curtain)
    build.box((width + 0.7, 0.03, 0.03), (0.0, middle + height / 2.0 + 0.16, 0.09), frame)
    return build.piece("window", f"window with {curtain.colour} curtains", width + 0.6, 0.14)


AT_WALLS: tuple[Callable[[np.random.Generator], Piece], ...] = (
    sofa,
    sofa,
    bookcase,
    cabinet,
    cabinet,
    bed,
    plant,
    lamp,
    chair,
)

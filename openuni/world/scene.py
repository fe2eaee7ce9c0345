"""Scene description: solids with their materials and paths, lights, and the camera's path.

A scene is a value of frozen dataclasses: it can be pickled, compared and printed. `Scene.at` places everything at one
instant. A body of several parts is several solids with the same `instance`.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from openuni.world.figures.body import Body
from openuni.world.rendering.camera import Camera, View
from openuni.world.rendering.pose import Path, Pose, Vector
from openuni.world.rendering.shapes import Shape

BACKGROUND = 0  # instance of walls and floor; objects are 1, 2, ...

Pattern = Literal["checkered", "striped", "spotted", "marbled", "mottled", "grained", "planked", "bricked"]

COLOURS: dict[str, tuple[int, int, int]] = {  # sRGB, 0..255
    "red": (206, 38, 34),
    "orange": (240, 128, 24),
    "yellow": (244, 208, 48),
    "green": (52, 152, 60),
    "teal": (24, 156, 158),
    "blue": (36, 84, 204),
    "purple": (126, 62, 176),
    "pink": (238, 116, 168),
    "white": (240, 240, 236),
    "black": (36, 36, 40),
    "cream": (226, 214, 188),
    "grey": (148, 150, 154),
    "slate": (96, 110, 128),
    "brown": (132, 92, 60),
    "sage": (156, 174, 146),
    "navy": (34, 46, 92),
    "denim": (66, 90, 134),
    "khaki": (158, 142, 104),
    "olive": (98, 104, 58),
    "charcoal": (64, 66, 72),
    "maroon": (112, 32, 40),
    "fair": (236, 198, 172),
    "peach": (224, 178, 148),
    "tan": (196, 144, 106),
    "bronze": (178, 124, 88),
    "umber": (116, 78, 58),
    "sienna": (98, 64, 46),
    "blond": (208, 172, 108),
    "auburn": (124, 58, 36),
    "oak": (182, 138, 90),
    "beech": (210, 176, 132),
    "walnut": (104, 70, 48),
    "grass": (92, 132, 56),
    "moss": (62, 96, 46),
    "stone": (150, 144, 134),
    "sand": (204, 186, 154),
    "brick": (164, 88, 68),
    "linen": (234, 226, 210),
    "pearl": (230, 232, 234),
    "silver": (196, 199, 204),
    "mist": (190, 202, 186),
    "blush": (226, 204, 194),
    "sky": (122, 172, 226),
    "cloud": (206, 224, 240),
}


@dataclass(frozen=True)
class Material:
    """A surface: two colours (names of `COLOURS`) mixed by a pattern that is fixed to the solid.

    `colour` is the one named in captions. `tile_m`: size of one repeat of the pattern; `gloss`: strength of the
    highlight (0: matt); `seed`: selects one of a few grains. `even_light`, if above 0: uniform irradiance instead of
    the lamps' light, for skies.
    """

    colour: str
    second: str
    pattern: Pattern
    tile_m: float = 0.7
    gloss: float = 0.0
    seed: int = 0
    even_light: float = 0.0


@dataclass(frozen=True)
class Light:
    """A point light: irradiance is `power / distance^2` at normal incidence.

    `colour`: factors on red, green and blue.
    """

    position_m: Vector
    power: float
    colour: Vector = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Solid:
    """One convex solid."""

    shape: Shape
    material: Material
    path: Path
    instance: int  # BACKGROUND, or the number of the object it belongs to
    shades: bool = True  # False: casts no shadow, such as the glass around a lamp


@dataclass(frozen=True)
class CaptionedObject:
    """Caption phrases of an object of several solids."""

    instance: int
    brief: str  # such as "a sofa"
    detailed: str  # such as "a blue sofa with two cushions"


@dataclass(frozen=True)
class Scene:
    """Everything that is rendered.

    Walls bound a convex room that contains everything else: depth is finite everywhere, and walls occlude and shade
    nothing.
    """

    solids: tuple[Solid, ...]
    lights: tuple[Light, ...]
    ambient: float  # uniform irradiance of every surface
    camera: Camera
    exposure: float = 1.0  # factor on all light
    bodies: tuple[Body, ...] = ()  # persons; their solids are in `solids`, in the order of `body.PARTS`
    captioned: tuple[CaptionedObject, ...] = ()  # captioned objects other than simple solids
    foreground: tuple[int, ...] = ()  # instances of the foreground layer
    place: str = "in a room"

    @property
    def objects(self) -> dict[int, Solid]:
        """The first solid of every object, by instance."""
        found: dict[int, Solid] = {}
        for solid in self.solids:
            if solid.instance != BACKGROUND:
                found.setdefault(solid.instance, solid)
        return found

    @cached_property
    def opening(self) -> "Moment":
        """The first instant."""
        return self.at(0.0)

    def at(self, time_s: float) -> "Moment":
        """The scene `time_s` seconds after the first frame."""
        return Moment(self, self.camera.view(time_s), tuple(solid.path.pose(time_s) for solid in self.solids), time_s)

    @property
    def matt(self) -> bool:
        """Whether no material has gloss, so that the picture is albedo times irradiance."""
        return all(not solid.material.gloss for solid in self.solids)

    @cached_property
    def rear(self) -> "Scene":
        """The scene without its foreground."""
        front = set(self.foreground)
        return replace(
            self,
            solids=tuple(solid for solid in self.solids if solid.instance not in front),
            bodies=tuple(body for body in self.bodies if body.instance not in front),
            captioned=tuple(
                captioned_object for captioned_object in self.captioned if captioned_object.instance not in front
            ),
            foreground=(),
        )


@dataclass(frozen=True, eq=False)
class Moment:
    """A scene at one instant: poses of the camera and of every solid."""

    scene: Scene
    view: View
    poses: tuple[Pose, ...]
    time_s: float = 0.0

    @cached_property
    def placements(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Per solid: rotation float64 [3, 3] and translation [3], `camera = rotation @ object + translation`."""
        view = self.view
        return tuple(
            (view.rotation @ pose.rotation, view.rotation @ (pose.position_m - view.eye_m)) for pose in self.poses
        )

"""What there is: solids with their materials and paths, lights, and the camera's path.

A scene is a value of plain frozen dataclasses: it pickles, compares and prints. `Scene.at` places everything at one
instant. A body of several parts is several solids of one `instance`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from openuni.world.camera import CameraPath, View
from openuni.world.pose import Path, Pose, Vector
from openuni.world.shapes import Shape

BACKGROUND = 0  # instance of walls and floor; objects are 1, 2, ...

Pattern = Literal["checkered", "striped", "spotted", "marbled", "mottled"]

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
}


@dataclass(frozen=True)
class Material:
    """A surface: two colours (names of `COLOURS`) mixed by a pattern that is fixed to the solid.

    `colour` is the one the caption names. `tile_m` is the size of one repeat of the pattern; `gloss` is the strength
    of the highlight (0 is matt). `seed` chooses one of a few grains.
    """

    colour: str
    second: str
    pattern: Pattern
    tile_m: float = 0.7
    gloss: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Light:
    """A small lamp that shines evenly all around: irradiance is `power / distance^2` where it falls straight down."""

    position_m: Vector
    power: float


@dataclass(frozen=True)
class Solid:
    """One convex solid."""

    shape: Shape
    material: Material
    path: Path
    instance: int  # BACKGROUND, or the number of the object it belongs to


@dataclass(frozen=True)
class Scene:
    """Everything that is seen.

    Walls bound a convex room with everything else inside it: they close off every view, so that depth is finite
    everywhere, and hide or shade nothing.
    """

    solids: tuple[Solid, ...]
    lights: tuple[Light, ...]
    ambient: float  # irradiance that reaches every surface from everywhere
    camera: CameraPath

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
        return Moment(self, self.camera.view(time_s), tuple(solid.path.pose(time_s) for solid in self.solids))


@dataclass(frozen=True, eq=False)
class Moment:
    """A scene at one instant: where the camera and every solid are."""

    scene: Scene
    view: View
    poses: tuple[Pose, ...]

    @cached_property
    def placements(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Per solid: rotation float64 [3, 3] and shift [3], `camera = rotation @ object + shift`."""
        view = self.view
        return tuple(
            (view.rotation @ pose.rotation, view.rotation @ (pose.position_m - view.eye_m)) for pose in self.poses
        )

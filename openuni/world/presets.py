"""Presets: kinds of random scenes. A seed and a preset determine one scene."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from openuni.manifests.errors import OpenUniError, unknown_name
from openuni.world.figures.people import INSTANTS_PER_S, draw_people
from openuni.world.placement import INSTANTS, Watch
from openuni.world.places import Environment, draw_room, draw_yard
from openuni.world.rendering.camera import Camera, CameraPath, HandheldCamera, Lens
from openuni.world.rendering.pose import Vector
from openuni.world.rendering.shading import render
from openuni.world.sample import Surroundings, draw_objects, solids_scene
from openuni.world.scene import Scene

ATTEMPTS = 100  # attempts to draw a scene
CAMERA_ROOM_M = 0.4  # maximum distance of a camera from the clear space
METER_PX = 48  # image width for exposure metering
GREY, BRIGHT = 0.28, 0.95  # targets in linear light: mean, and 95th percentile
GEOMETRY = ("depth", "flow", "normal", "segmentation")
LIGHT = ("albedo", "irradiance")
PEOPLE = ("densepose", "skeleton")
LAYERS = ("alpha", "foreground", "background")


@dataclass(frozen=True)
class Preset:
    """A kind of scene: its description, the function that draws it, and its ground truth."""

    doc: str
    draw: Callable[[np.random.Generator, float], Scene | None]  # None: no valid placement, draw again
    modalities: tuple[str, ...]  # besides rgb, all as exact ground truth


def find_preset(name: str) -> Preset:
    """The preset of that name; raises `OpenUniError` if it does not exist."""
    if name not in PRESETS:
        raise OpenUniError(unknown_name("world preset", name, PRESETS))
    return PRESETS[name]


def random_scene(seed: int, duration_s: float, preset: str = "solids") -> Scene:
    """The scene of a seed. `duration_s` limits speeds, so that everything stays in place and in view."""
    kind = find_preset(preset)
    rng = np.random.default_rng([seed, *preset.encode()])
    for _ in range(ATTEMPTS):
        scene = kind.draw(rng, duration_s)
        if scene is not None:
            return scene
    raise OpenUniError(
        f"world: no valid scene found for seed {seed}, preset {preset}, {duration_s:.2f} s. Use another seed."
    )


def interior(rng: np.random.Generator, duration_s: float) -> Scene | None:
    """A furnished room with a handheld camera."""
    place = draw_room(rng, crowded=True)
    half = place.clear_m
    eyes = random_walk(rng, duration_s, (-half[0], half[0]), (1.15, 1.75), (0.25 * half[2], half[2]), 0.55)
    targets = random_walk(rng, duration_s, (-half[0] - 1.0, half[0] + 1.0), (0.35, 1.05), (-half[2] - 1.0, -1.0), 0.7)
    camera = HandheldCamera(eyes, targets, 1.0, rng.uniform(54.0, 80.0))
    scene = Scene(place.solids, place.lights, place.ambient, camera, captioned=place.captioned, place=place.description)
    return with_exposure(scene)


def random_walk(
    rng: np.random.Generator,
    duration_s: float,
    across: tuple[float, float],
    up: tuple[float, float],
    along: tuple[float, float],
    step_m: float,
) -> tuple[Vector, ...]:
    """Knots, one second apart, of a smooth random walk within a box (ranges of x, y, z)."""
    low, high = np.array([across, up, along]).T
    place, pace = rng.uniform(low, high), rng.normal(size=3)
    knots: list[Vector] = []
    for _ in range(math.ceil(duration_s) + 4):
        knots.append((float(place[0]), float(place[1]), float(place[2])))
        pace = 0.75 * pace + 0.66 * rng.normal(size=3)
        place = np.clip(place + step_m * pace * (0.6, 0.2, 0.6), low, high)
    return tuple(knots)


def with_people(counts: tuple[int, ...], solids: tuple[int, ...] = (0,)) -> Callable[..., Scene | None]:
    """Scenes with random numbers of persons and solids from the given ones, in a room or a yard."""

    def draw(rng: np.random.Generator, duration_s: float) -> Scene | None:
        place = draw_yard(rng) if rng.random() < 0.45 else draw_room(rng, crowded=False)
        people, others = int(rng.choice(counts)), int(rng.choice(solids))
        scene = populated(rng, duration_s, place, people, others)
        return None if scene is None else with_exposure(scene)

    return draw


def populated(
    rng: np.random.Generator, duration_s: float, place: Environment, people: int, others: int
) -> Scene | None:
    """A place with people and solids in view of a camera; None if they do not fit."""
    camera = draw_watching_camera(rng, duration_s, place)
    first = len(place.captioned) + 1
    watch = Watch.of(camera, duration_s, max(INSTANTS, math.ceil(duration_s * INSTANTS_PER_S)))
    farthest = np.abs([view.eye_m for view in watch.views]).max(axis=0)
    limit = np.array(place.clear_m) + np.array([CAMERA_ROOM_M, 0.0, CAMERA_ROOM_M])
    walkers = draw_people(rng, people, watch, place.clear_m, first)
    if walkers is None or (farthest > limit).any():
        return None
    tracks = tuple(walker.track for walker in walkers)
    around = Surroundings(place.clear_m, tracks, first + people, matt=True)
    objects = draw_objects(rng, others, watch, around) if others else []
    if others and not objects:
        return None
    return Scene(
        (*place.solids, *(solid for walker in walkers for solid in walker.solids), *objects),
        place.lights,
        place.ambient,
        camera,
        bodies=tuple(walker.body for walker in walkers),
        captioned=(*place.captioned, *(walker.captioned for walker in walkers)),
        place=place.description,
    )


def draw_watching_camera(rng: np.random.Generator, duration_s: float, place: Environment) -> Camera:
    """A camera that looks at people from one end: static, on a path, or handheld."""
    half = place.clear_m
    eye: Vector = (rng.uniform(-0.6, 0.6) * half[0], rng.uniform(0.9, 1.9), rng.uniform(0.85, 1.0) * half[2])
    target: Vector = (rng.uniform(-0.3, 0.3), rng.uniform(0.75, 1.05), rng.uniform(-1.0, 0.0))
    view_deg = rng.uniform(40.0, 66.0)
    choice, sign = rng.integers(6), float(rng.choice([-1.0, 1.0]))
    turn = sign * min(rng.uniform(0.06, 0.25), 0.3 / duration_s)
    travel = sign * min(rng.uniform(0.2, 0.5), 0.5 / duration_s)
    if choice == 0:
        steps = math.ceil(duration_s) + 4
        around = [np.array(point) + rng.normal(size=(steps, 3)) * (0.16, 0.05, 0.1) for point in (eye, target)]
        eyes, targets = (tuple((x, y, z) for x, y, z in knots.tolist()) for knots in around)
        return HandheldCamera(eyes, targets, 1.0, view_deg)
    if choice == 1:
        return CameraPath("pan", eye, target, turn_rad_per_s=turn, view_deg=view_deg)
    if choice == 2:
        return CameraPath("orbit", eye, target, turn_rad_per_s=turn, view_deg=view_deg)
    if choice == 3:
        return CameraPath("dolly", eye, target, travel_m_per_s=travel, view_deg=view_deg)
    return CameraPath("static", eye, target, view_deg=view_deg)


def layered(rng: np.random.Generator, duration_s: float) -> Scene | None:
    """One person or solid in front of a place: foreground and background layers."""
    person = bool(rng.random() < 0.6)
    place = draw_yard(rng) if rng.random() < 0.4 else draw_room(rng, crowded=False)
    scene = populated(rng, duration_s, place, int(person), int(not person))
    if scene is None:
        return None
    return with_exposure(replace(scene, foreground=(len(place.captioned) + 1,)))


def with_exposure(scene: Scene) -> Scene:
    """The scene with automatic exposure for its first frame, rounded to 3 digits."""
    lens = Lens.with_view(METER_PX * 3 // 4, METER_PX, scene.camera.view_deg)
    light = render(scene.opening, lens, samples=1, intrinsics=False).light.max(axis=0)
    exposure = min(GREY / float(light.mean()), BRIGHT / float(np.quantile(light, 0.95)))
    return replace(scene, exposure=float(f"{exposure:.3g}"))


PRESETS = {
    "solids": Preset(
        "one to three moving solids in a lit room; the camera moves in about half of the clips",
        lambda rng, duration_s: solids_scene(rng, duration_s),
        GEOMETRY,
    ),
    "still": Preset(
        "nothing moves, neither solids nor camera",
        lambda rng, duration_s: solids_scene(rng, duration_s, moves=False),
        GEOMETRY,
    ),
    "dark": Preset(
        "as solids, in low light: the mean luma is below 0.05",
        lambda rng, duration_s: solids_scene(rng, duration_s, light=0.006),
        GEOMETRY,
    ),
    "person": Preset("one walking person, in a room or in a yard", with_people((1,)), (*GEOMETRY, *LIGHT, *PEOPLE)),
    "persons": Preset("two or three walking persons", with_people((2, 3)), (*GEOMETRY, *LIGHT, *PEOPLE)),
    "scenes": Preset(
        "persons and moving solids, indoors and outdoors",
        with_people((0, 1, 2), (1, 2)),
        (*GEOMETRY, *LIGHT, *PEOPLE),
    ),
    "interiors": Preset(
        "a furnished room without people, several lights, a handheld camera", interior, (*GEOMETRY, *LIGHT)
    ),
    "layers": Preset(
        "one person or solid as foreground layer with soft edges, in front of a place",
        layered,
        (*GEOMETRY, *PEOPLE, *LAYERS),
    ),
}

"""Captions that are true of a scene: colour, pattern and shape of every object, its action, and the camera motion."""

import math
from collections import Counter

import numpy as np

from openuni.world.figures.gait import Walk
from openuni.world.furniture import article
from openuni.world.rendering.camera import Camera, CameraPath, View
from openuni.world.rendering.pose import Motion
from openuni.world.scene import CaptionedObject, Scene, Solid

SHARP_RAD_PER_M = 0.5  # paths with more curvature have no single direction


def caption(scene: Scene, seen: frozenset[int] | None = None) -> str:
    """The full caption in English, the same for equal scenes. Directions are those of the first view.

    `seen`: the visible objects; None: all. Scenes of bare solids get one sentence.
    """
    view = scene.camera.view(0.0)
    if not scene.captioned:
        phrases = [f"{subject(solid)} {action(solid, view)}" for _, solid in sorted(scene.objects.items())]
        moving = camera_phrase(scene.camera)
        return sentence(f"{listed(phrases)} {moving}" if len(phrases) == 1 else f"{listed(phrases)}, {moving}")
    movers = moving_phrases(scene, seen, view, brief=False)
    still = still_phrases(scene, standing(scene, seen), view)
    opening = f"{scene.place}, {listed(movers)}" if movers else f"a view {scene.place} with {listed(still)}"
    rest = (
        [sentence(f"around {'it' if len(movers) == 1 else 'them'} there {be(still)} {listed(still)}")]
        if movers and still
        else []
    )
    sentences = [sentence(opening), *rest, sentence(f"the camera {camera_action(scene.camera)}")]
    return " ".join(sentences)


def brief_caption(scene: Scene, seen: frozenset[int] | None = None) -> str:
    """The main objects only, in one sentence."""
    if not scene.captioned:
        view = scene.camera.view(0.0)
        return sentence(listed([f"{short(solid)} {action(solid, view)}" for _, solid in sorted(scene.objects.items())]))
    movers = moving_phrases(scene, seen, scene.camera.view(0.0), brief=True)
    if movers:
        return sentence(f"{listed(movers)} {scene.place}")
    words = scene.place.removeprefix("in ")
    nouns = Counter(item.brief for item in standing(scene, seen))
    return sentence(f"{words} with {listed([counted(noun, count) for noun, count in nouns.items()])}")


def sentence(words: str) -> str:
    """Capitalize and add a full stop."""
    return f"{words[0].upper()}{words[1:]}."


def listed(phrases: list[str]) -> str:
    """ "a, b and c"."""
    if not phrases:
        return "nothing else"
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def counted(noun: str, count: int) -> str:
    """ "a sofa" or "two sofas"."""
    numbers = ("no", "a", "two", "three", "four", "five")
    return noun if count == 1 else f"{numbers[count] if count < len(numbers) else count} {noun.split(' ', 1)[1]}s"


def be(phrases: list[str]) -> str:
    """ "is" for one thing, else "are"."""
    return "is" if len(phrases) == 1 and phrases[0].startswith("a") else "are"


def still_phrases(scene: Scene, captioned: list[CaptionedObject], view: View) -> list[str]:
    """Phrases of static objects with their positions; identical ones are counted."""
    alike = Counter(item.detailed for item in captioned)
    several = {item.detailed: counted(item.brief, alike[item.detailed]) for item in captioned}
    single = {item.detailed: f"{item.detailed}{side(scene, item, view)}" for item in captioned}
    return [single[words] if count == 1 else several[words] for words, count in alike.items()]


def standing(scene: Scene, seen: frozenset[int] | None) -> list[CaptionedObject]:
    """Visible captioned objects that are not persons."""
    persons = {body.instance for body in scene.bodies}
    return [
        item for item in scene.captioned if item.instance not in persons and (seen is None or item.instance in seen)
    ]


def moving_phrases(scene: Scene, seen: frozenset[int] | None, view: View, *, brief: bool) -> list[str]:
    """Phrases of visible persons and solids with their actions."""
    sentences = {item.instance: item for item in scene.captioned}
    phrases = []
    for body in scene.bodies:
        if seen is None or body.instance in seen:
            item = sentences[body.instance]
            phrases.append(f"{item.brief if brief else item.detailed} {walking(body.walk, view)}")
    for instance, solid in sorted(scene.objects.items()):
        if instance not in sentences and (seen is None or instance in seen):
            phrases.append(f"{short(solid) if brief else subject(solid)} {action(solid, view)}")
    return phrases


def walking(walk: Walk, view: View) -> str:
    """Such as "walks to the left"."""
    if not walk.speed_m_per_s:
        return "stands still"
    if abs(walk.turn_rad_per_m) > SHARP_RAD_PER_M:
        return f"walks in a circle to the {'left' if walk.turn_rad_per_m > 0 else 'right'}"
    ahead = (math.sin(walk.heading_rad), 0.0, math.cos(walk.heading_rad))
    return f"walks {heading(view.rotation @ np.array(ahead))}"


def side(scene: Scene, item: CaptionedObject, view: View) -> str:
    """Position of an object in the first view, such as " on the left"; empty if it is not in front of the camera."""
    middle = np.mean(
        [solid.path.pose(0.0).position_m for solid in scene.solids if solid.instance == item.instance], axis=0
    )
    x, _, z = view.to_camera(middle[:, None])[:, 0].tolist()
    half = math.tan(math.radians(scene.camera.view_deg) / 2.0)
    if z < 0.3 or abs(x) > 1.2 * half * z:
        return ""
    return " in the middle" if abs(x) < 0.25 * half * z else f" on the {'right' if x > 0 else 'left'}"


def short(solid: Solid) -> str:
    """Such as "a red sphere"."""
    colour = solid.material.colour
    return f"{article(colour)} {colour} {solid.shape.name}"


def camera_action(camera: Camera) -> str:
    """Such as "pans right"."""
    if not isinstance(camera, CameraPath):
        return "is carried by hand"
    return "is static" if camera.kind == "static" else camera_phrase(camera).removeprefix("while the camera ")


def subject(solid: Solid) -> str:
    """Such as "a red checkered sphere"."""
    words = f"{solid.material.colour} {solid.material.pattern} {solid.shape.name}"
    return f"{article(words)} {words}"


def action(solid: Solid, view: View) -> str:
    """Such as "rolls to the left"."""
    path = solid.path
    if not isinstance(path, Motion):
        return "moves"
    where = heading(view.rotation @ np.array(path.velocity_m_per_s))
    return {
        "rests": "stands still",
        "rolls": f"rolls {where}",
        "slides": f"slides {where}",
        "spins": "spins in place",
        "bobs": "bobs up and down",
        "tumbles": f"tumbles through the air {where}",
    }[path.kind]


def heading(velocity: np.ndarray) -> str:
    """The main direction of a velocity [3] in camera axes, in words."""
    if abs(velocity[0]) >= abs(velocity[2]):
        return "to the right" if velocity[0] > 0 else "to the left"
    return "away from the camera" if velocity[2] > 0 else "towards the camera"


def camera_phrase(camera: Camera) -> str:
    """Such as "while the camera pans right"."""
    if not isinstance(camera, CameraPath):
        return "while the camera is carried by hand"
    side = "right" if camera.turn_rad_per_s > 0 else "left"
    return {
        "static": "in front of a static camera",
        "pan": f"while the camera pans {side}",
        "orbit": f"while the camera orbits to the {side}",
        "dolly": f"while the camera moves {'forward' if camera.travel_m_per_s > 0 else 'backward'}",
    }[camera.kind]

"""Captions that are true of a scene: colour, pattern and shape of every object, what it does, what the camera does."""

import numpy as np

from openuni.world.camera import CameraPath, View
from openuni.world.pose import Motion
from openuni.world.scene import Scene, Solid


def caption(scene: Scene) -> str:
    """One English sentence, the same for equal scenes. Directions are those of the first view."""
    view = scene.camera.view(0.0)
    phrases = [f"{subject(solid)} {action(solid, view)}" for _, solid in sorted(scene.objects.items())]
    listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    moving = camera_phrase(scene.camera)
    sentence = f"{listed} {moving}" if len(phrases) == 1 else f"{listed}, {moving}"
    return f"{sentence[0].upper()}{sentence[1:]}."


def subject(solid: Solid) -> str:
    """Such as "a red checkered sphere"."""
    words = f"{solid.material.colour} {solid.material.pattern} {solid.shape.name}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


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


def camera_phrase(camera: CameraPath) -> str:
    """Such as "while the camera pans right"."""
    side = "right" if camera.turn_rad_per_s > 0 else "left"
    return {
        "static": "in front of a static camera",
        "pan": f"while the camera pans {side}",
        "orbit": f"while the camera orbits to the {side}",
        "dolly": f"while the camera moves {'forward' if camera.travel_m_per_s > 0 else 'backward'}",
    }[camera.kind]

"""Stand-ins for a perfect network, in tests of what is made of a network's masks: they answer with the ground truth."""

from dataclasses import dataclass

import numpy as np
import torch

from openuni.annotators.sam import Sam
from openuni.world import render_clip
from openuni.world.rendering.camera import CameraPath, Lens
from openuni.world.rendering.pose import Motion
from openuni.world.rendering.shapes import Box, Sphere
from openuni.world.sample import draw_room
from openuni.world.scene import Light, Material, Scene, Solid


class Truth:
    """A promptable network that knows the instances of every frame: uint16 [T, H, W]."""

    def __init__(self, frames, labels, missing=()):
        self.frames, self.labels, self.missing = frames, labels, set(missing)

    device = "cpu"

    def embed(self, images):
        return images

    def use(self, image):
        self.index = next(index for index, frame in enumerate(self.frames) if np.array_equal(frame, image))

    def predict_points(self, points_px):
        labels = self.labels[self.index]
        columns, rows = points_px.numpy().astype(int).T
        asked = labels[rows, columns]
        known = (asked > 0) & ~np.array([(self.index, number) in self.missing for number in asked], bool)
        masks = (labels == asked[:, None, None]) & known[:, None, None]
        logits = torch.from_numpy(np.where(masks, 9.0, -9.0).astype(np.float32))
        return logits[:, None], torch.from_numpy(np.where(known, 0.95, 0.0).astype(np.float32))[:, None]

    def upscale(self, logits):
        return logits


@dataclass(frozen=True)
class TrueSam(Sam):
    """`sam` whose model is a `Truth`: all of it but the network."""

    def promptable(self, model):
        return model


def hidden_for_a_while(seconds=2.0, fps=16.0, height_px=120, width_px=180):
    """A ball that rolls behind a box, out of sight for about half a second, and comes out on the other side.

    Instance 1 is the box, 2 the ball, 3 a ball that rests.
    """
    count = round(seconds * fps)
    speed = 2.4 / seconds
    solids = (
        Solid(Box((0.5, 0.6, 0.1)), Material("blue", "white", "checkered", 0.3), Motion("rests", (0.0, 0.6, 0.9)), 1),
        Solid(
            Sphere(0.25),
            Material("red", "yellow", "spotted", 0.3),
            Motion("slides", (-1.2, 0.25, 0.0), (speed, 0.0, 0.0)),
            2,
        ),
        Solid(Sphere(0.2), Material("green", "white", "striped", 0.2), Motion("rests", (1.0, 0.2, 1.2)), 3),
    )
    camera = CameraPath("static", (0.0, 0.7, 3.4), (0.0, 0.5, 0.0))
    scene = Scene((*draw_room(np.random.default_rng(0)), *solids), (Light((0.5, 2.6, 2.0), 5.5),), 0.4, camera)
    lens = Lens.with_view(height_px, width_px, camera.view_deg)
    return render_clip(scene, count + 1, fps, lens, ("segmentation",))


def agreement(found, truth, number):
    """Of the pixels of one true instance: the id that most have, the share that has it, the share that has none.

    `found`, `truth`: uint16 [T, H, W].
    """
    counts = np.bincount(found[truth == number])
    best = int(counts[1:].argmax()) + 1 if len(counts) > 1 else 0
    return best, counts[best] / counts.sum(), counts[0] / counts.sum()

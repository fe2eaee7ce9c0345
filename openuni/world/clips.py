"""One clip of the world: frames, every modality as exact ground truth, and the caption."""

from dataclasses import dataclass

import numpy as np

from manifests.errors import OpenUniError
from manifests.modality import Modality
from openuni.world import truth
from openuni.world.camera import Lens
from openuni.world.caption import caption
from openuni.world.sample import random_scene
from openuni.world.scene import Scene
from openuni.world.shading import frame

MIN_SIDE_PX = 16


@dataclass(frozen=True, eq=False)
class WorldClip:
    """A rendered clip. `frames`: uint8 [T, H, W, 3], sRGB. `modalities`: ground truth by name, at the frames' size.

    `scene` and `lens` are what was rendered: together they give every pose and projection again.
    `depth` is camera-space z in metres; `flow` is forward, in pixels per frame, with occlusions marked; the
    `segmentation` has 0 for the room and 1.. for the objects.
    """

    frames: np.ndarray
    fps: float
    caption: str
    modalities: dict[str, Modality]
    scene: Scene
    lens: Lens


def make_clip(
    seed: int,
    *,
    frames: int = 21,
    height_px: int = 128,
    width_px: int = 128,
    fps: float = 16.0,
    preset: str = "solids",
) -> WorldClip:
    """The clip of that seed: equal arguments give equal bytes. The presets are in `openuni.world.sample.PRESETS`.

    Raises `OpenUniError` for an unknown preset and for sizes that cannot be rendered.
    """
    if seed < 0 or frames < 1 or min(height_px, width_px) < MIN_SIDE_PX or not fps > 0:
        given = f"seed = {seed}, frames = {frames}, height_px = {height_px}, width_px = {width_px}, fps = {fps}"
        allowed = f"seeds from 0, at least 1 frame and {MIN_SIDE_PX} px a side, fps above 0"
        raise OpenUniError(f"world: {given}. Allowed: {allowed}.")
    scene = random_scene(seed, frames / fps, preset)
    return render_clip(scene, frames, fps, Lens.with_view(height_px, width_px, scene.camera.view_deg))


def render_clip(scene: Scene, frames: int, fps: float, lens: Lens) -> WorldClip:
    """Any scene at `frames` instants, `fps` per second from time zero."""
    from manifests.modalities.depth import Depth
    from manifests.modalities.flow import Flow
    from manifests.modalities.rgb import RGB
    from manifests.modalities.segmentation import Segmentation

    arrays = render_arrays(scene, frames, fps, lens)
    modalities: dict[str, Modality] = {
        "rgb": RGB(arrays["rgb"]),
        "depth": Depth(arrays["depth"], unit="metres"),
        "flow": Flow(arrays["flow"], valid=arrays["flow_valid"]),
        "segmentation": Segmentation(arrays["segmentation"]),
    }
    return WorldClip(arrays["rgb"], fps, caption(scene), modalities, scene, lens)


def render_arrays(scene: Scene, frames: int, fps: float, lens: Lens) -> dict[str, np.ndarray]:
    """The bare arrays of a clip, by name.

    `rgb` uint8 [T, H, W, 3]; `depth` float32 [T, H, W, 1], metres; `flow` float32 [T, H, W, 2], pixels; `flow_valid`
    bool [T, H, W, 1]; `segmentation` uint16 [T, H, W, 1]. The last frame repeats the flow of the one before it; the
    flow of a single frame is zero.
    """
    size = (frames, lens.height_px, lens.width_px)
    arrays: dict[str, np.ndarray] = {
        "rgb": np.empty((*size, 3), np.uint8),
        "depth": np.empty((*size, 1), np.float32),
        "flow": np.zeros((*size, 2), np.float32),
        "flow_valid": np.ones((*size, 1), bool),
        "segmentation": np.empty((*size, 1), np.uint16),
    }
    moments = [scene.at(index / fps) for index in range(frames)]
    for index, moment in enumerate(moments):
        hits = truth.look(moment, lens)
        arrays["rgb"][index] = frame(moment, lens)
        arrays["depth"][index, ..., 0] = hits.depth_m
        arrays["segmentation"][index, ..., 0] = truth.instances(moment, hits)
        if index + 1 < frames:
            arrays["flow"][index], arrays["flow_valid"][index, ..., 0] = truth.flow(
                moment, moments[index + 1], lens, hits
            )
    if frames > 1:
        arrays["flow"][-1], arrays["flow_valid"][-1] = arrays["flow"][-2], arrays["flow_valid"][-2]
    return arrays

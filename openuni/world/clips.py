"""One clip of the world: frames, every modality as exact ground truth, and the captions."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from openuni.manifests.contracts.modality import Modality, find_modality
from openuni.manifests.errors import OpenUniError, did_you_mean
from openuni.world import truth
from openuni.world.caption import brief_caption, caption
from openuni.world.presets import GEOMETRY, LAYERS, LIGHT, PEOPLE, find_preset, random_scene
from openuni.world.rendering.camera import Lens
from openuni.world.rendering.layers import layers
from openuni.world.rendering.rays import Hits
from openuni.world.rendering.shading import render, to_srgb
from openuni.world.scene import Moment, Scene

MIN_SIDE_PX = 16
MIN_VISIBLE_SHARE = 0.002  # of a frame's pixels, for an object to be worth a word


@dataclass(frozen=True, eq=False)
class WorldClip:
    """A rendered clip. `frames`: uint8 [T, H, W, 3], sRGB. `modalities`: ground truth by name, at the frames' size.

    `scene` and `lens` are what was rendered: together they give every pose and projection again.
    `depth` is camera-space z in metres; `flow` is forward, in pixels per frame, with occlusions marked; the
    `segmentation` has 0 for walls, floor and sky, and 1.. for the objects. `caption` tells all, `brief` the main
    things.
    """

    frames: np.ndarray
    fps: float
    caption: str
    brief: str
    modalities: dict[str, Modality]
    scene: Scene
    lens: Lens

    @property
    def exposure(self) -> float:
        """What light was multiplied by before the sRGB transfer; irradiance has it in it already."""
        return self.scene.exposure

    @cached_property
    def backward_flow(self) -> Modality:
        """A `Flow` from every frame to the one before, with the occlusions of that direction; computed when asked for.

        The first frame repeats the flow of the second; that of a single frame is zero.
        """
        count = len(self.frames)
        moments = [self.scene.at(index / self.fps) for index in range(count)]
        flow, valid = empty_flow(count, self.lens)
        for index in range(1, count):
            hits = truth.look(moments[index], self.lens)
            way = truth.flow(moments[index], moments[index - 1], self.lens, hits)
            flow[index], valid[index, ..., 0] = way
        if count > 1:
            flow[0], valid[0] = flow[1], valid[1]
        return make_modality("flow", flow, valid=valid)


def make_clip(
    seed: int,
    *,
    frames: int = 21,
    height_px: int = 128,
    width_px: int = 128,
    fps: float = 16.0,
    preset: str = "solids",
    modalities: Collection[str] | None = None,
) -> WorldClip:
    """The clip of that seed: equal arguments give equal bytes. The presets are in `openuni.world.presets.PRESETS`.

    `modalities`: which ones to make, besides `rgb`; None for all that the preset has. Raises `OpenUniError` for an
    unknown preset, modalities that it does not have, and sizes that cannot be rendered.
    """
    if seed < 0 or frames < 1 or min(height_px, width_px) < MIN_SIDE_PX or not fps > 0:
        given = f"seed = {seed}, frames = {frames}, height_px = {height_px}, width_px = {width_px}, fps = {fps}"
        allowed = f"seeds from 0, at least 1 frame and {MIN_SIDE_PX} px a side, fps above 0"
        raise OpenUniError(f"world: {given}. Allowed: {allowed}.")
    wanted = preset_modalities(preset, modalities)
    scene = random_scene(seed, frames / fps, preset)
    return render_clip(scene, frames, fps, Lens.with_view(height_px, width_px, scene.camera.view_deg), wanted)


def preset_modalities(preset: str, wanted: Collection[str] | None = None) -> tuple[str, ...]:
    """Those of the preset that are wanted (None: all), sorted, `rgb` left out; `OpenUniError` for any it lacks."""
    has = find_preset(preset).modalities
    for name in wanted or ():
        if name not in (*has, "rgb"):
            near = did_you_mean(name, has)
            raise OpenUniError(
                f'world: preset "{preset}" has no ground truth "{name}".{near} It has: {", ".join(sorted(has))}.'
            )
    return tuple(sorted(has if wanted is None else set(wanted) - {"rgb"}))


def render_clip(
    scene: Scene, frames: int, fps: float, lens: Lens, modalities: Collection[str] | None = None
) -> WorldClip:
    """Any scene at `frames` instants, `fps` per second from time zero. `modalities`: None for all that it has.

    Albedo and irradiance need a scene without gloss and foreground, alpha and layers one with a foreground.
    """
    arrays = render_arrays(scene, frames, fps, lens, scene_modalities(scene) if modalities is None else modalities)
    seen = visible(arrays.pop("segmentation_all"))
    facts: dict[str, dict[str, Any]] = {
        "depth": {"unit": "metres"},
        "flow": {"valid": arrays.pop("flow_valid", None)},
        "skeleton": {"height_px": lens.height_px, "width_px": lens.width_px},
    }
    known = {name: make_modality(name, array, **facts.get(name, {})) for name, array in arrays.items()}
    return WorldClip(arrays["rgb"], fps, caption(scene, seen), brief_caption(scene, seen), known, scene, lens)


def scene_modalities(scene: Scene) -> tuple[str, ...]:
    """What is true of a scene."""
    light = LIGHT if scene.matt and not scene.foreground else ()
    return (*GEOMETRY, *light, *(PEOPLE if scene.bodies else ()), *(LAYERS if scene.foreground else ()))


def make_modality(name: str, array: np.ndarray, **facts: Any) -> Modality:
    """The modality of that name."""
    return find_modality(name)(array, **facts)


def visible(segmentation: np.ndarray) -> frozenset[int]:
    """Instances that cover a fair part of one frame at least."""
    least = MIN_VISIBLE_SHARE * segmentation[0].size
    return frozenset(
        instance for frame in segmentation for instance in np.flatnonzero(np.bincount(frame.ravel()) >= least).tolist()
    )


AtPixels = Callable[[Moment, Lens, Hits], np.ndarray]
AT_PIXELS: dict[str, AtPixels] = {  # one frame of each, from what the rays through the pixels' centres meet
    "depth": lambda moment, lens, hits: hits.depth_m[..., None].astype(np.float32),
    "normal": truth.normal,
    "densepose": truth.densepose,
    "skeleton": lambda moment, lens, hits: truth.skeleton(moment, lens),
}


def render_arrays(
    scene: Scene, frames: int, fps: float, lens: Lens, wanted: Collection[str] = GEOMETRY
) -> dict[str, np.ndarray]:
    """The bare arrays of a clip, by name: `rgb`, those wanted, `flow_valid` with `flow`, and `segmentation_all`.

    Shapes and types are those of the modalities; `flow_valid` is bool [T, H, W, 1], and `segmentation_all` the ids of
    all frames, wanted or not. The last frame repeats the flow of the one before it; the flow of a single frame is zero.
    """
    moments = [scene.at(index / fps) for index in range(frames)]
    kept: dict[str, list[np.ndarray]] = {}
    flow, valid = empty_flow(frames if "flow" in wanted else 0, lens)
    for index, moment in enumerate(moments):
        hits = truth.look(moment, lens)
        one = picture(moment, lens, wanted) | {"segmentation_all": truth.instances(moment, hits)[..., None]}
        one |= {name: AT_PIXELS[name](moment, lens, hits) for name in wanted if name in AT_PIXELS}
        for name, array in one.items():
            kept.setdefault(name, []).append(array)
        if "flow" in wanted and index + 1 < frames:
            flow[index], valid[index, ..., 0] = truth.flow(moment, moments[index + 1], lens, hits)
    arrays = {name: np.stack(parts) for name, parts in kept.items()}
    if "flow" in wanted:
        if frames > 1:
            flow[-1], valid[-1] = flow[-2], valid[-2]
        arrays |= {"flow": flow, "flow_valid": valid}
    if "segmentation" in wanted:
        arrays["segmentation"] = arrays["segmentation_all"]
    return arrays


def picture(moment: Moment, lens: Lens, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """One frame of `rgb`, and of those wanted that belong to light and layers."""
    if moment.scene.foreground:
        made_of = layers(moment, lens)
        return {"rgb": made_of.rgb} | {name: getattr(made_of, name) for name in LAYERS if name in wanted}
    shown = render(moment, lens, intrinsics=any(name in wanted for name in LIGHT))
    parts = {name: np.moveaxis(getattr(shown, name), 0, -1) for name in LIGHT if name in wanted}
    return {"rgb": to_srgb(shown.light)} | parts


def empty_flow(frames: int, lens: Lens) -> tuple[np.ndarray, np.ndarray]:
    """Zero flow float32 [T, H, W, 2], and true bool [T, H, W, 1]."""
    size = (frames, lens.height_px, lens.width_px)
    return np.zeros((*size, 2), np.float32), np.ones((*size, 1), bool)

"""One clip of the world: frames, exact ground truth for every modality, and captions."""

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
MIN_VISIBLE_SHARE = 0.002  # minimum share of a frame for an object to be captioned


@dataclass(frozen=True, eq=False)
class WorldClip:
    """A rendered clip. `frames`: uint8 [T, H, W, 3], sRGB. `modalities`: ground truth by name, at the frames' size.

    `scene` and `lens` determine every pose and projection. `depth` is camera-space z in metres; `flow` is forward
    optical flow in pixels per frame, with occlusions marked; `segmentation` is 0 for walls, floor and sky, and 1.. for
    objects. `caption` is the full caption, `brief` the short one.
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
        """Factor on light before the sRGB transfer, already included in irradiance."""
        return self.scene.exposure

    @cached_property
    def backward_flow(self) -> Modality:
        """Optical flow (`Flow`) from every frame to the previous one, with its occlusions; computed on first access.

        The first frame repeats the flow of the second; that of a single frame is zero.
        """
        count = len(self.frames)
        moments = [self.scene.at(index / self.fps) for index in range(count)]
        flow, valid = empty_flow(count, self.lens)
        for index in range(1, count):
            hits = truth.first_hits(moments[index], self.lens)
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
    """Render the clip of a seed: equal arguments give equal bytes. Presets: `openuni.world.presets.PRESETS`.

    `modalities`: those to render besides `rgb`; None: all of the preset. Raises `OpenUniError` for an unknown preset,
    modalities that it does not have, and invalid sizes.
    """
    if seed < 0 or frames < 1 or min(height_px, width_px) < MIN_SIDE_PX or not fps > 0:
        given = f"seed = {seed}, frames = {frames}, height_px = {height_px}, width_px = {width_px}, fps = {fps}"
        allowed = f"seeds from 0, at least 1 frame and {MIN_SIDE_PX} px a side, fps above 0"
        raise OpenUniError(f"world: {given}. Allowed: {allowed}.")
    requested = preset_modalities(preset, modalities)
    scene = random_scene(seed, frames / fps, preset)
    return render_clip(scene, frames, fps, Lens.with_view(height_px, width_px, scene.camera.view_deg), requested)


def preset_modalities(preset: str, requested: Collection[str] | None = None) -> tuple[str, ...]:
    """The requested modalities of a preset (None: all), sorted, without `rgb`; `OpenUniError` for any that it lacks."""
    available = find_preset(preset).modalities
    for name in requested or ():
        if name not in (*available, "rgb"):
            near = did_you_mean(name, available)
            names = ", ".join(sorted(available))
            raise OpenUniError(f'world: preset "{preset}" has no ground truth "{name}".{near} Available: {names}.')
    return tuple(sorted(available if requested is None else set(requested) - {"rgb"}))


def render_clip(
    scene: Scene, frames: int, fps: float, lens: Lens, modalities: Collection[str] | None = None
) -> WorldClip:
    """Render any scene at `frames` instants, `fps` per second from time zero. `modalities`: None: all that it has.

    Albedo and irradiance require a scene without gloss and foreground; alpha and layers require one with a foreground.
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
    """The modalities that a scene has."""
    light = LIGHT if scene.matt and not scene.foreground else ()
    return (*GEOMETRY, *light, *(PEOPLE if scene.bodies else ()), *(LAYERS if scene.foreground else ()))


def make_modality(name: str, array: np.ndarray, **facts: Any) -> Modality:
    """The modality of that name."""
    return find_modality(name)(array, **facts)


def visible(segmentation: np.ndarray) -> frozenset[int]:
    """Instances that cover at least 0.2 % of at least one frame."""
    least = MIN_VISIBLE_SHARE * segmentation[0].size
    return frozenset(
        instance for frame in segmentation for instance in np.flatnonzero(np.bincount(frame.ravel()) >= least).tolist()
    )


AtPixels = Callable[[Moment, Lens, Hits], np.ndarray]
AT_PIXELS: dict[str, AtPixels] = {  # one frame of each, from the hits of the rays through the pixel centres
    "depth": lambda moment, lens, hits: hits.depth_m[..., None].astype(np.float32),
    "normal": truth.normal,
    "densepose": truth.densepose,
    "skeleton": lambda moment, lens, hits: truth.skeleton(moment, lens),
}


def render_arrays(
    scene: Scene, frames: int, fps: float, lens: Lens, requested: Collection[str] = GEOMETRY
) -> dict[str, np.ndarray]:
    """The arrays of a clip, by name: `rgb`, the requested ones, `flow_valid` with `flow`, and `segmentation_all`.

    Shapes and dtypes are those of the modalities; `flow_valid` is bool [T, H, W, 1]; `segmentation_all` has the ids of
    all frames, requested or not. The last frame repeats the flow of the previous one; the flow of a single frame is
    zero.
    """
    moments = [scene.at(index / fps) for index in range(frames)]
    kept: dict[str, list[np.ndarray]] = {}
    flow, valid = empty_flow(frames if "flow" in requested else 0, lens)
    for index, moment in enumerate(moments):
        hits = truth.first_hits(moment, lens)
        one = picture(moment, lens, requested) | {"segmentation_all": truth.instances(moment, hits)[..., None]}
        one |= {name: AT_PIXELS[name](moment, lens, hits) for name in requested if name in AT_PIXELS}
        for name, array in one.items():
            kept.setdefault(name, []).append(array)
        if "flow" in requested and index + 1 < frames:
            flow[index], valid[index, ..., 0] = truth.flow(moment, moments[index + 1], lens, hits)
    arrays = {name: np.stack(parts) for name, parts in kept.items()}
    if "flow" in requested:
        if frames > 1:
            flow[-1], valid[-1] = flow[-2], valid[-2]
        arrays |= {"flow": flow, "flow_valid": valid}
    if "segmentation" in requested:
        arrays["segmentation"] = arrays["segmentation_all"]
    return arrays


def picture(moment: Moment, lens: Lens, requested: Collection[str]) -> dict[str, np.ndarray]:
    """One frame of `rgb`, and of the requested light and layer modalities."""
    if moment.scene.foreground:
        made_of = layers(moment, lens)
        return {"rgb": made_of.rgb} | {name: getattr(made_of, name) for name in LAYERS if name in requested}
    shown = render(moment, lens, intrinsics=any(name in requested for name in LIGHT))
    parts = {name: np.moveaxis(getattr(shown, name), 0, -1) for name in LIGHT if name in requested}
    return {"rgb": to_srgb(shown.light)} | parts


def empty_flow(frames: int, lens: Lens) -> tuple[np.ndarray, np.ndarray]:
    """Zero flow, float32 [T, H, W, 2], and all-true validity, bool [T, H, W, 1]."""
    size = (frames, lens.height_px, lens.width_px)
    return np.zeros((*size, 2), np.float32), np.ones((*size, 1), bool)

"""Decoding of maps from colour-coded videos, with a check that the colours match the expected colour scale."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.densepose import DensePose, part_colours
from openuni.manifests.modalities.depth import Depth, DepthConstants
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.segmentation import Segmentation, SegmentationConstants, palette

DepthColours = Literal["grey", "spectral", "inferno"]
FRAMES_AT_ONCE = 8
COLOURS_AT_ONCE = 1 << 16
SAMPLED_FRAMES = 8  # frames sampled to check the colours
GREY_SPREAD = 8.0  # tolerated mean difference between the channels, levels; video coding causes less
NEAR_LEVELS = 16.0  # tolerated mean distance to the colour scale, levels; video coding causes less
WHEEL_LEVELS = 24.0  # maximum mean distance of the brightest channel from white in the flow colour wheel
PRESENT_SHARE = 0.002  # minimum share of the clip that an instance covers
INNER_SHARE = 0.1  # minimum share of interior pixels: at most 0.03 for colours at borders, 0.27 for instances
FOREIGN_SHARE = 0.05  # maximum share of the picture in instances of colours outside the palette
FAR_SHARE = 0.75  # maximum share of non-black pixels far from the palette, such as borders of small instances
ALIKE_LEVELS = 48.0  # colours closer than this are one instance
# ColorBrewer's Spectral with 11 classes, red first; colours between them are interpolated
SPECTRAL = "9e0142 d53e4f f46d43 fdae61 fee08b ffffbf e6f598 abdda4 66c2a5 3288bd 5e4fa2"


def depth_from_colours(
    frames: np.ndarray, colours: DepthColours, constants: DepthConstants | None, where: str
) -> Depth:
    """uint8 [T, H, W, 3] -> depth with `constants`; without them, disparity 0..1 without a unit."""
    sample = _sample(frames)
    if colours == "grey":
        red, green, blue = (sample[..., channel] for channel in range(3))
        highest, lowest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
        spread = float((highest - lowest).mean())
        if spread > GREY_SPREAD:
            raise ClipError(
                f'{where}: depth is coloured (its channels differ by {spread:.0f} levels), but depth_colours = "grey". '
                'Set "spectral" or "inferno", or provide grey videos.'
            )
        return _rejoined([Depth.from_rgb(part, constants) for part in _parts(frames)])
    scale = _depth_scale(colours)
    _check_near(sample, scale, where, f'depth_colours = "{colours}"')
    levels = np.arange(len(scale), dtype=np.float32) / np.float32(len(scale) - 1)
    parts = []
    for part in _parts(frames):
        nearest, _ = _nearest(part * np.float32(255), scale)
        parts.append(Depth.from_rgb(np.repeat(levels[nearest][..., None], 3, axis=-1), constants))
    return _rejoined(parts)


def flow_from_colours(frames: np.ndarray, constants: Any, where: str) -> Flow:
    """uint8 [T, H, W, 3] -> optical flow with the divisor of `constants`, else with the modality's default."""
    darkness = float((255 - _sample(frames).max(axis=-1)).mean())
    if darkness > WHEEL_LEVELS:
        raise ClipError(
            f"{where}: not the colours of the optical-flow wheel, which is white at rest: the brightest channel is "
            f"{darkness:.0f} levels below white on average"
        )
    return _rejoined([Flow.from_rgb(part, constants) for part in _parts(frames)])


def densepose_from_colours(frames: np.ndarray, where: str) -> DensePose:
    """uint8 [T, H, W, 3] -> body parts; U and V are 0."""
    _check_near(_sample(frames), part_colours() * np.float32(255), where, "DensePose parts in viridis")
    return _rejoined([DensePose.from_rgb(part) for part in _parts(frames)])


def ids_from_palette(frames: np.ndarray, constants: SegmentationConstants | None, where: str) -> Segmentation:
    """uint8 [T, H, W, 3] -> instance ids by the palette: those of `constants`, else those present in the clip.

    Video coding mixes colours at the borders of instances; without the second pass, each mix would become an id.
    """
    if constants is None:
        constants = SegmentationConstants(sorted({0, *_present_ids(_sample(frames), where)}))
    found = _rejoined([Segmentation.from_rgb(part, constants) for part in _parts(frames)])
    return Segmentation(found.array)


def _present_ids(sample: np.ndarray, where: str) -> list[int]:
    """The ids whose colours cover enough of uint8 [T, H, W, 3], without those that occur only at borders.

    Raises `ClipError` if too much of the picture has other colours than the palette.
    """
    near = Segmentation.from_rgb(sample.astype(np.float32) / np.float32(255)).array[..., 0]
    table = palette() * np.float32(255)
    distances = np.linalg.norm(sample - table[near], axis=-1)
    counts = np.bincount(near.ravel(), minlength=len(table))
    ids, foreign = [], 0
    for name in np.flatnonzero(counts > PRESENT_SHARE * near.size).tolist():
        covered = near == name
        distance = float(np.median(distances[covered]))
        if distance > NEAR_LEVELS / 4 and _inner_share(covered) < INNER_SHARE:
            continue
        ids.append(name)
        foreign += int(counts[name]) if distance > NEAR_LEVELS / 2 else 0
    far = distances > NEAR_LEVELS / 2
    coloured = far | (near != 0)
    share = max(foreign / near.size / FOREIGN_SHARE, np.count_nonzero(far) / FAR_SHARE / max(1, coloured.sum()))
    if share > 1:
        text = f"{np.count_nonzero(far) / far.size:.0%} of the picture is over {NEAR_LEVELS / 2:g} levels away from it"
        raise ClipError(
            f"{where}: the colours are not from the palette: {text}. "
            'Set segmentation_colours = "any" to read each colour as an instance.'
        )
    return ids


def _inner_share(covered: np.ndarray) -> float:
    """Share of the pixels of bool [T, H, W] whose neighbours are all covered too."""
    import cv2

    around = np.ones((3, 3), np.uint8)
    inner = sum(int(cv2.erode(mask.view(np.uint8), around).sum()) for mask in covered)
    return inner / max(1, int(np.count_nonzero(covered)))


def segmentation_from_colours(frames: np.ndarray, where: str) -> tuple[Segmentation, list[str]]:
    """uint8 [T, H, W, 3] -> instance ids by colour, for any colours, and the colours of the ids as #rrggbb.

    Black is 0; the others are 1, 2, ... by decreasing share of the clip. Instances of the same colour are merged.
    """
    sample = _sample(frames).reshape(-1, 3)
    bins, counts = np.unique(sample >> 3, axis=0, return_counts=True)
    centres = [np.zeros(3, np.float32)]
    for place in np.argsort(-counts, kind="stable"):
        if counts[place] <= PRESENT_SHARE * len(sample):
            break
        colour = bins[place].astype(np.float32) * 8 + 4
        if min(np.linalg.norm(colour - centre) for centre in centres) > ALIKE_LEVELS:
            centres.append(colour)
    if len(centres) == 1:
        raise ClipError(f"{where}: no colour other than black covers {PRESENT_SHARE:.1%} of the clip")
    table = np.stack(centres)
    for _ in range(2):  # refine by cluster means, since bins split clusters
        nearest, _ = _nearest(sample.astype(np.float32), table)
        table[1:] = [sample[nearest == name].mean(axis=0) for name in range(1, len(table))]
    ids = np.concatenate([_nearest(part * np.float32(255), table)[0] for part in _parts(frames)])
    names = ["#" + "".join(f"{round(float(level)):02x}" for level in colour) for colour in table]
    return Segmentation(ids.astype(np.uint16)[..., None]), names


def _sample(frames: np.ndarray) -> np.ndarray:
    chosen = np.unique(np.linspace(0, len(frames) - 1, SAMPLED_FRAMES).astype(int))
    return frames[chosen]


def _parts(frames: np.ndarray) -> Iterator[np.ndarray]:
    """float32 in 0..1, a few frames at a time."""
    for start in range(0, len(frames), FRAMES_AT_ONCE):
        yield frames[start : start + FRAMES_AT_ONCE].astype(np.float32) / np.float32(255)


def _rejoined(parts: list[Any]) -> Any:
    return replace(parts[0], array=np.concatenate([part.array for part in parts]))


def _check_near(sample: np.ndarray, scale: np.ndarray, where: str, what: str) -> None:
    _, distance = _nearest(sample.astype(np.float32), scale)
    mean = float(distance.mean())
    if mean > NEAR_LEVELS:
        raise ClipError(f"{where}: the colours are not those of {what}: the mean distance is {mean:.0f} levels")


def _nearest(colours: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the nearest entry of `scale` [N, 3] for each of [..., 3], and the distance to it; levels 0..255."""
    half_norms = np.square(scale).sum(axis=1) / 2
    flat = colours.reshape(-1, 3)
    index = np.empty(len(flat), np.int64)
    for start in range(0, len(flat), COLOURS_AT_ONCE):  # in chunks, because each is compared with the whole scale
        part = slice(start, start + COLOURS_AT_ONCE)
        index[part] = np.argmax(flat[part] @ scale.T - half_norms, axis=1)
    distance = np.linalg.norm(flat - scale[index], axis=1)
    return index.reshape(colours.shape[:-1]), distance.reshape(colours.shape[:-1])


@lru_cache(maxsize=2)
def _depth_scale(colours: DepthColours) -> np.ndarray:
    """The colour scale in levels, float32 [256, 3], farthest first."""
    if colours == "inferno":
        import cv2

        ramp = np.arange(256, dtype=np.uint8)[:, None]
        return cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO)[:, 0, ::-1].astype(np.float32)
    classes = np.array([list(bytes.fromhex(colour)) for colour in SPECTRAL.split()], np.float32)[::-1]
    place = np.linspace(0, len(classes) - 1, 256)
    return np.stack([np.interp(place, np.arange(len(classes)), channel) for channel in classes.T], 1).astype(np.float32)

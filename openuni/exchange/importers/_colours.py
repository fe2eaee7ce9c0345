"""Maps back from videos of their colours, after a look at whether the colours are what they are taken for."""

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
SAMPLED_FRAMES = 8  # frames, to judge the colours
GREY_SPREAD = 8.0  # levels between the channels, on average, that coding alone may make
NEAR_LEVELS = 16.0  # mean distance to the nearest colour of a scale that coding alone may make
WHEEL_LEVELS = 24.0  # mean distance of the brightest channel from white: the flow's wheel has none darker
PRESENT_SHARE = 0.002  # of the clip that an instance must cover
INNER_SHARE = 0.1  # of an instance's pixels that lie within it: of border colours 0.03 at most, of instances 0.27
FOREIGN_SHARE = 0.05  # of the picture that instances of other colours than the palette's may cover
FAR_SHARE = 0.75  # of what is not black that may be far from the palette's colours: borders of small instances
ALIKE_LEVELS = 48.0  # colours nearer than that are one instance
# ColorBrewer's Spectral with 11 classes, red first; between them colours are interpolated
SPECTRAL = "9e0142 d53e4f f46d43 fdae61 fee08b ffffbf e6f598 abdda4 66c2a5 3288bd 5e4fa2"


def depth_from_colours(frames: np.ndarray, colours: DepthColours, given: DepthConstants | None, where: str) -> Depth:
    """uint8 [T, H, W, 3] -> depth by `given`; without, disparity 0..1 of no unit."""
    sample = _sample(frames)
    if colours == "grey":
        red, green, blue = (sample[..., channel] for channel in range(3))
        highest, lowest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
        spread = float((highest - lowest).mean())
        if spread > GREY_SPREAD:
            raise ClipError(
                f'{where}: depth is coloured (its channels are {spread:.0f} levels apart), depth_colours = "grey" was '
                'asked for. Set "spectral" or "inferno", or give grey videos.'
            )
        return _rejoined([Depth.from_rgb(part, given) for part in _parts(frames)])
    scale = _depth_scale(colours)
    _check_near(sample, scale, where, f'depth_colours = "{colours}"')
    levels = np.arange(len(scale), dtype=np.float32) / np.float32(len(scale) - 1)
    parts = []
    for part in _parts(frames):
        nearest, _ = _nearest(part * np.float32(255), scale)
        parts.append(Depth.from_rgb(np.repeat(levels[nearest][..., None], 3, axis=-1), given))
    return _rejoined(parts)


def flow_from_colours(frames: np.ndarray, given: Any, where: str) -> Flow:
    """uint8 [T, H, W, 3] -> flow by the divisor of `given`, else by the modality's default."""
    darkness = float((255 - _sample(frames).max(axis=-1)).mean())
    if darkness > WHEEL_LEVELS:
        raise ClipError(
            f"{where}: these are no colours of the flow's wheel, white at rest: the brightest channel is "
            f"{darkness:.0f} levels below white on average"
        )
    return _rejoined([Flow.from_rgb(part, given) for part in _parts(frames)])


def densepose_from_colours(frames: np.ndarray, where: str) -> DensePose:
    """uint8 [T, H, W, 3] -> parts; U and V are 0."""
    _check_near(_sample(frames), part_colours() * np.float32(255), where, "DensePose parts in viridis")
    return _rejoined([DensePose.from_rgb(part) for part in _parts(frames)])


def ids_from_palette(frames: np.ndarray, given: SegmentationConstants | None, where: str) -> Segmentation:
    """uint8 [T, H, W, 3] -> ids by the palette: those of `given`; without, those whose colours cover some of the clip.

    Video coding makes colours between two instances' at their borders; without the second look each would be an id.
    """
    if given is None:
        given = SegmentationConstants(sorted({0, *_present_ids(_sample(frames), where)}))
    found = _rejoined([Segmentation.from_rgb(part, given) for part in _parts(frames)])
    return Segmentation(found.array)


def _present_ids(sample: np.ndarray, where: str) -> list[int]:
    """The ids whose colours cover some of uint8 [T, H, W, 3], without those that only borders have.

    Raises `ClipError` where much is of other colours than the palette's.
    """
    near = Segmentation.from_rgb(sample.astype(np.float32) / np.float32(255)).array[..., 0]
    table = palette() * np.float32(255)
    off = np.linalg.norm(sample - table[near], axis=-1)
    counts = np.bincount(near.ravel(), minlength=len(table))
    kept, foreign = [], 0
    for name in np.flatnonzero(counts > PRESENT_SHARE * near.size).tolist():
        covered = near == name
        distance = float(np.median(off[covered]))
        if distance > NEAR_LEVELS / 4 and _inner_share(covered) < INNER_SHARE:
            continue
        kept.append(name)
        foreign += int(counts[name]) if distance > NEAR_LEVELS / 2 else 0
    far = off > NEAR_LEVELS / 2
    coloured = far | (near != 0)
    share = max(foreign / near.size / FOREIGN_SHARE, np.count_nonzero(far) / FAR_SHARE / max(1, coloured.sum()))
    if share > 1:
        text = f"{np.count_nonzero(far) / far.size:.0%} of the picture is more than {NEAR_LEVELS / 2:g} levels away"
        raise ClipError(
            f"{where}: the colours are not the palette's: {text}. "
            'Set segmentation_colours = "any" to take each colour for an instance.'
        )
    return kept


def _inner_share(covered: np.ndarray) -> float:
    """Of the pixels of bool [T, H, W] those whose neighbours on all sides are covered too."""
    import cv2

    around = np.ones((3, 3), np.uint8)
    inner = sum(int(cv2.erode(mask.view(np.uint8), around).sum()) for mask in covered)
    return inner / max(1, int(np.count_nonzero(covered)))


def segmentation_from_colours(frames: np.ndarray, where: str) -> tuple[Segmentation, list[str]]:
    """uint8 [T, H, W, 3] -> ids by colour, whichever these are, and the ids' colours as #rrggbb.

    Black is 0; the others are 1, 2, ... by the share of the clip they cover. Two instances of one colour are one.
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
        raise ClipError(f"{where}: no colour but black covers {PRESENT_SHARE:.1%} of the clip")
    table = np.stack(centres)
    for _ in range(2):  # bins cut clusters in two: their means are the colours
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
        raise ClipError(f"{where}: these are not the colours of {what}: they are {mean:.0f} levels off on average")


def _nearest(colours: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the nearest entry of `scale` [N, 3] for each of [..., 3], and the distance to it; levels 0..255."""
    half_norms = np.square(scale).sum(axis=1) / 2
    flat = colours.reshape(-1, 3)
    index = np.empty(len(flat), np.int64)
    for start in range(0, len(flat), COLOURS_AT_ONCE):  # each is held against the whole scale
        part = slice(start, start + COLOURS_AT_ONCE)
        index[part] = np.argmax(flat[part] @ scale.T - half_norms, axis=1)
    distance = np.linalg.norm(flat - scale[index], axis=1)
    return index.reshape(colours.shape[:-1]), distance.reshape(colours.shape[:-1])


@lru_cache(maxsize=2)
def _depth_scale(colours: DepthColours) -> np.ndarray:
    """float32 [256, 3] in levels, the farthest first."""
    if colours == "inferno":
        import cv2

        ramp = np.arange(256, dtype=np.uint8)[:, None]
        return cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO)[:, 0, ::-1].astype(np.float32)
    classes = np.array([list(bytes.fromhex(colour)) for colour in SPECTRAL.split()], np.float32)[::-1]
    place = np.linspace(0, len(classes) - 1, 256)
    return np.stack([np.interp(place, np.arange(len(classes)), channel) for channel in classes.T], 1).astype(np.float32)

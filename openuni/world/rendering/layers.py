"""Rendering of a scene as two layers: a foreground with soft edges, and a background.

rgb = alpha * foreground + (1 - alpha) * background, of sRGB values, rounded: the picture of such a scene *is* this
composite. Alpha is the share of a pixel's 4 x 4 rays whose first hit is the foreground; the foreground's colour is the
mean light of these rays; the background is the scene rendered without the foreground and its shadow.
"""

from typing import NamedTuple

import numpy as np

from openuni.world.rendering.camera import Lens
from openuni.world.rendering.rays import span
from openuni.world.rendering.shading import BAND_RAYS, frame, means, shade, to_srgb
from openuni.world.scene import Moment

SAMPLES = 4  # rays per pixel and side, for alpha


class Layers(NamedTuple):
    """The layers of one frame."""

    rgb: np.ndarray  # uint8 [H, W, 3]
    alpha: np.ndarray  # float32 [H, W, 1], multiples of 1/16
    foreground: np.ndarray  # uint8 [H, W, 3], straight; edge colours are extended to where alpha is 0
    background: np.ndarray  # uint8 [H, W, 3]


def layers(moment: Moment, lens: Lens) -> Layers:
    """The layers of a scene with a `foreground`, at one instant."""
    alpha, light = front(moment, lens)
    foreground = extended(to_srgb(light), alpha[0] > 0.0)
    background = frame(moment.scene.rear.at(moment.time_s), lens)
    share = np.moveaxis(alpha, 0, -1)
    rgb = np.rint(share * foreground + (1.0 - share) * background).astype(np.uint8)
    return Layers(rgb, share, foreground, background)


def front(moment: Moment, lens: Lens) -> tuple[np.ndarray, np.ndarray]:
    """Coverage float32 [1, H, W] by the foreground, and its mean light float32 [3, H, W] where that is above 0."""
    scene = moment.scene
    own = frozenset(index for index, solid in enumerate(scene.solids) if solid.instance in scene.foreground)
    left, right, top, bottom = window(moment, lens, own)
    alpha = np.zeros((1, lens.height_px, lens.width_px), np.float32)
    light = np.zeros((3, lens.height_px, lens.width_px), np.float32)
    if left >= right or top >= bottom:
        return alpha, light
    x, y = (side.astype(np.float32) for side in lens.rays(SAMPLES))
    x = x[left * SAMPLES : right * SAMPLES]
    rows_px = max(1, BAND_RAYS // (len(x) * SAMPLES))
    for first in range(top, bottom, rows_px):
        last = min(first + rows_px, bottom)
        rows = y[first * SAMPLES : last * SAMPLES]
        shaded = shade(moment, lens.focal_px * SAMPLES, x, rows, own)
        size = (len(rows), len(x))
        met = np.ones((1, len(shaded.ray)), np.float32)
        part = np.s_[:, first:last, left:right]
        alpha[part] = means(met, shaded.ray, size, SAMPLES)
        light[part] = means(shaded.colour * shaded.falling + shaded.shine, shaded.ray, size, SAMPLES)
    return alpha, light * np.float32(scene.exposure) / np.maximum(alpha, 1.0 / SAMPLES**2)


def window(moment: Moment, lens: Lens, solids: frozenset[int]) -> tuple[int, int, int, int]:
    """Left, right, top and bottom in pixels (half-open) of a rectangle that holds some solids."""
    corners = []
    for index in solids:
        (_, shift), bound_m = moment.placements[index], moment.scene.solids[index].shape.bound_m
        corners.append((*span(shift[0], shift[2], bound_m), *span(shift[1], shift[2], bound_m)))
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    half_width, half_height = lens.width_px / 2.0, lens.height_px / 2.0
    sides = np.array([low[0], high[1], low[2], high[3]]) * lens.focal_px + (
        half_width,
        half_width,
        half_height,
        half_height,
    )
    limits = (lens.width_px, lens.width_px, lens.height_px, lens.height_px)
    left, right, top, bottom = np.clip(sides, 0, limits)
    return int(left), int(np.ceil(right)), int(top), int(np.ceil(bottom))


def extended(colour: np.ndarray, known: np.ndarray) -> np.ndarray:
    """`colour` uint8 [H, W, 3] with the pixels that are not `known` [H, W] filled from known neighbours."""
    if known.all() or not known.any():
        return colour
    weight = known[..., None].astype(np.float32)
    levels = [(colour * weight, weight)]
    while min(levels[-1][1].shape[:2]) > 1 and not levels[-1][1].all():
        levels.append((halved(levels[-1][0]), halved(levels[-1][1])))
    filled = levels[-1][0] / np.maximum(levels[-1][1], 1e-6)
    if not levels[-1][1].all():
        total, count = (part.sum(axis=(0, 1)) for part in levels[-1])
        filled = np.where(levels[-1][1] > 0, filled, total / count)
    for summed, count in levels[-2::-1]:
        height, width = count.shape[:2]
        coarse = filled.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
        filled = np.where(count > 0, summed / np.maximum(count, 1e-6), coarse)
    return np.where(known[..., None], colour, np.rint(filled).astype(np.uint8))


def halved(array: np.ndarray) -> np.ndarray:
    """Sums of 2 x 2 blocks of [H, W, C]; an odd last row or column counts alone."""
    height, width = array.shape[:2]
    even = np.pad(array, ((0, height % 2), (0, width % 2), (0, 0)))
    return even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]

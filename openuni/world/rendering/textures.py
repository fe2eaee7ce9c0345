"""Procedural patterns: seamless tiles of mixing weights, sampled by texture coordinates.

Every pattern includes value noise of several scales, so that no surface is uniform for optical-flow estimators. A tile
has a pyramid of halved copies; sampling the copy with texels of about the sample size avoids flickering.
"""

import math
from functools import lru_cache

import numpy as np

from openuni.manifests.arrays.srgb import srgb_to_linear
from openuni.world.rendering.shapes import Shape
from openuni.world.scene import COLOURS, Material, Pattern

TILE_TEXELS = 256  # a power of two
GRAINS = 8  # different noises; a material's seed is taken modulo this
NOISE_CELLS = (4, 8, 16, 32, 64)  # lattice cells per tile of the octaves
NOISE_SHARE: dict[Pattern, float] = {  # the remaining weight is the figure of the pattern
    "checkered": 0.34,
    "striped": 0.34,
    "spotted": 0.34,
    "marbled": 0.3,
    "mottled": 0.75,
    "grained": 0.3,
    "planked": 0.25,
    "bricked": 0.3,
}


@lru_cache(maxsize=128)
def pyramid(pattern: Pattern, grain: int) -> tuple[np.ndarray, ...]:
    """Tiles of mixing weights, float32 [size * size] flattened, 0..1, from 256 texels a side down to 4."""
    share = NOISE_SHARE[pattern]
    tile = (1.0 - share) * figure(pattern, grain) + share * noise(grain, NOISE_CELLS)
    levels = [tile]
    while len(levels[-1]) > 4:
        fine = levels[-1]
        levels.append((fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2]) / 4.0)
    return tuple(level.astype(np.float32).ravel() for level in levels)


def figure(pattern: Pattern, grain: int) -> np.ndarray:
    """The regular part of a pattern without noise: float64 [256, 256], 0..1."""
    place = (np.arange(TILE_TEXELS) + 0.5) / TILE_TEXELS
    u, v = place[None, :], place[:, None]
    if pattern == "checkered":
        return ((u < 0.5) ^ (v < 0.5)).astype(np.float64)
    if pattern == "striped":
        return np.broadcast_to(v < 0.5, (TILE_TEXELS, TILE_TEXELS)).astype(np.float64)
    if pattern == "spotted":
        middles = [(0.25, 0.25), (0.75, 0.75)]
        return np.any([np.hypot(u - x, v - y) < 0.2 for x, y in middles], axis=0).astype(np.float64)
    if pattern == "marbled":
        veins = np.sin(2.0 * math.pi * (2.0 * v + u + 1.6 * noise(grain, (4, 8, 16))))
        return np.clip(0.5 + 1.2 * veins, 0.0, 1.0)
    if pattern == "grained":  # wood: lines along u that waver
        return 0.5 + 0.5 * np.sin(2.0 * math.pi * (7.0 * v + 1.6 * noise(grain, (2, 4))))
    if pattern in ("planked", "bricked"):
        return rows_of_pieces(grain, *((8, 2, 0.03) if pattern == "planked" else (8, 4, 0.09)))
    return np.zeros((TILE_TEXELS, TILE_TEXELS))


def rows_of_pieces(grain: int, rows: int, pieces: int, joint: float) -> np.ndarray:
    """Boards or bricks in rows, each row shifted: float64 [256, 256], 1 in the joints, shades below 0.5 elsewhere."""
    place = (np.arange(TILE_TEXELS) + 0.5) / TILE_TEXELS
    row = (place * rows).astype(np.int64)
    rng = np.random.default_rng([grain, rows, pieces])
    across = place[None, :] * pieces + np.where(row % 2, 0.5, 0.0)[:, None]
    shades = 0.45 * rng.random((rows, pieces))
    shade = shades[row[:, None], across.astype(np.int64) % pieces]
    beside = (place * rows % 1.0 < joint)[:, None] | (across % 1.0 < joint * pieces / rows)
    return np.where(beside, 1.0, shade)


def noise(grain: int, cells: tuple[int, ...]) -> np.ndarray:
    """Seamless value noise, float64 [256, 256], stretched to 0..1: a smooth lattice of each count of cells."""
    rng = np.random.default_rng([grain, *cells])
    total = np.zeros((TILE_TEXELS, TILE_TEXELS))
    for octave, count in enumerate(cells):
        place = (np.arange(TILE_TEXELS) + 0.5) / TILE_TEXELS * count
        left = place.astype(np.int64)
        share = place - left
        share = share * share * (3.0 - 2.0 * share)
        lattice = rng.random((count, count))
        rows = lattice[left] * (1.0 - share[:, None]) + lattice[(left + 1) % count] * share[:, None]
        total += 0.75**octave * (rows[:, left] * (1.0 - share) + rows[:, (left + 1) % count] * share)
    low, high = np.quantile(total, (0.02, 0.98))
    return np.clip((total - low) / (high - low), 0.0, 1.0)


def repeats(material: Material, shape: Shape) -> tuple[float, float]:
    """Number of repeats of the tile along u and v: integers, so that closed surfaces have no seam."""
    width_m, height_m = shape.chart_m
    return float(max(1, round(width_m / material.tile_m))), float(max(1, round(height_m / material.tile_m)))


def albedo(material: Material, shape: Shape, uv: np.ndarray, footprint_m: float) -> np.ndarray:
    """Linear reflectance [3, n], 0..1, at texture coordinates [2, n].

    `footprint_m`: about the distance on the surface between neighbouring samples of the picture.
    """
    across, along = repeats(material, shape)
    texel_m = shape.chart_m[0] / across / TILE_TEXELS
    levels = pyramid(material.pattern, material.seed % GRAINS)
    level = min(max(round(math.log2(footprint_m / texel_m)), 0), len(levels) - 1)
    weight = bilinear(levels[level], TILE_TEXELS >> level, uv[0] * across, uv[1] * along)
    first, second = linear_colour(material.colour), linear_colour(material.second)
    return np.stack([weight * (other - one) + one for one, other in zip(first, second, strict=True)])


def bilinear(tile: np.ndarray, size: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Values [n] between the texels of a flattened seamless tile of `size` x `size`; u and v in tiles."""
    x, y = u * size - 0.5, v * size - 0.5
    left, top = np.floor(x), np.floor(y)
    x, y = x - left, y - top
    column, row = left.astype(np.int32) & (size - 1), top.astype(np.int32) & (size - 1)
    column_next, row_next = (column + 1) & (size - 1), ((row + 1) & (size - 1)) * size
    row *= size
    upper_left, upper_right = tile.take(row + column), tile.take(row + column_next)
    lower_left, lower_right = tile.take(row_next + column), tile.take(row_next + column_next)
    upper = upper_left + x * (upper_right - upper_left)
    lower = lower_left + x * (lower_right - lower_left)
    return upper + y * (lower - upper)


@lru_cache(maxsize=64)
def linear_colour(name: str) -> tuple[float, float, float]:
    """A colour of `COLOURS` as linear light, 0..1."""
    red, green, blue = srgb_to_linear(np.array(COLOURS[name]) / 255.0).tolist()
    return red, green, blue

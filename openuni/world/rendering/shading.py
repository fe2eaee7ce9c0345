"""Shading: the recorded light of each pixel, and its decomposition.

`render` works in bands of rows: cast rays, compute surfaces (position, normal, reflectance) at the hits, sum up the
incoming light, and average over the rays of each pixel. All in float32: geometric ground truth is computed elsewhere;
albedo and irradiance are computed here, because they are parts of this picture.

For every pixel, with the mean over its rays written as < >:

    linear rgb = exposure * < albedo_of_ray * light_of_ray + highlight_of_ray >
    albedo     = < albedo_of_ray >
    irradiance = exposure * < albedo_of_ray * light_of_ray > / albedo

so that linear rgb = albedo * irradiance, up to float32 rounding, wherever no material has gloss.
"""

from typing import NamedTuple

import numpy as np

from openuni.manifests.arrays.srgb import linear_to_srgb
from openuni.world.rendering.camera import Lens
from openuni.world.rendering.pose import Components, dot, transform
from openuni.world.rendering.rays import Chunks, cast, lit, segments, tile_order
from openuni.world.rendering.textures import albedo
from openuni.world.scene import Moment

HIGHLIGHT_POWER = 24  # exponent of the Blinn-Phong highlight
SKY_SHARE = 0.45  # share of the ambient light that comes from above
BAND_RAYS = 1 << 17  # approximate number of rays per band: their arrays fit into the CPU cache


class Surface(NamedTuple):
    """Samples of solids that the camera sees, grouped by solid; [3, n], and [n]."""

    points_m: np.ndarray  # world
    normals: np.ndarray  # world, unit length, outwards
    solid: np.ndarray  # int16: index in `scene.solids`


class Picture(NamedTuple):
    """Means over the rays of each pixel, linear, float32 [3, H, W]; see the head of this file."""

    light: np.ndarray  # what the camera records
    albedo: np.ndarray
    irradiance: np.ndarray


def surface_of(moment: Moment, index: int, camera_points: Components) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of points [3, n] in camera coordinates, which lie on solid `index`: world points, world normals, u and v.

    float [3, n], [3, n] (or [3, 1], when all normals are equal), [2, n].
    """
    shape = moment.scene.solids[index].shape
    rotation, shift = moment.placements[index]
    normals, uv = shape.surface(transform(rotation.T, camera_points, -rotation.T @ shift))
    return moment.view.to_world(camera_points), transform(moment.poses[index].rotation, normals), uv


def irradiance(moment: Moment, surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Light that falls on samples, [3, n] or [1, n] when it is white, and the highlights there [1, n]; linear, >= 0.

    A surface of reflectance 1 under irradiance 1 is exactly white at exposure 1.
    """
    scene = moment.scene
    chunks = Chunks.of(surface.points_m, surface.solid)
    up = surface.normals[1]
    light_sum = (scene.ambient * (1.0 - SKY_SHARE + SKY_SHARE * up))[None]
    gloss = np.array([solid.material.gloss for solid in scene.solids], np.float32)
    shine = np.zeros((1, len(up)), surface.points_m.dtype)
    glossy = np.flatnonzero(gloss.take(surface.solid)) if gloss.any() else np.empty(0, np.int64)
    for light in scene.lights:
        from_light = [part - at for part, at in zip(surface.points_m, light.position_m, strict=True)]
        distance2 = dot(from_light, from_light)
        facing = np.maximum(-dot(surface.normals, from_light), 0.0)  # cosine times distance
        visible = lit(moment, light, chunks, from_light, facing)
        arriving = light.power * facing / (distance2 * np.sqrt(distance2)) * visible
        if light.colour == (1.0, 1.0, 1.0):
            light_sum = light_sum + arriving
        else:
            light_sum = light_sum + np.stack([arriving * part for part in light.colour])
        if len(glossy):
            points, normals = surface.points_m[:, glossy], surface.normals[:, glossy]
            halfway = towards_half([part[glossy] for part in from_light], points, moment.view.eye_m)
            cosine = np.maximum(dot(normals, halfway), 0.0)
            shine[0, glossy] += light.power / distance2[glossy] * visible[glossy] * cosine**HIGHLIGHT_POWER
    shine[0, glossy] *= gloss.take(surface.solid[glossy])
    for first, last, index in segments(surface.solid):
        if scene.solids[index].material.even_light:
            light_sum[:, first:last] = scene.solids[index].material.even_light
    return light_sum, shine


def towards_half(from_light: Components, points: np.ndarray, eye_m: np.ndarray) -> np.ndarray:
    """Unit vectors [3, n] halfway between the directions to the light and to the eye."""
    to_eye = [float(at) - part for part, at in zip(points, eye_m, strict=True)]
    eye_length, light_length = np.sqrt(dot(to_eye, to_eye)), np.sqrt(dot(from_light, from_light))
    half = np.stack([e / eye_length - f / light_length for e, f in zip(to_eye, from_light, strict=True)])
    return half / np.maximum(np.sqrt(dot(half, half)), 1e-6)


def render(moment: Moment, lens: Lens, samples: int = 2, *, intrinsics: bool = True) -> Picture:
    """The mean light of `samples` x `samples` rays per pixel, with hard shadows; optionally albedo and irradiance."""
    x, y = (side.astype(np.float32) for side in lens.rays(samples))
    whole = (3, lens.height_px, lens.width_px) if intrinsics else (3, 0, 0)
    out = Picture(np.empty((3, lens.height_px, lens.width_px), np.float32), *np.empty((2, *whole), np.float32))
    rows_px = max(1, BAND_RAYS // (len(x) * samples))
    for top in range(0, lens.height_px, rows_px):
        bottom = min(top + rows_px, lens.height_px)
        shaded = shade(moment, lens.focal_px * samples, x, y[top * samples : bottom * samples])
        reflected = shaded.colour * shaded.falling
        size = ((bottom - top) * samples, len(x))
        out.light[:, top:bottom] = means(reflected + shaded.shine, shaded.ray, size, samples)
        if intrinsics:
            out.albedo[:, top:bottom] = means(shaded.colour, shaded.ray, size, samples)
            out.irradiance[:, top:bottom] = means(reflected, shaded.ray, size, samples)
    exposure = np.float32(moment.scene.exposure)
    np.multiply(out.light, exposure, out=out.light)
    # no material is black: reflectance is at least that of the darkest colour
    np.divide(out.irradiance * exposure, out.albedo, out=out.irradiance)
    return out


def means(values: np.ndarray, ray: np.ndarray, size: tuple[int, int], samples: int) -> np.ndarray:
    """Per pixel the mean of `values` [c, n] that belong to the rays `ray` [n] of a grid of `size`; others count 0."""
    grid = np.zeros((len(values), size[0] * size[1]), np.float32)
    for channel, part in zip(grid, values, strict=True):
        channel[ray] = part
    return shrink(grid.reshape(len(values), *size), samples)


class Shaded(NamedTuple):
    """Shading results of a grid of rays, grouped by solid."""

    ray: np.ndarray  # int [n]: row-major index of the ray in the grid
    solid: np.ndarray  # int16 [n]: what it meets
    colour: np.ndarray  # float32 [3, n]: reflectance
    falling: np.ndarray  # float32 [3, n], or [1, n] where all light is white
    shine: np.ndarray  # float32 [1, n]: highlight


def shade(moment: Moment, detail_px: float, x: np.ndarray, y: np.ndarray, only: frozenset[int] | None = None) -> Shaded:
    """Light and reflectance along the rays (x, y, 1), float32.

    `detail_px`: focal length in samples, which limits the fineness of patterns. `only`: indices of relevant solids;
    rays whose first hit is another solid are left out.
    """
    hits = cast(moment, x, y)
    order = tile_order(len(y), len(x))
    met = hits.solid.ravel().take(order)
    grouped = np.argsort(met, kind="stable")
    solid = met.take(grouped)
    if only is not None:
        grouped, solid = (part[np.isin(solid, list(only))] for part in (grouped, solid))
    ray = order.take(grouped)
    depth, row, column = hits.depth_m.ravel().take(ray), *np.divmod(ray, len(x))
    points = np.stack([x.take(column) * depth, y.take(row) * depth, depth])
    surface = Surface(np.empty_like(points), np.empty_like(points), solid)
    colour = np.empty_like(points)
    opening = moment.scene.opening  # the pattern detail is chosen once per clip, to avoid popping
    for first, last, index in segments(solid):
        placed = moment.scene.solids[index]
        world, normals, uv = surface_of(moment, index, points[:, first:last])
        surface.points_m[:, first:last], surface.normals[:, first:last] = world, normals
        distance_m = float(np.linalg.norm(opening.poses[index].position_m - opening.view.eye_m))
        colour[:, first:last] = albedo(placed.material, placed.shape, uv, distance_m / detail_px)
    return Shaded(ray, solid, colour, *irradiance(moment, surface))


def frame(moment: Moment, lens: Lens, samples: int = 2) -> np.ndarray:
    """uint8 [H, W, 3], sRGB: the picture alone."""
    return to_srgb(render(moment, lens, samples, intrinsics=False).light)


def shrink(light: np.ndarray, samples: int) -> np.ndarray:
    """The means of `samples` x `samples` blocks of [c, H, W]."""
    parts = [light[:, row::samples, column::samples] for row in range(samples) for column in range(samples)]
    return sum(parts[1:], parts[0]) / len(parts)


TABLE_STEPS = 16383  # of the table: linear light is rounded to this many steps, at most 0.1 of an 8-bit level
SRGB_OF_STEP = np.round(255.0 * linear_to_srgb(np.arange(TABLE_STEPS + 1) / TABLE_STEPS)).astype(np.uint8)


def to_srgb(light: np.ndarray) -> np.ndarray:
    """Linear light [3, H, W] as sRGB uint8 [H, W, 3], clipped at white.

    Below white, `srgb_to_linear(value / 255)` is the light again: a value is within 0.61 of 255 *
    linear_to_srgb(light).
    """
    index = (np.clip(light, 0.0, 1.0) * TABLE_STEPS + 0.5).astype(np.int32)
    return np.ascontiguousarray(np.moveaxis(SRGB_OF_STEP.take(index), 0, -1))

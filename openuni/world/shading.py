"""Light on surfaces: a frame as people see it, in three steps that are useful on their own.

`surface_of` says what the samples of one solid are (position, normal, texture coordinates), `irradiance` how much
light falls there, `frame` puts albedo, light and highlight together. All in float32: the ground truth never comes from
here.
"""

from typing import NamedTuple

import numpy as np

from openuni.world.camera import Lens
from openuni.world.pose import Components, dot, transform
from openuni.world.rays import cast, lit
from openuni.world.scene import Moment
from openuni.world.textures import albedo

HIGHLIGHT_POWER = 24  # exponent of the Blinn-Phong highlight
SKY_SHARE = 0.45  # share of the ambient light that comes only from above


class Surface(NamedTuple):
    """Samples of one solid that the camera sees; [3, n] and [2, n]."""

    points_m: np.ndarray  # world
    normals: np.ndarray  # world, unit length, outwards; [3, 1] when all are equal
    uv: np.ndarray


def surface_of(moment: Moment, index: int, camera_points: Components) -> Surface:
    """The surface of solid `index` at points [3, n] in camera coordinates, which lie on it."""
    shape = moment.scene.solids[index].shape
    rotation, shift = moment.placements[index]
    normals, uv = shape.surface(transform(rotation.T, camera_points, -rotation.T @ shift))
    return Surface(moment.view.to_world(camera_points), transform(moment.poses[index].rotation, normals), uv)


def irradiance(moment: Moment, index: int, surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Light that falls on samples of solid `index`, and the strength of the highlight there: two [n], linear, >= 0.

    A surface of reflectance 1 under irradiance 1 is exactly white.
    """
    scene = moment.scene
    light_sum = scene.ambient * (1.0 - SKY_SHARE + SKY_SHARE * surface.normals[1])
    shine = np.zeros(surface.points_m.shape[1], surface.points_m.dtype)
    glossy = scene.solids[index].material.gloss > 0.0
    for light in scene.lights:
        from_light = [part - at for part, at in zip(surface.points_m, light.position_m, strict=True)]
        distance2 = dot(from_light, from_light)
        facing = np.maximum(-dot(surface.normals, from_light), 0.0)  # cosine times distance
        visible = lit(moment, light, index, from_light)
        light_sum = light_sum + light.power * facing / (distance2 * np.sqrt(distance2)) * visible
        if glossy:
            halfway = towards_half(from_light, surface.points_m, moment.view.eye_m)
            cosine = np.maximum(dot(surface.normals, halfway), 0.0)
            shine += light.power / distance2 * visible * cosine**HIGHLIGHT_POWER
    return light_sum, shine


def towards_half(from_light: Components, points: np.ndarray, eye_m: np.ndarray) -> np.ndarray:
    """Unit vectors [3, n] halfway between the directions to the light and to the eye."""
    to_eye = [float(at) - part for part, at in zip(points, eye_m, strict=True)]
    eye_length, light_length = np.sqrt(dot(to_eye, to_eye)), np.sqrt(dot(from_light, from_light))
    half = np.stack([e / eye_length - f / light_length for e, f in zip(to_eye, from_light, strict=True)])
    return half / np.maximum(np.sqrt(dot(half, half)), 1e-6)


def frame(moment: Moment, lens: Lens, samples: int = 2) -> np.ndarray:
    """uint8 [H, W, 3], sRGB: the mean light of `samples` x `samples` rays per pixel, hard shadows."""
    x, y = (side.astype(np.float32) for side in lens.rays(samples))
    hits = cast(moment, x, y)
    depth = hits.depth_m.ravel()
    x_all, y_all = np.broadcast_to(x, hits.depth_m.shape).ravel(), np.repeat(y, len(x))
    light = np.zeros((3, depth.size), np.float32)
    opening = moment.scene.opening  # the detail of patterns is chosen once per clip, so that it never pops
    for index, solid in enumerate(moment.scene.solids):
        seen = np.flatnonzero(hits.solid.ravel() == index)
        if not len(seen):
            continue
        z = depth.take(seen)
        surface = surface_of(moment, index, (x_all.take(seen) * z, y_all.take(seen) * z, z))
        distance_m = float(np.linalg.norm(opening.poses[index].position_m - opening.view.eye_m))
        colour = albedo(solid.material, solid.shape, surface.uv, distance_m / (lens.focal_px * samples))
        falling, shine = irradiance(moment, index, surface)
        for channel, part in zip(light, colour, strict=True):
            channel[seen] = part * falling + solid.material.gloss * shine
    return to_srgb(shrink(light.reshape(3, *hits.depth_m.shape), samples))


def shrink(light: np.ndarray, samples: int) -> np.ndarray:
    """The means of `samples` x `samples` blocks of [3, H, W]."""
    parts = [light[:, row::samples, column::samples] for row in range(samples) for column in range(samples)]
    return sum(parts[1:], parts[0]) / len(parts)


def _srgb_table() -> np.ndarray:
    linear = np.arange(16384) / 16383.0
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1.0 / 2.4) - 0.055)
    return np.round(255.0 * coded).astype(np.uint8)


SRGB_OF_LINEAR = _srgb_table()


def to_srgb(light: np.ndarray) -> np.ndarray:
    """Linear light [3, H, W] as sRGB uint8 [H, W, 3]; what is brighter than white becomes white."""
    index = (np.clip(light, 0.0, 1.0) * (len(SRGB_OF_LINEAR) - 1) + 0.5).astype(np.int32)
    return np.ascontiguousarray(np.moveaxis(SRGB_OF_LINEAR.take(index), 0, -1))

"""A room with two balls under a moving camera, by formula: linear rgb, albedo, irradiance and normals that belong."""

from typing import NamedTuple

import numpy as np

from openuni.manifests.arrays.srgb import linear_to_srgb

ROOM = np.array([2.0, 1.5, 3.0])  # half sides
BALLS = (((-0.7, -0.9, 0.6), 0.6), ((0.8, -0.6, 1.2), 0.9))
LIGHT = np.array([0.6, 1.2, -0.5])


class Room(NamedTuple):
    """float32 [T, H, W, 3] each. Normals: camera space, x right, y up, z to the viewer."""

    rgb: np.ndarray
    albedo: np.ndarray
    irradiance: np.ndarray
    normal: np.ndarray


def render(frames: int = 12, height_px: int = 48, width_px: int = 64, *, speed: float = 0.06, phase: float = 0) -> Room:
    """The camera goes to the right and turns; `speed` 0: it stands still. rgb = albedo x irradiance, exactly."""
    kept = [_frame(phase + speed * number, height_px, width_px)[:3] for number in range(frames)]
    albedo, irradiance, normal = (np.stack(list(parts)).astype(np.float32) for parts in zip(*kept, strict=True))
    return Room(albedo * irradiance, albedo, irradiance, normal)


def geometry(frames: int = 12, height_px: int = 48, width_px: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Of the same clip: float32 [T, H, W, 1] metres, uint16 [T, H, W, 1] with the walls 0 and the balls 1 and 2."""
    kept = [_frame(0.06 * number, height_px, width_px)[3:] for number in range(frames)]
    metres, ids = (np.stack(list(parts))[..., None] for parts in zip(*kept, strict=True))
    return metres.astype(np.float32), ids.astype(np.uint16)


def pictures(room: Room) -> np.ndarray:
    """uint8 [T, H, W, 3]: the rgb as sRGB."""
    return np.rint(np.clip(linear_to_srgb(np.clip(room.rgb, 0, 1)), 0, 1) * 255).astype(np.uint8)


def _frame(time: float, height_px: int, width_px: int) -> tuple[np.ndarray, ...]:
    eye = np.array([-0.8 + time, 0.1, -2.4])
    turn = 0.4 * time - 0.1
    rotation = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    x = (np.arange(width_px) + 0.5 - width_px / 2) / (0.8 * width_px)
    y = (height_px / 2 - np.arange(height_px) - 0.5) / (0.8 * width_px)
    rays = np.stack([*np.meshgrid(x, y), np.ones((height_px, width_px))], axis=-1)
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True) @ rotation.T
    walls = (np.sign(rays) * ROOM - eye) / np.where(rays == 0, 1e-9, rays)
    distance, axis = walls.min(axis=-1), walls.argmin(axis=-1)
    normal = -np.sign(rays) * (np.arange(3) == axis[..., None])
    ids = np.zeros(distance.shape)
    tint = np.array([[0.7, 0.5, 0.4], [0.5, 0.5, 0.5], [0.4, 0.6, 0.7]])[axis]
    for number, (centre, radius) in enumerate(BALLS):
        across = rays @ (np.array(centre) - eye)
        gap = across**2 - ((np.array(centre) - eye) ** 2).sum() + radius**2
        near = across - np.sqrt(np.maximum(gap, 0))
        hit = (gap > 0) & (near > 0) & (near < distance)
        distance = np.where(hit, near, distance)
        ids = np.where(hit, number + 1, ids)
        ball = (eye + rays * near[..., None] - centre) / radius
        normal = np.where(hit[..., None], ball, normal)
        tint = np.where(hit[..., None], [[0.8, 0.2, 0.2], [0.2, 0.7, 0.3]][number], tint)
    point = eye + rays * distance[..., None]
    checks = np.floor(point * 2.5 + 0.01).sum(axis=-1) % 2
    albedo = tint * (0.6 + 0.4 * checks[..., None])
    way = LIGHT - point
    far = np.linalg.norm(way, axis=-1)
    light = 0.25 + 1.6 * np.maximum((normal * way).sum(axis=-1), 0) / far**3
    irradiance = light[..., None] * np.array([1.0, 0.95, 0.85])
    seen = normal @ rotation  # into the camera's axes, which look along +z; the viewer's z points back
    seen = seen / np.linalg.norm(seen, axis=-1, keepdims=True) * [1, 1, -1]
    return albedo, irradiance, seen, distance, ids

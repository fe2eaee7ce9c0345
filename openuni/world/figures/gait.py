"""Gait: the path along the floor, and the positions of pelvis and feet.

Feet do not move on the floor while they carry weight. All functions take times float64 [T]. The walker's axes: x to the
left, y up, z ahead.
"""

import math
from dataclasses import dataclass

import numpy as np

STANCE = 0.62  # share of the cycle in which a foot is on the ground
PITCH_DEG = ((0.0, -16.0), (0.11, 0.0), (0.4, 0.0), (0.64, 46.0), (0.78, 30.0), (0.92, -12.0), (1.0, -16.0))
LIFT = 0.035  # height of the swinging foot, of the body's height
BOB, SWAY = 0.011, 0.014  # of the pelvis, of the body's height
ANKLE, BALL, HEEL = 0.047, 0.085, 0.032  # height of the ankle, ball of the foot ahead of it, heel behind it


@dataclass(frozen=True)
class Walk:
    """A uniform walk on an arc, or standing if the speed is 0.

    `heading_rad` is 0 towards +z and a quarter turn towards +x. `turn_rad_per_m`: curvature (positive: to the left).
    `stride_m`: length of two steps; `phase` (0..1): start within the cycle.
    """

    start_m: tuple[float, float]  # x and z
    heading_rad: float
    speed_m_per_s: float
    turn_rad_per_m: float = 0.0
    stride_m: float = 1.3
    phase: float = 0.0

    def travelled(self, times_s: np.ndarray) -> np.ndarray:
        """Metres along the way, [T]."""
        return self.speed_m_per_s * np.asarray(times_s, np.float64)

    def heading(self, along_m: np.ndarray) -> np.ndarray:
        """Direction of the way in rad, [T]."""
        return self.heading_rad + self.turn_rad_per_m * np.asarray(along_m, np.float64)

    def place(self, along_m: np.ndarray) -> np.ndarray:
        """The point of the floor, [T, 3], world."""
        along = np.asarray(along_m, np.float64)
        bend = self.turn_rad_per_m
        if abs(bend) < 1e-9:
            x, z = math.sin(self.heading_rad) * along, math.cos(self.heading_rad) * along
        else:
            x = (math.cos(self.heading_rad) - np.cos(self.heading(along))) / bend
            z = (np.sin(self.heading(along)) - math.sin(self.heading_rad)) / bend
        return np.stack([self.start_m[0] + x, np.zeros_like(along), self.start_m[1] + z], axis=-1)

    def cycle(self, times_s: np.ndarray) -> np.ndarray:
        """Cycles since the left heel touched the ground, [T]."""
        return self.phase + self.travelled(times_s) / self.stride_m


def turned(angle_rad: np.ndarray, axis: int) -> np.ndarray:
    """Rotations [T, 3, 3] about x (0), y (1) or z (2), right-handed."""
    angle = np.asarray(angle_rad, np.float64)
    out = np.zeros((*angle.shape, 3, 3))
    first, second = (axis + 1) % 3, (axis + 2) % 3
    out[..., axis, axis] = 1.0
    out[..., first, first] = out[..., second, second] = np.cos(angle)
    out[..., first, second], out[..., second, first] = -np.sin(angle), np.sin(angle)
    return out


def foot(
    walk: Walk, times_s: np.ndarray, height_m: float, aside_m: float, late: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ankle [T, 3] and foot rotation [T, 3, 3] in the world.

    `aside_m`: offset to the left of the path. `late`: cycles by which this foot follows the left one.
    """
    cycle = walk.cycle(times_s) - late
    part = cycle - np.floor(cycle)
    swing = np.clip((part - STANCE) / (1.0 - STANCE), 0.0, 1.0)
    ahead = swing * swing * (3.0 - 2.0 * swing)
    along = walk.travelled(times_s) + (STANCE / 2.0 - part + ahead) * walk.stride_m
    lift = LIFT * height_m * np.sin(math.pi * swing) ** 2
    pitch = np.radians(smooth_keys(part, PITCH_DEG))
    if not walk.speed_m_per_s:
        along, lift, pitch = np.zeros_like(part), np.zeros_like(part), np.zeros_like(part)
    heading = walk.heading(along)
    rotation = turned(heading, 1) @ turned(pitch, 0)
    # the foot turns about its ball while the heel is up, about its heel while the toes are up
    pivot = np.where(pitch > 0.0, BALL, -HEEL) * height_m
    ground = np.stack([np.full_like(pivot, aside_m), lift, pivot], axis=-1)
    ankle = np.stack([np.zeros_like(pivot), np.full_like(pivot, ANKLE * height_m), -pivot], axis=-1)
    return (
        walk.place(along) + apply(turned(heading, 1), ground) + apply(rotation, ankle),
        rotation,
    )


def pelvis(walk: Walk, times_s: np.ndarray, height_m: float, standing_m: float) -> np.ndarray:
    """Middle between the hips [T, 3], world; `standing_m` above the floor on average."""
    along = walk.travelled(times_s)
    # highest and over the left foot when that carries alone
    since = 2.0 * math.pi * (walk.cycle(times_s) - STANCE / 2.0)
    moves = 1.0 if walk.speed_m_per_s else 0.0
    offset = np.stack(
        [
            moves * SWAY * height_m * np.cos(since),
            standing_m + moves * BOB * height_m * np.cos(2.0 * since),
            np.zeros_like(since),
        ],
        axis=-1,
    )
    return walk.place(along) + apply(turned(walk.heading(along), 1), offset)


def smooth_keys(place: np.ndarray, keys: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Values between keys (place, value), [T]: level at every key, smooth in between."""
    at, values = np.array(keys).T
    index = np.clip(np.searchsorted(at, place, side="right") - 1, 0, len(at) - 2)
    share = (place - at[index]) / (at[index + 1] - at[index])
    share = share * share * (3.0 - 2.0 * share)
    return values[index] + (values[index + 1] - values[index]) * share


def apply(rotation: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """`rotation @ vector` for [T, 3, 3] and [T, 3] (or [3])."""
    return np.einsum("tij,tj->ti", rotation, np.broadcast_to(vectors, (len(rotation), 3)))

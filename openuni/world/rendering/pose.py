"""Rigid poses and the paths along which solids move.

World axes: x right, y up, z towards the first camera; metres, seconds. Groups of vectors are [3, n] (component first),
so that each component is one contiguous row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np

Vector = tuple[float, float, float]
# x, y, z of many vectors: an array [3, n], or three arrays of one shape
Components = np.ndarray | Sequence[np.ndarray]

UP: Vector = (0.0, 1.0, 0.0)
ORIGIN: Vector = (0.0, 0.0, 0.0)

MotionKind = Literal["rests", "rolls", "slides", "spins", "bobs", "tumbles"]


@dataclass(frozen=True, eq=False)
class Pose:
    """A rigid placement: `world = rotation @ object + position_m`; float64 [3, 3] and [3]."""

    rotation: np.ndarray
    position_m: np.ndarray


class Path(Protocol):
    """The pose of a solid at every instant, smooth in time. Equal paths compare equal."""

    def pose(self, time_s: float) -> Pose:
        """Where the solid is at `time_s` seconds after the first frame."""
        ...


@dataclass(frozen=True)
class Motion:
    """Uniform translation, uniform rotation about a fixed world axis, and a vertical oscillation, in any combination.

    `kind` is the verb of the caption; it does not affect the motion. `orientation_rad` is the rotation vector (axis
    times angle) at time zero, applied before the rotation.
    """

    kind: MotionKind
    start_m: Vector
    velocity_m_per_s: Vector = ORIGIN
    spin_axis: Vector = UP
    spin_rad_per_s: float = 0.0
    orientation_rad: Vector = ORIGIN
    bob_m: float = 0.0
    bob_hz: float = 0.0

    def pose(self, time_s: float) -> Pose:
        """Where the solid is at `time_s` seconds after the first frame."""
        position = np.array(self.start_m) + time_s * np.array(self.velocity_m_per_s)
        position[1] += self.bob_m * math.sin(2.0 * math.pi * self.bob_hz * time_s)
        angle = math.hypot(*self.orientation_rad)
        rotation = rotation_about(self.orientation_rad, angle) if angle else np.eye(3)
        return Pose(rotation_about(self.spin_axis, self.spin_rad_per_s * time_s) @ rotation, position)


@lru_cache(maxsize=256)  # most of a scene is static
def rotation_about(axis: Vector, angle_rad: float) -> np.ndarray:
    """float64 [3, 3], read-only: turns by `angle_rad` about `axis` (any length but zero), right-handed (Rodrigues)."""
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    rotation = np.eye(3) + math.sin(angle_rad) * cross + (1.0 - math.cos(angle_rad)) * (cross @ cross)
    rotation.flags.writeable = False
    return rotation


def transform(matrix: np.ndarray, vectors: Components, shift: np.ndarray | None = None) -> np.ndarray:
    """`matrix @ vectors + shift` for [3, n] vectors, in the vectors' own dtype.

    Written out because a BLAS product may round differently with another number of threads, and clips must be the same
    bytes in every process; for three components it is no slower.
    """
    x, y, z = vectors
    out = np.empty((3, *x.shape), x.dtype)
    for row, (a, b, c) in enumerate(matrix.tolist()):
        np.multiply(x, a, out=out[row])
        out[row] += y * b
        out[row] += z * c
        if shift is not None:
            out[row] += float(shift[row])
    return out


def dot(one: Components, other: Components) -> np.ndarray:
    """Scalar products of two groups of vectors: [n]."""
    return one[0] * other[0] + one[1] * other[1] + one[2] * other[2]

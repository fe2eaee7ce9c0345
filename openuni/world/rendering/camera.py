"""The camera: a pinhole that moves along a path.

Camera axes: x right, y down, z forward; metres. A point (x, y, z) in front of the camera is seen at the pixel position
(focal_px * x / z + width_px / 2, focal_px * y / z + height_px / 2). The principal point is the centre of the image and
the pixel in row r and column c has its centre at (c + 0.5, r + 0.5). Rays are written as (x, y, 1): the parameter
along such a ray is the depth z itself, not the length of the ray.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from openuni.world.rendering.pose import UP, Components, Vector, rotation_about, transform

CameraKind = Literal["static", "pan", "orbit", "dolly"]


@dataclass(frozen=True)
class Lens:
    """Pinhole intrinsics with square pixels, in pixels."""

    height_px: int
    width_px: int
    focal_px: float

    @classmethod
    def with_view(cls, height_px: int, width_px: int, view_deg: float) -> "Lens":
        """The lens whose field of view is `view_deg` along the shorter side of the image."""
        return cls(height_px, width_px, 0.5 * min(height_px, width_px) / math.tan(math.radians(view_deg) / 2.0))

    def rays(self, samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """x float64 [W * samples] and y float64 [H * samples] of the rays (x, y, 1) through an even grid of samples.

        `samples` per pixel and side; one gives the pixel centres.
        """
        columns = (np.arange(self.width_px * samples) + 0.5) / samples
        rows = (np.arange(self.height_px * samples) + 0.5) / samples
        return (columns - self.width_px / 2.0) / self.focal_px, (rows - self.height_px / 2.0) / self.focal_px

    def inside(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """bool: whether the ray (x, y, 1) meets the image, borders included."""
        return (np.abs(x) <= self.width_px / 2.0 / self.focal_px) & (np.abs(y) <= self.height_px / 2.0 / self.focal_px)


@dataclass(frozen=True, eq=False)
class View:
    """Camera pose at one instant: `camera = rotation @ (world - eye_m)`; float64 [3, 3] and [3]."""

    rotation: np.ndarray
    eye_m: np.ndarray

    def to_camera(self, world: Components) -> np.ndarray:
        """World points [3, n] in camera coordinates [3, n]."""
        return transform(self.rotation, world, -self.rotation @ self.eye_m)

    def to_world(self, camera: Components) -> np.ndarray:
        """Camera points [3, n] in world coordinates [3, n]."""
        return transform(self.rotation.T, camera, self.eye_m)


class Camera(Protocol):
    """A camera with a view at every instant, smooth in time. Equal cameras compare equal."""

    @property
    def view_deg(self) -> float:
        """Field of view along the shorter side of the image."""
        ...

    def view(self, time_s: float) -> View:
        """Where the camera is at `time_s` seconds after the first frame."""
        ...


@dataclass(frozen=True)
class HandheldCamera:
    """A handheld camera: eye and target follow smooth random walks; the view is always upright.

    Both are uniform cubic B-splines of their knots, `step_s` apart: acceleration is continuous, and the path stays in
    the convex hull of its knots. The camera stops at (knots - 3) * step_s.
    """

    eyes_m: tuple[Vector, ...]
    targets_m: tuple[Vector, ...]
    step_s: float
    view_deg: float = 54.0

    def view(self, time_s: float) -> View:
        """Where the camera is at `time_s` seconds after the first frame."""
        return look_at(self._along(self.eyes_m, time_s), self._along(self.targets_m, time_s))

    def _along(self, knots: tuple[Vector, ...], time_s: float) -> np.ndarray:
        place = min(max(time_s / self.step_s, 0.0), len(knots) - 3.0)
        first = min(int(place), len(knots) - 4)
        t = place - first
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        return np.array(weights) @ np.array(knots[first : first + 4]) / 6.0


@dataclass(frozen=True)
class CameraPath:
    """A camera on a simple path, always upright.

    `static`: no motion; `pan`: rotation about its vertical axis (positive `turn_rad_per_s`: to the right); `orbit`: a
    circle about the vertical through `target_m`, looking at it (positive: the camera moves to its right); `dolly`:
    motion along the line of sight (positive `travel_m_per_s`: forward).
    """

    kind: CameraKind
    eye_m: Vector
    target_m: Vector
    turn_rad_per_s: float = 0.0
    travel_m_per_s: float = 0.0
    view_deg: float = 54.0  # along the shorter side of the image

    def view(self, time_s: float) -> View:
        """Where the camera is at `time_s` seconds after the first frame."""
        eye, target = np.array(self.eye_m), np.array(self.target_m)
        turn_rad = self.turn_rad_per_s * time_s
        if self.kind == "pan":
            target = eye + rotation_about(UP, -turn_rad) @ (target - eye)
        elif self.kind == "orbit":
            eye = target + rotation_about(UP, turn_rad) @ (eye - target)
        elif self.kind == "dolly":
            step = self.travel_m_per_s * time_s * (target - eye) / np.linalg.norm(target - eye)
            eye, target = eye + step, target + step
        return look_at(eye, target)


def look_at(eye_m: np.ndarray, target_m: np.ndarray) -> View:
    """The upright view from one point to another; the line of sight must not be vertical."""
    forward = (target_m - eye_m) / np.linalg.norm(target_m - eye_m)
    right = np.cross(forward, UP)
    right /= np.linalg.norm(right)
    return View(np.stack([right, np.cross(forward, right), forward]), np.array(eye_m, dtype=np.float64))

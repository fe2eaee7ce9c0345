"""Collision and visibility tests for object placement. Objects are approximated by their bounding balls."""

import math
from dataclasses import dataclass

import numpy as np

from openuni.world.rendering.camera import Camera, View
from openuni.world.rendering.pose import Path, Vector

INSTANTS = 7  # instants tested per clip; objects must be in the picture at the first, middle and last
GAP_M = 0.08  # minimum distance between objects
NEAR_M = 0.9  # minimum distance from the camera
IN_PICTURE = 0.85  # maximum distance of an object's centre from the image centre (1: the border)


@dataclass(frozen=True, eq=False)
class Track:
    """Positions of a ball at every instant: float64 [instants, 3], in world and in camera axes.

    `upright`: a column standing on the floor instead of a ball; its centre is at half its height.
    """

    world: np.ndarray
    seen: np.ndarray
    bound_m: float
    half_view: float  # tangent of half the field of view
    upright: bool = False


@dataclass(frozen=True, eq=False)
class Watch:
    """A camera's views at the instants of a clip."""

    duration_s: float
    times_s: tuple[float, ...]
    views: tuple[View, ...]
    half_view: float

    @classmethod
    def of(cls, camera: Camera, duration_s: float, instants: int = INSTANTS) -> "Watch":
        """Instants are evenly spaced and include both ends."""
        times_s = tuple(np.linspace(0.0, duration_s, instants).tolist())
        half_view = math.tan(math.radians(camera.view_deg) / 2.0)
        return cls(duration_s, times_s, tuple(camera.view(time_s) for time_s in times_s), half_view)

    def follow(self, path: Path, bound_m: float) -> Track:
        """The track of a solid."""
        return self.track(np.stack([path.pose(time_s).position_m for time_s in self.times_s]), bound_m)

    def track(self, world: np.ndarray, bound_m: float, *, upright: bool = False) -> Track:
        """The track of an object with centres `world`, float64 [instants, 3]."""
        seen = [view.rotation @ (place - view.eye_m) for view, place in zip(self.views, world, strict=True)]
        return Track(world, np.stack(seen), bound_m, self.half_view, upright)


def is_clear(new: Track, others: list[Track], room_m: Vector) -> bool:
    """Whether `new` can be placed in the scene: all tests below pass. `room_m`: half width, height, half length."""
    tracks = [*others, new]
    return (
        stays_in_room(new, room_m)
        and stays_in_picture(new)
        and all(keeps_apart(new, other) for other in others)
        and all(is_shown(track, tracks) for track in tracks)
    )


def stays_in_room(track: Track, room_m: Vector) -> bool:
    """It does not touch walls, ceiling or camera. (It may stand on the floor.)"""
    x, y, z = np.abs(track.world).max(axis=0) + track.bound_m + GAP_M
    near = (track.seen[:, 2] - track.bound_m).min()
    return bool(x < room_m[0] and y < room_m[1] and z < room_m[2] and near > NEAR_M)


def stays_in_picture(track: Track) -> bool:
    """Its centre is inside the picture, away from the border, at the first, middle and last instant."""
    x, y, z = track.seen[[0, len(track.seen) // 2, -1]].T
    return bool((np.maximum(np.abs(x), np.abs(y)) < IN_PICTURE * track.half_view * z).all())


def keeps_apart(one: Track, other: Track) -> bool:
    """The two never touch."""
    offsets = one.world - other.world
    if one.upright or other.upright:
        offsets = offsets[:, [0, 2]]
    return bool(np.linalg.norm(offsets, axis=1).min() > one.bound_m + other.bound_m + GAP_M)


def is_shown(track: Track, tracks: list[Track]) -> bool:
    """At one instant at least, its centre is not behind another ball."""
    distance = np.linalg.norm(track.seen, axis=1)
    hidden = np.zeros(len(distance), bool)
    for other in tracks:
        if other is not track:
            nearer = np.linalg.norm(other.seen, axis=1)
            cosine = (track.seen * other.seen).sum(axis=1) / (distance * nearer)
            # cosine of the ball's angular radius
            outline = np.sqrt(np.maximum(1.0 - (other.bound_m / nearer) ** 2, 0.0))
            hidden |= (nearer < distance) & (cosine > outline)
    return not hidden.all()

"""Whether an object has a clear way through a clip. Objects are taken as the balls around them."""

import math
from dataclasses import dataclass

import numpy as np

from openuni.world.rendering.camera import Camera, View
from openuni.world.rendering.pose import Path, Vector

INSTANTS = 7  # of the clip that are looked at; first, middle and last decide about the picture's borders
GAP_M = 0.08  # least distance between things
NEAR_M = 0.9  # least distance from the camera
IN_PICTURE = 0.85  # how far from the middle of the picture (1 is the border) the middle of an object may be


@dataclass(frozen=True, eq=False)
class Track:
    """Where a ball is at every instant: float64 [instants, 3], in world and in camera axes.

    `upright`: not a ball but a column that stands on the floor, its middle halfway up.
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
        """The instants are even, both ends included."""
        times_s = tuple(np.linspace(0.0, duration_s, instants).tolist())
        half_view = math.tan(math.radians(camera.view_deg) / 2.0)
        return cls(duration_s, times_s, tuple(camera.view(time_s) for time_s in times_s), half_view)

    def follow(self, path: Path, bound_m: float) -> Track:
        """The track of a solid."""
        return self.track(np.stack([path.pose(time_s).position_m for time_s in self.times_s]), bound_m)

    def track(self, world: np.ndarray, bound_m: float, *, upright: bool = False) -> Track:
        """The track of what is at `world` float64 [instants, 3]."""
        seen = [view.rotation @ (place - view.eye_m) for view, place in zip(self.views, world, strict=True)]
        return Track(world, np.stack(seen), bound_m, self.half_view, upright)


def is_clear(new: Track, others: list[Track], room_m: Vector) -> bool:
    """Whether `new` can be in the scene: see the texts of the parts. `room_m`: half width, height, half length."""
    tracks = [*others, new]
    return (
        stays_in_room(new, room_m)
        and stays_in_picture(new)
        and all(keeps_apart(new, other) for other in others)
        and all(is_shown(track, tracks) for track in tracks)
    )


def stays_in_room(track: Track, room_m: Vector) -> bool:
    """It touches neither walls, ceiling nor camera. (It may stand on the floor.)"""
    x, y, z = np.abs(track.world).max(axis=0) + track.bound_m + GAP_M
    near = (track.seen[:, 2] - track.bound_m).min()
    return bool(x < room_m[0] and y < room_m[1] and z < room_m[2] and near > NEAR_M)


def stays_in_picture(track: Track) -> bool:
    """Its middle is in the picture, not close to the border, at the start, in the middle and at the end."""
    x, y, z = track.seen[[0, len(track.seen) // 2, -1]].T
    return bool((np.maximum(np.abs(x), np.abs(y)) < IN_PICTURE * track.half_view * z).all())


def keeps_apart(one: Track, other: Track) -> bool:
    """The two never touch."""
    apart = one.world - other.world
    if one.upright or other.upright:
        apart = apart[:, [0, 2]]
    return bool(np.linalg.norm(apart, axis=1).min() > one.bound_m + other.bound_m + GAP_M)


def is_shown(track: Track, tracks: list[Track]) -> bool:
    """Its middle is behind no other ball at one instant at least."""
    distance = np.linalg.norm(track.seen, axis=1)
    hidden = np.zeros(len(distance), bool)
    for other in tracks:
        if other is not track:
            nearer = np.linalg.norm(other.seen, axis=1)
            cosine = (track.seen * other.seen).sum(axis=1) / (distance * nearer)
            outline = np.sqrt(
                np.maximum(1.0 - (other.bound_m / nearer) ** 2, 0.0)
            )  # cosine of the ball's angular radius
            hidden |= (nearer < distance) & (cosine > outline)
    return not hidden.all()

"""Ground truth of one instant: depth, instances, flow. Float64, at the centres of the pixels."""

import numpy as np

from openuni.world.camera import Lens
from openuni.world.pose import transform
from openuni.world.rays import Hits, cast, hidden
from openuni.world.scene import Moment

NEAR_M = 1e-3  # a point that comes nearer to the camera's plane than this has no position in the image


def look(moment: Moment, lens: Lens) -> Hits:
    """Solid and depth in metres (z, not the length of the ray) of every pixel; float64 [H, W]."""
    return cast(moment, *lens.rays())


def instances(moment: Moment, hits: Hits) -> np.ndarray:
    """uint16 [H, W]: 0 for the room, else the number of the object."""
    return np.array([solid.instance for solid in moment.scene.solids], np.uint16)[hits.solid]


def flow(now: Moment, after: Moment, lens: Lens, hits: Hits) -> tuple[np.ndarray, np.ndarray]:
    """Where the point seen in each pixel goes: float32 [H, W, 2] in pixels (x right, y down) and valid bool [H, W].

    The point of the solid is carried along with the solid and seen by the later camera. It is valid when it is then
    inside the image and no solid (its own included) is in front of it there; a ray is cast through the exact place for
    that, not through the nearest pixel. The flow is true where it is not valid too, except for points that come to lie
    behind the camera, where it is zero.
    """
    x, y = lens.rays()
    depth = hits.depth_m.ravel()
    x_now, y_now = np.broadcast_to(x, hits.depth_m.shape).ravel(), np.repeat(y, len(x))
    x_after, y_after, depth_after = x_now.copy(), y_now.copy(), depth.copy()
    for index, ((rotation, shift), (rotation_after, shift_after)) in enumerate(
        zip(now.placements, after.placements, strict=True)
    ):
        if np.array_equal(rotation, rotation_after) and np.array_equal(shift, shift_after):
            continue  # what stays has a flow of exactly zero, not of a rounding error
        seen = np.flatnonzero(hits.solid.ravel() == index)
        z = depth.take(seen)
        points = (x_now.take(seen) * z, y_now.take(seen) * z, z)
        turn = rotation_after @ rotation.T
        moved = transform(turn, points, shift_after - turn @ shift)
        in_front = moved[2] > NEAR_M
        z_after = np.where(in_front, moved[2], 1.0)
        x_after[seen] = np.where(in_front, moved[0] / z_after, x_now.take(seen))
        y_after[seen] = np.where(in_front, moved[1] / z_after, y_now.take(seen))
        depth_after[seen] = np.where(in_front, moved[2], np.nan)
    valid = lens.inside(x_after, y_after) & np.isfinite(depth_after)
    kept = np.flatnonzero(valid)
    valid[kept] = ~hidden(after, x_after.take(kept), y_after.take(kept), depth_after.take(kept))
    shape = hits.depth_m.shape
    pixels = np.stack([x_after - x_now, y_after - y_now], axis=-1) * lens.focal_px
    return pixels.astype(np.float32).reshape(*shape, 2), valid.reshape(shape)

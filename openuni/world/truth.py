"""Ground truth of one instant: depth, instances, optical flow, normals, key points, body surface.

Computed in float64, at the pixel centres.
"""

from collections.abc import Iterator

import numpy as np

from openuni.world.figures import keypoints
from openuni.world.figures.body import PartPath, posture
from openuni.world.rendering.camera import Lens
from openuni.world.rendering.pose import transform
from openuni.world.rendering.rays import Hits, cast, hidden, probe, tile_order
from openuni.world.rendering.shapes import Dome
from openuni.world.scene import Moment

NEAR_M = 1e-3  # points closer to the camera plane than this have no image position


def first_hits(moment: Moment, lens: Lens) -> Hits:
    """Solid and depth in metres (z, not the ray length) of every pixel; float64 [H, W]."""
    return cast(moment, *lens.rays())


def instances(moment: Moment, hits: Hits) -> np.ndarray:
    """uint16 [H, W]: 0 for the room, else the number of the object."""
    return np.array([solid.instance for solid in moment.scene.solids], np.uint16)[hits.solid]


def flow(now: Moment, after: Moment, lens: Lens, hits: Hits) -> tuple[np.ndarray, np.ndarray]:
    """Displacement of the point seen in each pixel: float32 [H, W, 2] in pixels (x right, y down); valid, bool [H, W].

    The point is moved with its solid and projected by the later camera. It is valid if it is then inside the image and
    no solid (its own included) is in front of it; a ray is cast through the exact position, not the nearest pixel. The
    flow is also correct where it is not valid, except for points that move behind the camera, where it is zero.
    """
    x, y = lens.rays()
    depth = hits.depth_m.ravel()
    x_now, y_now = np.broadcast_to(x, hits.depth_m.shape).ravel(), np.repeat(y, len(x))
    x_after, y_after, depth_after = x_now.copy(), y_now.copy(), depth.copy()
    for index, ((rotation, shift), (rotation_after, shift_after)) in enumerate(
        zip(now.placements, after.placements, strict=True)
    ):
        if np.array_equal(rotation, rotation_after) and np.array_equal(shift, shift_after):
            continue  # static solids get a flow of exactly zero, without rounding errors
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
    order = tile_order(*hits.depth_m.shape)  # group neighbours, whose occluders are found together
    kept = order[valid.take(order)]
    valid[kept] = ~hidden(after, x_after.take(kept), y_after.take(kept), depth_after.take(kept))
    shape = hits.depth_m.shape
    pixels = np.stack([x_after - x_now, y_after - y_now], axis=-1) * lens.focal_px
    return pixels.astype(np.float32).reshape(*shape, 2), valid.reshape(shape)


def surfaces(moment: Moment, lens: Lens, hits: Hits) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Per visible solid: its index, pixels [n], normals in camera axes [3, n] (or [3, 1]), and uv [2, n]."""
    x, y = lens.rays()
    solid, depth = hits.solid.ravel(), hits.depth_m.ravel()
    grouped = np.argsort(solid, kind="stable")
    starts = np.flatnonzero(np.diff(solid.take(grouped), prepend=-1))
    for seen in np.split(grouped, starts[1:]):
        index, z = int(solid[seen[0]]), depth.take(seen)
        row, column = np.divmod(seen, len(x))
        rotation, shift = moment.placements[index]
        camera = (x.take(column) * z, y.take(row) * z, z)
        normals, uv = moment.scene.solids[index].shape.surface(transform(rotation.T, camera, -rotation.T @ shift))
        yield index, seen, transform(rotation, normals), uv


def normal(moment: Moment, lens: Lens, hits: Hits) -> np.ndarray:
    """float32 [H, W, 3]: +x right, +y up, +z towards the viewer, unit length; zero on the sky."""
    out = np.zeros((hits.solid.size, 3), np.float32)
    for index, seen, normals, _ in surfaces(moment, lens, hits):
        if not isinstance(moment.scene.solids[index].shape, Dome):
            out[seen] = (normals * np.array([[1.0], [-1.0], [-1.0]])).T
    return out.reshape(*hits.solid.shape, 3)


def densepose(moment: Moment, lens: Lens, hits: Hits) -> np.ndarray:
    """uint8 [H, W, 3]: I, U * 255, V * 255 as in `keypoints.densepose`; zero where there is no body."""
    out = np.zeros((hits.solid.size, 3), np.uint8)
    for index, seen, _, uv in surfaces(moment, lens, hits):
        path = moment.scene.solids[index].path
        if isinstance(path, PartPath):
            out[seen] = keypoints.densepose(path.part, uv).T
    return out.reshape(*hits.solid.shape, 3)


def skeleton(moment: Moment, lens: Lens) -> np.ndarray:
    """float32 [P, 133, 3] of the scene's bodies: x and y in pixels, confidence.

    Confidence 1: visible, i.e. the first hit on the point's ray is the body part that it belongs to. 0.5: occluded,
    including by the same body. 0, with x = y = 0: outside the picture, or a point that bodies do not have.
    """
    points = keypoints.key_points()
    out = np.zeros((len(moment.scene.bodies), keypoints.POINT_COUNT, 3), np.float32)
    for person, body in enumerate(moment.scene.bodies):
        places = keypoints.places(body, posture(body, np.array([moment.time_s])))[0]
        across, down, depth = moment.view.to_camera(places.T)
        in_front = depth > NEAR_M
        x, y = across / np.where(in_front, depth, 1.0), down / np.where(in_front, depth, 1.0)
        inside = np.flatnonzero(in_front & lens.inside(x, y))
        met = probe(moment, x[inside], y[inside])
        for place, solid, met_m in zip(inside.tolist(), met.solid.tolist(), met.depth_m.tolist(), strict=True):
            point, path = points[place], moment.scene.solids[solid].path
            own = solid >= 0 and isinstance(path, PartPath) and path.body == body and path.part in point.owners
            seen = own and abs(met_m - depth[place]) <= point.slack * body.height_m
            pixel = (lens.focal_px * x[place] + lens.width_px / 2.0, lens.focal_px * y[place] + lens.height_px / 2.0)
            out[person, point.number] = (*pixel, 1.0 if seen else 0.5)
    return out

"""Depth, flow and instances of scenes that can be computed by hand, and against independent projections."""

import math

import numpy as np
import pytest

from openuni.world import truth
from openuni.world.clips import render_arrays
from openuni.world.presets import random_scene
from openuni.world.rendering.camera import CameraPath, Lens, View, look_at
from openuni.world.rendering.pose import ORIGIN, Motion, Vector, rotation_about
from openuni.world.rendering.shapes import Box, Shape, Sphere
from openuni.world.sample import draw_room
from openuni.world.scene import Light, Material, Moment, Scene, Solid

LENS = Lens(129, 129, 120.0)  # odd, so that a pixel's centre is the principal point
EYE: Vector = (0.0, 1.5, 3.0)  # looking along -z; the back wall is at z = -4.2
BACK_WALL_M = 7.2
CLOTH = Material("red", "white", "checkered")


def placed(shape: Shape, place: Vector, velocity: Vector = ORIGIN, instance: int = 1) -> Solid:
    return Solid(shape, CLOTH, Motion("slides", place, velocity), instance)


def scene_of(*objects: Solid) -> Scene:
    camera = CameraPath("static", EYE, (0.0, 1.5, 0.0))
    return Scene((*draw_room(np.random.default_rng(0)), *objects), (Light((0.0, 2.8, 2.0), 5.0),), 0.3, camera)


def test_a_sphere_straight_ahead_has_the_depth_and_the_outline_of_geometry() -> None:
    moment = scene_of(placed(Sphere(0.5), (0.0, 1.5, -1.0))).opening
    hits = truth.first_hits(moment, LENS)
    assert hits.depth_m[64, 64] == pytest.approx(3.5, abs=1e-12)
    ids = truth.instances(moment, hits)
    outline_px = LENS.focal_px * math.tan(math.asin(0.5 / 4.0))
    rows, columns = np.nonzero(ids)
    assert abs(math.sqrt(len(rows) / math.pi) - outline_px) < 0.2
    assert abs(np.hypot(rows - 64, columns - 64).max() - outline_px) < 1.0
    assert hits.depth_m[64, 5] == pytest.approx(BACK_WALL_M)


def test_depth_is_z_and_not_the_length_of_the_ray() -> None:
    hits = truth.first_hits(scene_of().opening, LENS)
    wall = hits.depth_m[hits.solid == 2]
    assert len(wall) > 2000
    assert np.allclose(wall, BACK_WALL_M, atol=1e-12)


def test_a_square_in_front_has_known_borders_and_moves_by_f_v_over_z() -> None:
    square = placed(Box((0.5, 0.5, 0.05)), (0.01, 1.51, -0.05), velocity=(0.8, -0.4, 0.0))
    scene = scene_of(square)
    hits = truth.first_hits(scene.opening, LENS)
    flow, valid = truth.flow(scene.opening, scene.at(1.0 / 16.0), LENS, hits)
    on_square = hits.solid == 6
    rows, columns = np.nonzero(on_square)
    # half a metre at 3 m is 20 px; moved aside by 0.4 px, the borders lie between pixel centres
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (45, 84, 44, 83)
    assert len(rows) == 40 * 40
    assert np.allclose(hits.depth_m[on_square], 3.0, atol=1e-12)
    assert np.allclose(flow[on_square], [120.0 * 0.8 / 16 / 3.0, 120.0 * 0.4 / 16 / 3.0], atol=1e-5)  # y goes down
    assert valid[on_square].all()
    assert (flow[~on_square] == 0.0).all()


def test_a_camera_that_steps_aside_moves_everything_by_f_t_over_z() -> None:
    scene = scene_of(placed(Sphere(0.5), (0.3, 1.4, -1.0)))
    now = scene.opening
    after = Moment(scene, View(now.view.rotation, now.view.eye_m + np.array([0.06, 0.0, 0.0])), now.poses)
    hits = truth.first_hits(now, LENS)
    flow, _ = truth.flow(now, after, LENS, hits)
    assert np.allclose(flow[..., 0], -LENS.focal_px * 0.06 / hits.depth_m, atol=1e-5)
    assert np.allclose(flow[..., 1], 0.0, atol=1e-5)


def test_what_a_moving_square_covers_and_what_leaves_the_picture_is_not_valid() -> None:
    square = placed(Box((0.5, 0.5, 0.05)), (0.011, 1.509, -0.05), velocity=(1.6, 0.0, 0.0))  # 4 px per frame
    scene = scene_of(square)
    hits = truth.first_hits(scene.opening, LENS)
    _, valid = truth.flow(scene.opening, scene.at(1.0 / 16.0), LENS, hits)
    on_square = hits.solid == 6
    right = np.nonzero(on_square)[1].max()
    expected = np.ones_like(valid)
    expected[on_square.any(axis=1), right + 1 : right + 5] = False
    assert np.array_equal(valid, expected)

    turned = Moment(scene, look_at(np.array(EYE), np.array([0.4, 1.5, 0.0])), scene.opening.poses)  # to the right
    flow, valid = truth.flow(scene.opening, turned, LENS, hits)
    columns, rows = np.arange(129) + 0.5 + flow[..., 0], np.arange(129)[:, None] + 0.5 + flow[..., 1]
    outside = (columns < 0) | (columns > 129) | (rows < 0) | (rows > 129)
    assert outside.sum() > 1000
    assert not valid[outside].any()
    assert valid[~outside].all()


def test_a_turning_solid_hides_its_own_far_side() -> None:
    turning = Solid(Sphere(0.5), CLOTH, Motion("spins", (0.0, 1.5, -1.0), spin_rad_per_s=4.8), 1)  # 0.3 rad per frame
    scene = scene_of(turning)
    hits = truth.first_hits(scene.opening, LENS)
    _, valid = truth.flow(scene.opening, scene.at(1.0 / 16.0), LENS, hits)
    rows, columns = np.nonzero(hits.solid == 6)
    x, y = LENS.rays()
    depth = hits.depth_m[rows, columns]
    points = np.stack([x[columns] * depth, -y[rows] * depth, 4.0 - depth])  # about the centre, world axes
    moved = rotation_about((0.0, 1.0, 0.0), 0.3) @ points
    facing = (moved * (np.array([[0.0], [0.0], [4.0]]) - moved)).sum(axis=0) > 0.0
    assert 10 < (~facing).sum() < len(rows) / 3
    assert np.array_equal(valid[rows, columns], facing)


def matrix(rotation: np.ndarray, shift: np.ndarray) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = rotation, shift
    return out


@pytest.mark.parametrize("seed", [0, 2, 6, 7, 100, 104])
def test_depth_poses_and_cameras_alone_give_the_same_flow(seed: int) -> None:
    """An independent way: 4 x 4 matrices, unproject the stored depth, move, project."""
    scene = random_scene(seed, 0.5)
    lens = Lens.with_view(60, 80, scene.camera.view_deg)
    arrays = render_arrays(scene, 4, 8.0, lens)
    intrinsics = np.array([[lens.focal_px, 0, 40.0], [0, lens.focal_px, 30.0], [0, 0, 1]])
    rows, columns = np.mgrid[0:60, 0:80] + 0.5
    pixels = np.stack([columns.ravel(), rows.ravel(), np.ones(4800)])
    for step in range(3):
        depth = arrays["depth"][step].ravel().astype(np.float64)
        camera_points = np.concatenate([np.linalg.inv(intrinsics) @ pixels * depth, np.ones((1, 4800))])
        views = [scene.camera.view(time_s) for time_s in (step / 8.0, (step + 1) / 8.0)]
        cameras = [matrix(view.rotation, -view.rotation @ view.eye_m) for view in views]
        expected = np.full((4800, 2), np.nan)
        ids = arrays["segmentation"][step].ravel()
        for instance in np.unique(ids):
            carried = np.eye(4)
            if instance:
                path = scene.objects[int(instance)].path
                poses = [path.pose(step / 8.0), path.pose((step + 1) / 8.0)]
                before, later = (matrix(pose.rotation, pose.position_m) for pose in poses)
                carried = later @ np.linalg.inv(before)
            moved = cameras[1] @ carried @ np.linalg.inv(cameras[0]) @ camera_points
            projected = intrinsics @ moved[:3]
            expected[ids == instance] = (projected[:2] / projected[2] - pixels[:2]).T[ids == instance]
        assert np.abs(arrays["flow"][step].reshape(-1, 2) - expected).max() < 1e-3


@pytest.mark.parametrize("seed", range(12))
def test_the_middle_of_an_object_is_labelled_as_that_object_unless_hidden(seed: int) -> None:
    scene = random_scene(seed, 1.0)
    lens = Lens.with_view(64, 64, scene.camera.view_deg)
    for time_s in (0.0, 0.5, 1.0):
        moment = scene.at(time_s)
        hits = truth.first_hits(moment, lens)
        ids = truth.instances(moment, hits)
        assert np.isfinite(hits.depth_m).all() and (hits.solid >= 0).all()
        for instance, solid in scene.objects.items():
            x, y, z = moment.view.to_camera(solid.path.pose(time_s).position_m[:, None])[:, 0]
            column, row = int(32 + lens.focal_px * x / z), int(32 + lens.focal_px * y / z)
            if 0 <= column < 64 and 0 <= row < 64 and ids[row, column] != instance:
                assert ids[row, column] != 0 and hits.depth_m[row, column] < z

"""Normals from depth: planes of known tilt, the world's surfaces, edges, and what disparity cannot say."""

import dataclasses

import cv2
import numpy as np
import pytest

from openuni.annotators.normals_from_depth import NormalsFromDepth, normals, slopes
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import OpenUniError, Unavailable
from openuni.manifests.modalities.depth import Depth
from openuni.world import make_clip

FOCAL_PX = 80.0
HEIGHT_PX, WIDTH_PX = 48, 64


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: depth in metres beside the frames."""
    ramp = np.linspace(1, 3, frames[..., :1].size, dtype=np.float32).reshape(frames[..., :1].shape)
    return NormalsFromDepth(), with_depth(frames, Depth(ramp, unit="metres"))


def with_depth(frames, depth):
    return dataclasses.replace(DecodedClip.from_frames(frames), maps={"depth": depth})


def plane(normal, distance_m=3.0, height_px=HEIGHT_PX, width_px=WIDTH_PX):
    """1 / depth of a plane whose normal (x right, y up, z to the viewer) is given, that far away on the axis."""
    x = (np.arange(width_px) + 0.5 - width_px / 2) / FOCAL_PX
    y = ((np.arange(height_px) + 0.5 - height_px / 2) / FOCAL_PX)[:, None]
    right, up, back = normal
    # the point (x, -y, -1) z (y up, z to the viewer) lies on it: right x z - up y z - back z = -back distance_m
    return (back - right * x + up * y) / (back * distance_m)


def unit(*vector):
    return np.array(vector) / np.linalg.norm(vector)


@pytest.mark.parametrize(
    "normal",
    [(0, 0, 1), (0.6, 0, 0.8), (-0.6, 0, 0.8), (0, 0.8, 0.6), (0, -0.5, 0.8), (0.4, 0.5, 0.7), (0, 0.9, 0.4)],
    ids=["wall", "faces right", "faces left", "floor", "ceiling", "tilted", "flatter floor"],
)
def test_a_plane_has_its_normal_in_every_pixel(normal):
    inverse = plane(unit(*normal))
    assert inverse.min() > 0, "all of it is in front of the camera"
    assert np.abs(normals(inverse, FOCAL_PX) - unit(*normal)).max() < 1e-6
    assert np.abs(normals(inverse * 7, FOCAL_PX) - unit(*normal)).max() < 1e-6, "the scale does not matter"


def test_the_floor_looks_up_and_the_wall_to_the_right_looks_left():
    floor = normals(plane(unit(0, 0.8, 0.6)), FOCAL_PX)
    assert (floor[..., 1] > 0.7).all()
    nearer_to_the_right = np.repeat(np.linspace(0.2, 0.5, WIDTH_PX)[None], HEIGHT_PX, axis=0)
    assert (normals(nearer_to_the_right, FOCAL_PX)[..., 0] < 0).all()


@pytest.mark.parametrize(("preset", "seed"), [("interiors", 0), ("solids", 3), ("person", 1)])
def test_the_worlds_depth_gives_its_normals_within_2_degrees_on_smooth_surfaces(preset, seed):
    """Of depth as it is stored. Smooth: one solid within 2 px, whose normal turns by less than 12 degrees there."""
    world = make_clip(
        seed, frames=2, height_px=120, width_px=160, preset=preset, modalities=["depth", "normal", "segmentation"]
    )
    payload = world.modalities["depth"].encode(24.0)
    operator = NormalsFromDepth(focal_px=world.lens.focal_px)
    found = operator.run(None, with_depth(world.frames, Depth.decode(payload.data, payload.constants))).normal.array
    true = world.modalities["normal"].array
    angle_deg = np.degrees(np.arccos(np.clip((found * true).sum(axis=-1), -1, 1)))
    smooth = np.stack([is_smooth(*pair) for pair in zip(true, world.modalities["segmentation"].array, strict=True)])
    assert smooth.mean() > 0.5
    assert np.percentile(angle_deg[smooth], 99.5) < 2 and angle_deg[smooth].mean() < 0.1
    assert np.median(angle_deg[np.linalg.norm(true, axis=-1) > 0]) < 0.1
    wrong = dataclasses.replace(operator, focal_px=2 * world.lens.focal_px).run(
        None, with_depth(world.frames, world.modalities["depth"])
    )
    assert np.degrees(np.arccos(np.clip((wrong.normal.array * true).sum(axis=-1), -1, 1)))[smooth].mean() > 2


def is_smooth(true, ids):
    around = np.ones((5, 5), np.uint8)
    turn = (cv2.dilate(true, around) - cv2.erode(true, around)).max(axis=-1)
    one = cv2.dilate(ids[..., 0], around) == cv2.erode(ids[..., 0], around)
    return (turn < 0.2) & one & (np.linalg.norm(true, axis=-1) > 0)


def test_no_normal_mixes_two_surfaces_at_an_edge_of_depth():
    near, far = unit(0.5, 0.2, 0.8), unit(-0.3, 0, 0.9)
    inverse = plane(far, 6.0)
    inverse[12:36, 20:44] = plane(near, 2.0)[12:36, 20:44]
    wanted = np.broadcast_to(far, (HEIGHT_PX, WIDTH_PX, 3)).copy()
    wanted[12:36, 20:44] = near
    assert np.abs(normals(inverse, FOCAL_PX) - wanted).max() < 1e-6


def test_a_crease_keeps_both_sides():
    left, right = unit(0.7, 0, 0.7), unit(-0.7, 0, 0.7)
    meeting = np.where(np.arange(WIDTH_PX) < WIDTH_PX // 2, plane(left), plane(right))
    found = normals(meeting, FOCAL_PX)
    assert np.abs(found[:, :30] - left).max() < 1e-6 and np.abs(found[:, 34:] - right).max() < 1e-6


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_slopes_of_narrow_maps(width):
    line = np.repeat(1 + 0.5 * np.arange(width)[None], 3, axis=0)
    assert np.allclose(slopes(line), 0.5 if width > 1 else 0)


def test_slopes_of_a_curve_are_central():
    x = np.arange(20.0)
    assert np.allclose(slopes((5 + 0.01 * x**2)[None])[0, 2:-2], 0.02 * x[2:-2])


def frames(count=2):
    return np.zeros((count, HEIGHT_PX, WIDTH_PX, 3), np.uint8)


def test_disparity_without_an_assumption_is_unavailable():
    depth = Depth(np.ones((2, HEIGHT_PX, WIDTH_PX, 1), np.float32))
    with pytest.raises(Unavailable, match="far_near_ratio"):
        NormalsFromDepth().run(None, with_depth(frames(), depth))


def test_disparity_with_the_right_assumption_gives_the_same_as_metres():
    inverse = np.stack([plane(unit(0.4, 0.5, 0.7)), plane(unit(-0.2, 0.6, 0.7), 4.0)])[..., None].astype(np.float32)
    metres, disparity = Depth(1 / inverse, unit="metres"), Depth(40 * (inverse - inverse.min()))
    ratio = float(inverse.max() / inverse.min())
    wanted = NormalsFromDepth().run(None, with_depth(frames(), metres)).normal.array
    found = NormalsFromDepth(far_near_ratio=ratio).run(None, with_depth(frames(), disparity)).normal.array
    assert np.abs(found - wanted).max() < 1e-4
    other = NormalsFromDepth(far_near_ratio=3 * ratio).run(None, with_depth(frames(), disparity)).normal.array
    assert np.abs(other - wanted).max() > 0.1
    flat = NormalsFromDepth(far_near_ratio=2.0).run(None, with_depth(frames(), Depth(np.ones_like(inverse))))
    assert np.array_equal(flat.normal.array[..., 2], np.ones((2, HEIGHT_PX, WIDTH_PX)))


def test_the_focal_length_is_of_the_source_and_the_map_may_be_smaller():
    normal = unit(0.4, 0.5, 0.7)
    small = Depth(1 / plane(normal)[None, ..., None].astype(np.float32), unit="metres")
    clip = with_depth(np.zeros((1, 2 * HEIGHT_PX, 2 * WIDTH_PX, 3), np.uint8), small)
    found = NormalsFromDepth(focal_px=2 * FOCAL_PX).run(None, clip)
    assert found.normal.array.shape == (1, HEIGHT_PX, WIDTH_PX, 3) and found.flow_change_deg is None
    assert np.abs(found.normal.array - normal).max() < 1e-4
    view_deg = float(np.degrees(2 * np.arctan(WIDTH_PX / 2 / FOCAL_PX)))
    by_view = NormalsFromDepth(view_deg=view_deg).run(None, clip).normal.array
    assert np.abs(by_view - normal).max() < 1e-4


def test_it_starts_from_the_depth_that_is_named():
    assert NormalsFromDepth().requires() == ("depth",)
    assert NormalsFromDepth(depth="video_depth.depth").requires() == ("video_depth.depth",)


@pytest.mark.parametrize("wrong", [{"view_deg": 0}, {"view_deg": 180}, {"focal_px": -1}, {"far_near_ratio": 0.5}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        NormalsFromDepth(**wrong)

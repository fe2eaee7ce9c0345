"""Scores of how steady maps are along the motion."""

import numpy as np
import pytest

from openuni.annotators._temporal_consistency import depth_change_share, mean_change, normal_change_deg, warped_change
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.modalities.albedo import Albedo
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.normal import Normal
from openuni.world import make_clip
from tests.moving_pictures import panned, texture


@pytest.fixture(scope="module")
def moving():
    return DecodedClip.from_frames(panned([(4 * t, 0) for t in range(5)], 96, 128))


def slope(offset_px=0, count=5, height_px=96, width_px=128):
    """Disparity 1 to 2 from left to right, moved to the right by `offset_px` per frame."""
    x = np.arange(width_px, dtype=np.float32)[None, None, :] - offset_px * np.arange(count)[:, None, None]
    return np.repeat(1 + x / (width_px - 1), height_px, axis=1).astype(np.float32)[..., None]


def test_a_clip_in_which_nothing_moves_is_perfectly_steady():
    still = make_clip(0, frames=4, height_px=64, width_px=80, preset="still", modalities=["depth", "normal"])
    clip = DecodedClip.from_frames(still.frames)
    assert depth_change_share(clip, still.modalities["depth"]) == 0.0
    assert normal_change_deg(clip, still.modalities["normal"]) == 0.0


def test_what_moves_with_the_picture_is_steady_and_what_stays_is_not(moving):
    along = depth_change_share(moving, Depth(slope(4) + 1))
    left_behind = depth_change_share(moving, Depth(slope(0)))
    assert along < 0.002
    # 4 px of a slope of 1 / 127 per pixel, as a share of the middle 90 % of its range
    assert left_behind == pytest.approx(4 / 127 / 0.9, rel=0.03)


def test_planted_flicker_comes_out_as_it_was_planted():
    clip = DecodedClip.from_frames(np.repeat(texture(96, 128)[None], 5, axis=0))
    shift = np.array([0, 0.09, 0, 0.09, 0], np.float32)[:, None, None, None]
    values = slope() + shift
    lo, hi = np.percentile(values, [5, 95])
    planted = 0.09 / (hi - lo)
    assert depth_change_share(clip, Depth(values)) == pytest.approx(planted, rel=1e-3)
    assert depth_change_share(clip, Depth(values * 7 + 3)) == pytest.approx(planted, rel=1e-3), "one scale and shift"
    assert depth_change_share(clip, Depth(1 / values, unit="metres")) == pytest.approx(planted, rel=1e-3)


def test_one_jump_in_a_clip_counts():
    clip = DecodedClip.from_frames(np.repeat(texture(96, 128)[None], 5, axis=0))
    values = slope()
    values[2:] += 1
    lo, hi = np.percentile(values, [5, 95])
    assert depth_change_share(clip, Depth(values)) == pytest.approx(1 / (hi - lo) / 4, rel=1e-3)


def test_turned_normals_count_in_degrees():
    clip = DecodedClip.from_frames(np.repeat(texture(48, 64)[None], 2, axis=0))
    turn = np.radians(10)
    normals = np.zeros((2, 48, 64, 3), np.float32)
    normals[0, ..., 2] = 1
    normals[1] = np.sin(turn), 0, np.cos(turn)
    assert normal_change_deg(clip, Normal(normals)) == pytest.approx(10, abs=1e-3)
    normals[1] = 0
    assert normal_change_deg(clip, Normal(normals)) == 90.0


def test_colours_and_maps_smaller_than_the_frames():
    clip = DecodedClip.from_frames(np.repeat(texture(48, 64)[None], 3, axis=0))
    albedo = np.full((3, 24, 32, 3), 0.5, np.float32)
    albedo[1] = 0.2
    assert warped_change(clip, Albedo(albedo), mean_change) == pytest.approx(0.3)


def test_nothing_to_follow_is_null():
    one = DecodedClip.from_frames(texture(48, 64)[None])
    assert depth_change_share(one, Depth(slope(0, 1, 48, 64))) is None
    thin = DecodedClip.from_frames(np.zeros((3, 4, 64, 3), np.uint8))
    assert depth_change_share(thin, Depth(slope(0, 3, 4, 64))) is None
    flat = DecodedClip.from_frames(np.repeat(texture(48, 64)[None], 2, axis=0))
    assert depth_change_share(flat, Depth(np.ones((2, 48, 64, 1), np.float32))) is None

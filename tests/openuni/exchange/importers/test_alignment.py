"""Streams out of step are found on slow and fast, clean and noisy clips; aligned and still ones are not refused."""

import numpy as np
import pytest

from openuni.exchange.importers._alignment import align_by_structure, align_by_values, shifted, thumbnails
from openuni.manifests.arrays.srgb import linear_to_srgb
from openuni.world import make_clip
from tests.openuni.exchange.importers.rooms import render

FRAMES, MARGIN = 14, 3


def clip(late: int, speed: float, noise: float) -> tuple[np.ndarray, ...]:
    """Picture, normals and albedo that run `late` frames behind, and light, as thumbnails."""
    room = render(FRAMES + 2 * MARGIN, speed=speed)
    now, then = slice(MARGIN, MARGIN + FRAMES), slice(MARGIN - late, MARGIN - late + FRAMES)
    light = room.rgb[now] + np.random.default_rng(0).normal(0, noise, room.rgb[now].shape)
    picture = linear_to_srgb(np.clip(light, 0, 1))
    return tuple(map(thumbnails, (picture, room.normal[then], room.albedo[then], room.irradiance[now])))


def values(albedo: np.ndarray, light: np.ndarray, picture: np.ndarray):
    return align_by_values(lambda frames: linear_to_srgb(np.clip(shifted(albedo, frames) * light, 0, 1)), picture)


@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize("speed", [0.01, 0.06])
@pytest.mark.parametrize("late", [-2, -1, 0, 1, 2])
def test_shifts_are_found_and_counted(late, speed, noise):
    picture, normal, albedo, light = clip(late, speed, noise)
    assert values(albedo, light, picture) == (late, True)
    verdict = align_by_structure(normal, picture)
    assert verdict.confirmed and np.sign(verdict.shift) == np.sign(late)


def test_a_clip_that_stands_still_cannot_tell():
    picture, normal, albedo, light = clip(1, 0.0, 0.01)
    assert values(albedo, light, picture) == (0, False)
    assert align_by_structure(normal, picture) == (0, False)


def test_a_frame_dropped_in_the_middle_is_found():
    room = render(30)
    kept = np.r_[0:12, 13:30]  # the map lost a frame and is as long as a picture that lost its last
    picture = thumbnails(linear_to_srgb(np.clip(room.rgb[:29], 0, 1)))
    albedo, normal, light = (thumbnails(array[:29]) for array in (room.albedo, room.normal, room.irradiance))
    assert values(albedo, light, picture).shift == 0
    assert values(thumbnails(room.albedo[kept]), light, picture).shift == -1
    assert align_by_structure(normal, picture).shift == 0
    assert align_by_structure(thumbnails(room.normal[kept]), picture).shift == -1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("preset", ["interiors", "solids"])
def test_rendered_clips_of_the_world_are_never_refused(preset, seed):
    made = make_clip(seed, preset=preset, frames=9, height_px=48, width_px=64)
    picture = thumbnails(made.frames)
    for name in {"depth", "normal", "albedo"} & made.modalities.keys():
        assert align_by_structure(thumbnails(made.modalities[name].array), picture).shift == 0, name


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_clips_too_short_to_tell(frames):
    picture, normal, albedo, light = (stream[:frames] for stream in clip(0, 0.06, 0.0))
    assert align_by_structure(normal, picture) == (0, False)
    assert values(albedo, light, picture) == (0, False)

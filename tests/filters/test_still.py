import numpy as np
import pytest

from openuni.filters.still import Still
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import OpenUniError
from tests.moving_pictures import panned, square_on_texture


def scores(frames, fps=25.0, **options):
    return Still(**options).run(None, DecodedClip.from_frames(frames, fps))


def noisy(frames, levels, seed=0):
    noise = np.random.default_rng(seed).integers(-levels, levels + 1, frames.shape)
    return np.clip(frames.astype(int) + noise, 0, 255).astype(np.uint8)


def test_one_picture_all_the_time_is_frozen():
    assert scores(np.repeat(panned([(0, 0)]), 6, axis=0)) == (1.0, pytest.approx(5 / 25), 0.0)


def test_noise_of_a_camera_is_not_motion():
    assert scores(noisy(np.repeat(panned([(0, 0)]), 6, axis=0), 2)).frozen_share == 1.0


def test_a_pan_of_one_pixel_is_motion():
    assert scores(panned([(index, 0) for index in range(6)])) == (0.0, 0.0, 0.0)


def test_a_small_thing_that_moves_is_motion():
    frames = square_on_texture([60, 62, 64, 66], side_px=16)
    assert scores(frames).frozen_share == 0.0
    assert scores(noisy(frames, 2)).frozen_share == 0.0


def test_half_of_the_pairs_and_the_longest_run_in_seconds():
    frames = panned([(0, 0)] * 6 + [(4 * index, 0) for index in range(1, 7)])
    found = scores(frames, fps=10.0)
    assert found.frozen_share == pytest.approx(3 / 6)
    assert found.longest_frozen_s == pytest.approx(0.5)


def test_pictures_that_jump_between_the_pairs_do_not_make_one_run():
    frames = panned([(0, 0), (0, 0), (8, 0), (8, 0), (16, 0), (16, 0)])
    found = scores(frames)
    assert found.frozen_share == 1.0
    assert found.longest_frozen_s == pytest.approx(1 / 25)


def test_a_slow_fade_is_no_frozen_run():
    fade = np.stack([np.full((32, 32, 3), value, np.uint8) for value in range(60, 100, 2)])
    assert scores(fade).longest_frozen_s < 0.1


def test_black_frames_with_a_logo_are_black_and_a_dark_scene_is_not():
    frames = np.zeros((4, 100, 100, 3), np.uint8)
    frames[:, :10, :10] = 200  # 1 %
    frames[2:, :30, :30] = 200
    assert scores(frames).black_share == 0.5
    assert scores(np.full((2, 32, 32, 3), 30, np.uint8)).black_share == 0.0
    assert scores(np.full((2, 32, 32, 3), 30, np.uint8), black_below=0.2).black_share == 1.0


def test_one_frame_has_no_pair():
    assert scores(panned([(0, 0)])) == (None, 0.0, 0.0)


def test_small_frames_are_one_block():
    assert scores(np.zeros((2, 5, 7, 3), np.uint8)) == (1.0, pytest.approx(0.04), 1.0)


def test_pairs_are_adjacent_frames():
    assert Still().sample(np.arange(49) / 24).tolist() == [0, 1, 12, 13, 24, 25, 36, 37]


@pytest.mark.parametrize("wrong", [{"pairs_per_s": 0.0}, {"max_pairs": 0}, {"noise": -0.1}, {"bright_share": 1.5}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        Still(**wrong)

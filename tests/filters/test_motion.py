import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openuni.filters.motion import Motion
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import ClipError, OpenUniError
from tests.moving_pictures import panned, square_on_texture, zoomed


def scores(frames, fps=25.0, **options):
    return Motion(**options).run(None, DecodedClip.from_frames(frames, fps))


def at_times(frames, times_s):
    clip = DecodedClip.from_frames(frames)
    return DecodedClip(clip.clip, clip.frames, np.array(times_s))


@pytest.mark.parametrize(("preset", "error"), [("ultrafast", 0.03), ("fast", 0.03), ("medium", 0.01)])
def test_a_pan_is_measured_in_diagonals_per_second_and_is_all_camera(preset, error):
    found = scores(panned([(0, 0), (5, 2)]), fps=25.0, preset=preset)
    expected = np.hypot(5, 2) / np.hypot(120, 180) * 25
    assert found.speed_diag_per_s == pytest.approx(expected, rel=error)
    assert found.moving_share > 0.99
    assert found.camera_share > 0.95
    assert found.residual_diag_per_s < 0.05 * expected


def test_the_speed_is_that_of_farnebacks_flow_which_others_measure():
    """data-juicer and VideoX-Fun: mean length of Farneback's flow (0.5, 3, 15, 3, 5, 1.2), pixels per pair."""
    frames = panned([(0, 0), (5, 2)], 200, 300)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    theirs = cv2.calcOpticalFlowFarneback(*grey, None, 0.5, 3, 15, 3, 5, 1.2, 0)
    inside = theirs[20:-20, 20:-20]
    assert np.hypot(inside[..., 0] - 5, inside[..., 1] - 2).mean() < 0.02
    px = np.hypot(theirs[..., 0], theirs[..., 1]).mean()
    assert scores(frames, preset="medium").speed_diag_per_s == pytest.approx(px / np.hypot(200, 300) * 25, rel=0.03)


def test_a_zoom_is_camera_and_its_speed_grows_from_the_centre():
    found = scores(zoomed([1.0, 1.05]), fps=25.0, preset="medium")
    y, x = np.mgrid[:120, :180]
    expected_px = 0.05 * np.hypot(x - 89.5, y - 59.5).mean()
    assert found.speed_diag_per_s == pytest.approx(expected_px / np.hypot(120, 180) * 25, rel=0.03)
    assert found.camera_share > 0.95


def test_a_roll_is_camera():
    still = panned([(0, 0)], 200, 260)[0]
    turn = cv2.getRotationMatrix2D((129.5, 99.5), 1.5, 1.0)
    turned = cv2.warpAffine(still, turn, (260, 200), flags=cv2.INTER_CUBIC)
    found = scores(np.stack([still, turned])[:, 40:160, 40:220], preset="medium")
    assert found.speed_diag_per_s > 0
    assert found.camera_share > 0.95


def test_only_the_two_frames_of_a_pair_are_compared():
    frames = panned([(0, 0), (1, 0), (9, 0), (10, 0), (18, 0), (19, 0)])
    assert scores(frames, preset="medium").speed_diag_per_s == pytest.approx(25 / np.hypot(120, 180), rel=0.05)


def test_an_object_on_a_still_background_is_not_camera():
    found = scores(square_on_texture([60, 64]), fps=25.0, preset="medium")
    share = 40 * 40 / (120 * 180)
    assert share <= found.moving_share <= 1.5 * share  # plus half a patch of 8 px around the square
    assert found.camera_share < 0.05
    assert found.residual_diag_per_s == pytest.approx(found.speed_diag_per_s, rel=0.05)


def test_an_object_before_a_panning_camera_is_split():
    pan, still = panned([(0, 0), (3, 0)]), square_on_texture([60, 60 + 9])
    mask = np.zeros((2, 120, 180), bool)
    mask[0, 40:80, 60:100] = mask[1, 40:80, 69:109] = True
    found = scores(np.where(mask[..., None], still, pan), preset="medium")
    residual_px = 6 * 40 * 40 / (120 * 180)
    assert found.residual_diag_per_s == pytest.approx(residual_px / np.hypot(120, 180) * 25, rel=0.35)
    assert 0.6 < found.camera_share < 0.95


def test_equal_frames_do_not_move_at_all():
    still = np.repeat(panned([(0, 0)]), 6, axis=0)
    assert scores(still) == (0.0, 0.0, None, 0.0)


def test_one_frame_does_not_move():
    assert scores(panned([(0, 0)])) == (0.0, 0.0, None, 0.0)


def test_speed_does_not_depend_on_the_frame_rate():
    fast = scores(panned([(2 * i, 0) for i in range(8)]), fps=50.0)
    slow = scores(panned([(4 * i, 0) for i in range(4)]), fps=25.0)
    assert fast.speed_diag_per_s == pytest.approx(slow.speed_diag_per_s, rel=0.03)


def test_speed_does_not_depend_on_the_size():
    large = panned([(0, 0), (6, 4)], 240, 360)
    small = large.reshape(2, 120, 2, 180, 2, 3).mean(axis=(2, 4)).round().astype(np.uint8)
    whole, half = (scores(frames, preset="medium").speed_diag_per_s for frames in (large, small))
    assert whole == pytest.approx(half, rel=0.03)


def test_speed_is_right_on_a_variable_frame_rate():
    times_s = np.cumsum([0.0, 0.02, 0.06, 0.04, 0.1, 0.2, 0.02, 0.02, 0.14, 0.04, 0.08, 0.02])
    clip = at_times(panned([(round(50 * t), 0) for t in times_s]), times_s)
    wanted = 50 / clip.diagonal_px
    assert Motion(preset="medium").run(None, clip).speed_diag_per_s == pytest.approx(wanted, rel=0.05)
    motion = Motion(pairs_per_s=6.0, preset="medium")
    indices = motion.sample(times_s)
    assert len(indices) < len(times_s)
    assert motion.run(None, clip.take(indices)).speed_diag_per_s == pytest.approx(wanted, rel=0.05)


@settings(max_examples=200, deadline=None)
@given(
    steps_s=st.lists(st.floats(0.001, 3.0), max_size=60),
    pairs_per_s=st.floats(0.1, 60.0),
    max_pairs=st.integers(1, 40),
)
def test_samples_are_pairs_of_adjacent_frames_without_overlap(steps_s, pairs_per_s, max_pairs):
    times_s = np.cumsum([0.0, *steps_s])
    indices = Motion(pairs_per_s=pairs_per_s, max_pairs=max_pairs).sample(times_s)
    assert indices.dtype == np.int64
    if len(times_s) == 1:
        assert indices.tolist() == [0]
        return
    assert 2 <= len(indices) <= 2 * max_pairs
    assert len(indices) % 2 == 0
    assert (np.diff(indices) > 0).all()
    assert indices[0] >= 0
    assert indices[-1] < len(times_s)
    assert (indices[1::2] - indices[::2] == 1).all()


def test_samples_of_a_long_clip_are_spread_over_its_whole_length():
    times_s = np.arange(2401) / 25  # quarters of 600 frames
    assert Motion(max_pairs=4).sample(times_s).tolist() == [300, 301, 900, 901, 1500, 1501, 2100, 2101]


def test_two_pairs_per_second_by_default():
    assert Motion().sample(np.arange(49) / 24).tolist() == [0, 1, 12, 13, 24, 25, 36, 37]


def test_a_frame_too_small_for_dis_is_refused():
    with pytest.raises(ClipError, match="sides >= 8 px"):
        scores(np.zeros((2, 7, 64, 3), np.uint8))


@pytest.mark.parametrize("wrong", [{"pairs_per_s": 0.0}, {"max_pairs": 0}, {"preset": "slow"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        Motion(**wrong)

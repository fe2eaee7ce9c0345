import numpy as np
import pytest

from openuni.annotators._pairwise_flow import consistent
from openuni.annotators.dis import Dis
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import ClipError, OpenUniError
from tests.moving_pictures import panned, square_on_texture


def annotate(frames, fps=25.0, **options):
    return Dis(**options).run(None, DecodedClip.from_frames(frames, fps))


@pytest.mark.parametrize(("preset", "epe_px"), [("ultrafast", 0.09), ("fast", 0.1), ("medium", 0.02)])
def test_end_point_error_on_a_textured_shift(preset, epe_px):
    found = annotate(panned([(0, 0), (5, 2)], 200, 300), preset=preset)
    inside = found.flow.array[0, 20:-20, 20:-20]
    assert np.hypot(inside[..., 0] - 5, inside[..., 1] - 2).mean() < epe_px
    assert found.speed_diag_per_s == pytest.approx(np.hypot(5, 2) / np.hypot(200, 300) * 25, rel=0.03)


def test_a_pan_is_valid_inside_and_not_where_it_leaves_the_frame():
    valid = annotate(panned([(0, 0), (12, 0)])).flow.valid[0, ..., 0]
    assert valid[20:-20, 20:-20].all()
    assert valid[20:-20, -10:].mean() < 0.1


def test_equal_frames_have_exactly_zero_flow():
    found = annotate(np.repeat(panned([(0, 0)]), 3, axis=0))
    assert not found.flow.array.any()
    assert found.flow.valid.all()
    assert (found.speed_diag_per_s, found.inconsistent_share) == (0.0, 0.0)


def test_every_frame_has_a_flow_and_the_last_repeats():
    flow = annotate(panned([(0, 0), (2, 0), (6, 0)])).flow
    assert flow.array.shape == (3, 120, 180, 2)
    assert flow.array.dtype == np.float32
    assert flow.array[0, 60, 90, 0] == pytest.approx(2, abs=0.1)
    assert flow.array[1, 60, 90, 0] == pytest.approx(4, abs=0.1)
    assert np.array_equal(flow.array[1], flow.array[2])
    assert np.array_equal(flow.valid[1], flow.valid[2])


def test_one_frame_has_zero_flow_and_nothing_to_check():
    found = annotate(panned([(0, 0)]))
    assert not found.flow.array.any()
    assert found.flow.array.shape == (1, 120, 180, 2)
    assert (found.speed_diag_per_s, found.inconsistent_share) == (0.0, None)


def test_without_the_check_there_is_no_valid_map():
    found = annotate(panned([(0, 0), (2, 0)]), check=False)
    assert found.flow.valid is None
    assert found.inconsistent_share is None


def test_pixels_that_get_covered_are_not_valid():
    found = annotate(square_on_texture([60, 70]))
    covered = found.flow.valid[0, 45:75, 100:110]  # the square's right edge moves over them
    elsewhere = found.flow.valid[0, 90:, :40]
    assert covered.mean() < 0.2
    assert elsewhere.all()
    assert found.inconsistent_share == pytest.approx(1 - found.flow.valid[0].mean())


def test_consistency_of_two_layers_is_exact():
    forward, backward = np.zeros((2, 30, 80, 2), np.float32)
    forward[10:20, 20:40, 0] = 5  # the object, where it is in the first frame
    backward[10:20, 25:45, 0] = -5  # and in the second
    expected = np.ones((30, 80), bool)
    expected[10:20, 40:45] = False  # background that the object covers
    assert np.array_equal(consistent(forward, backward), expected)


def test_consistency_of_a_pan_fails_where_the_picture_leaves_the_frame():
    forward = np.zeros((10, 40, 2), np.float32)
    forward[..., 0] = 5
    agree = consistent(forward, -forward)
    assert agree[:, :35].all()
    assert not agree[:, 35:].any()


def test_consistency_rule_is_one_percent_and_half_a_pixel():
    forward = np.zeros((4, 40, 2), np.float32)
    forward[..., 0] = 10
    backward = -forward
    for error_px, agrees in ((0.68, True), (0.71, False)):  # 0.01 * (10 + 10 -+ error) + 0.5
        backward[..., 0] = error_px - 10
        assert consistent(forward, backward)[:, :25].all() == agrees


def test_wrong_input_is_refused():
    with pytest.raises(ClipError, match="sides >= 8 px"):
        annotate(np.zeros((2, 64, 7, 3), np.uint8))
    with pytest.raises(OpenUniError, match="Allowed: ultrafast, fast, medium"):
        Dis(preset="slow")

import numpy as np
import pytest

from openuni.annotators.template_caption import TemplateCaption
from openuni.manifests.contracts.decoded_clip import DecodedClip
from tests.moving_pictures import panned, square_on_texture, texture, zoomed


def captions(frames, fps=25.0):
    return TemplateCaption().run(None, DecodedClip.from_frames(np.asarray(frames, np.uint8), fps))


def test_a_view_that_moves_right_and_down():
    found = captions(panned([(-5 * step, -3 * step) for step in range(6)]))  # the content goes left and up
    assert found.pan_right_widths == pytest.approx(25 / 180, rel=0.05)
    assert found.tilt_up_heights == pytest.approx(-15 / 120, rel=0.05)
    assert found.zoom_ratio == pytest.approx(1, abs=0.01) and abs(found.roll_clockwise_deg) < 0.5
    assert "the view moving right and moving down" in found.brief
    assert "the view goes 0.14 frame widths to the right and 0.13 frame heights down" in found.detailed
    assert found.speed_diag_per_s == pytest.approx(np.hypot(5, 3) * 25 / np.hypot(120, 180), rel=0.05)
    left = captions(panned([(5 * step, 0) for step in range(6)]))
    assert "the view moving left." in left.brief


def test_a_zoom():
    found = captions(zoomed([1.03**step for step in range(6)]))
    assert found.zoom_ratio == pytest.approx(1.03**5, rel=0.01)
    assert "closing in" in found.brief and "things become 1.16 times as large" in found.detailed
    assert "drawing back" in captions(zoomed([1.03**-step for step in range(6)])).brief


def test_a_roll():
    import cv2

    big = texture(160, 160)

    def turned(angle_deg):  # OpenCV's positive angles turn the content counterclockwise, so the view clockwise
        matrix = cv2.getRotationMatrix2D((79.5, 79.5), angle_deg, 1.0)
        return cv2.warpAffine(big, matrix, (160, 160), flags=cv2.INTER_CUBIC)[24:-24, 24:-24]

    found = captions([turned(3 * step) for step in range(5)])
    assert found.roll_clockwise_deg == pytest.approx(12, abs=0.5)
    assert "rolling clockwise" in found.brief and "12 degrees clockwise" in found.detailed
    assert "rolling counterclockwise" in captions([turned(-3 * step) for step in range(5)]).brief


def test_a_camera_at_rest_and_something_that_moves_before_it():
    found = captions(square_on_texture([20, 26, 32, 38, 44]))
    assert "the view at rest" in found.brief and "The camera is at rest." in found.detailed
    assert found.own_motion_share == pytest.approx(40 * 40 / (120 * 180), rel=0.6)
    assert "Parts of the picture move on their own." in found.detailed
    still = captions(np.repeat(texture(120, 180)[None], 4, axis=0))
    assert "hardly any motion, the view at rest" in still.brief and "on their own" not in still.detailed
    assert still.speed_diag_per_s == 0 and still.own_motion_share == 0


def test_a_view_that_goes_to_and_fro_has_no_direction():
    found = captions(panned([(0, 0), (6, 0), (0, 0), (6, 0), (0, 0)]))
    assert "view" not in found.brief and "camera" not in found.detailed


def test_nothing_is_said_of_the_camera_where_no_one_motion_explains_the_picture():
    rng = np.random.default_rng(0)
    found = captions(rng.integers(0, 256, (4, 80, 120, 3)))
    assert found.pan_right_widths is None and "view" not in found.brief and "amera" not in found.detailed


@pytest.mark.parametrize(("level", "word"), [(20, "dark"), (120, "medium-bright"), (230, "bright")])
def test_brightness(level, word):
    found = captions(np.full((2, 48, 64, 3), level))
    assert found.brief.startswith(f"A {word} colourless landscape clip")
    assert found.brightness_mean == pytest.approx(level / 255, abs=1e-3)


def test_brightness_is_luma_and_may_rise():
    red = np.zeros((8, 48, 64, 3))
    red[..., 0] = np.linspace(100, 200, 8)[:, None, None]
    found = captions(red)
    assert found.brightness_mean == pytest.approx(0.2126 * 150 / 255, abs=0.01) and "colour landscape" in found.brief
    assert "rises" not in found.detailed  # by a quarter of red is but 0.07 of luma
    assert "rises over the clip" in captions(np.repeat(red[..., :1], 3, axis=-1)).detailed
    assert "falls over the clip" in captions(np.repeat(red[::-1, ..., :1], 3, axis=-1)).detailed


def test_format_length_and_one_frame():
    found = captions(np.full((50, 64, 48, 3), 99), fps=20)
    assert "portrait clip of 2.5 s" in found.brief
    assert "2.50 seconds, 48 x 64 pixels at 20 frames per second" in found.detailed
    single = captions(np.full((1, 40, 40, 3), 99))
    assert "square" in single.brief and "motion" not in single.brief and single.speed_diag_per_s is None
    assert single.source == found.source == "template"


def test_frames_too_thin_for_a_flow():
    found = captions(np.random.default_rng(0).integers(0, 256, (3, 4, 60, 3)))
    assert found.follow_share is None and found.speed_diag_per_s is None

import cv2
import numpy as np
import pytest
from skimage.measure import blur_effect

from openuni.filters.sharpness import Sharpness
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import OpenUniError
from tests.moving_pictures import texture

SHARP = texture(160, 240, grain_px=0.8)


def scores(*frames, **options):
    return Sharpness(**options).run(None, DecodedClip.from_frames(np.stack(frames)))


def blurred(sigma_px):
    return cv2.GaussianBlur(SHARP, (0, 0), sigma_px)


def test_more_blur_gives_a_higher_score_and_less_laplacian():
    found = [scores(SHARP), *(scores(blurred(sigma)) for sigma in (1.0, 2.0, 4.0))]
    blurs = [one.blur for one in found]
    assert blurs == sorted(blurs)
    assert blurs[0] < 0.3 < 0.6 < blurs[-1]
    laplacians = [one.laplacian_variance for one in found]
    assert laplacians == sorted(laplacians, reverse=True)


def test_blur_is_that_of_the_paper_as_scikit_image_has_it():
    for image in (SHARP, blurred(1.0), blurred(3.0)):
        assert scores(image).blur == pytest.approx(blur_effect(image[..., 0] / 255.0), abs=0.01)


def test_blur_does_not_depend_on_contrast():
    faint = (100 + SHARP.astype(float) * 0.25).round().astype(np.uint8)
    assert scores(faint).blur == pytest.approx(scores(SHARP).blur, abs=0.01)
    assert scores(faint).laplacian_variance == pytest.approx(scores(SHARP).laplacian_variance / 16, rel=0.05)


def test_motion_blur_along_one_axis_shows():
    for kernel in ((15, 1), (1, 15)):
        assert scores(cv2.blur(SHARP, kernel)).blur > 1.5 * scores(SHARP).blur


def test_a_flat_picture_has_no_blur_and_no_edges():
    assert scores(np.full((32, 32, 3), 90, np.uint8)) == (None, None, 0.0)


def test_flat_frames_do_not_count_and_the_worst_is_named():
    found = scores(SHARP, np.full_like(SHARP, 90), blurred(4.0))
    one, other = scores(SHARP).blur, scores(blurred(4.0)).blur
    assert found.blur == pytest.approx((one + other) / 2)
    assert found.worst_blur == other


def test_a_picture_of_two_pixels_is_no_fault():
    assert scores(SHARP[:2, :2]).blur is None


def test_frames_per_second_is_an_option():
    assert Sharpness(frames_per_s=5.0).sample(np.arange(50) / 25).tolist() == list(range(0, 50, 5))
    with pytest.raises(OpenUniError, match="Allowed"):
        Sharpness(frames_per_s=0.0)

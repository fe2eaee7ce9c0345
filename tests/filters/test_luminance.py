import numpy as np
import pytest

from openuni.filters.luminance import Luminance
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import OpenUniError


def scores(frames, **options):
    return Luminance(**options).run(None, DecodedClip.from_frames(np.asarray(frames, np.uint8)))


def plain(red, green, blue, count=1):
    return np.broadcast_to(np.array([red, green, blue], np.uint8), (count, 8, 8, 3))


@pytest.mark.parametrize(
    ("colour", "mean"),
    [((0, 0, 0), 0.0), ((255, 255, 255), 1.0), ((255, 0, 0), 0.2126), ((0, 255, 0), 0.7152), ((0, 0, 255), 0.0722)],
)
def test_mean_weighs_the_channels_by_bt709(colour, mean):
    assert scores(plain(*colour)).mean == pytest.approx(mean, abs=1e-12)


def test_grey_is_measured_as_stored_not_linearised():
    assert scores(plain(128, 128, 128)).mean == pytest.approx(128 / 255)


def test_half_black_half_white():
    frames = np.zeros((2, 8, 8, 3))
    frames[:, :, 4:] = 255
    assert scores(frames) == pytest.approx((0.5, 0.5, 0.5, 0.5))


def test_a_fade_has_no_contrast():
    fade = np.concatenate([plain(v, v, v) for v in (0, 100, 255)])
    found = scores(fade)
    assert found.contrast == pytest.approx(0, abs=1e-12)
    assert found.mean == pytest.approx(355 / 3 / 255)
    assert (found.dark_share, found.bright_share) == pytest.approx((1 / 3, 1 / 3))


def test_thresholds_are_options():
    assert scores(plain(100, 100, 100), dark_below=0.5).dark_share == 1.0
    assert scores(plain(100, 100, 100), bright_above=0.3).bright_share == 1.0
    with pytest.raises(OpenUniError, match="0 <= dark_below"):
        Luminance(dark_below=0.9, bright_above=0.1)

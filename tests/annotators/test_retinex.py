"""Retinex: the product is the picture, even light gives the texture back, nothing flickers."""

import cv2
import numpy as np
import pytest

from openuni.annotators.retinex import Retinex
from openuni.manifests.arrays.srgb import linear_to_srgb, srgb_to_linear
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import OpenUniError
from openuni.manifests.modalities.albedo import Albedo
from openuni.manifests.modalities.irradiance import Irradiance
from openuni.world import make_clip
from tests.moving_pictures import panned


def annotate(frames, **options):
    return Retinex(**options).run(None, DecodedClip.from_frames(frames))


@pytest.fixture(scope="module")
def room():
    return make_clip(0, frames=3, height_px=96, width_px=128, preset="interiors", modalities=["albedo", "irradiance"])


@pytest.mark.parametrize("scales", [(0.15,), (0.03, 0.1, 0.4)])
def test_the_product_is_the_picture_in_linear_light(room, scales):
    found = annotate(room.frames, scales=scales)
    light = srgb_to_linear(room.frames / 255)
    assert np.abs(found.albedo.array * found.irradiance.array - light).max() < 1e-6
    stored = [kind.decode((packed := value.encode(24.0)).data, packed.constants).array for kind, value in
              ((Albedo, found.albedo), (Irradiance, found.irradiance))]  # fmt: skip
    bound = found.irradiance.array * (2**-11 + 1 / 131070) + 1e-6
    assert (np.abs(stored[0] * stored[1] - light) <= bound).all()
    assert np.array_equal(np.rint(255 * linear_to_srgb(found.albedo.array * found.irradiance.array)), room.frames)


def test_black_and_white_frames_have_a_product_too():
    frames = np.zeros((3, 20, 30, 3), np.uint8)
    frames[1] = 255
    frames[2, :, 15:] = 255
    found = annotate(frames)
    assert np.abs(found.albedo.array * found.irradiance.array - frames / 255).max() < 1e-6
    dark = annotate(frames[:1])
    assert not dark.albedo.array.any() and 0 <= dark.raised_share <= 1


def flat_lit(seed=0):
    """A fine texture of reflectances 0.1 to 0.9 in colours, float [T, H, W, 3]."""
    noise = np.random.default_rng(seed).random((1, 120, 160, 3)).astype(np.float32)
    fine = np.stack([cv2.GaussianBlur(image, (0, 0), 1.0) for image in noise])
    return 0.1 + 0.8 * (fine - fine.min()) / np.ptp(fine)


def as_frames(light):
    return np.rint(255 * linear_to_srgb(np.clip(light, 0, 1))).astype(np.uint8)


def error(found, true):
    """Mean relative error after one factor for the clip."""
    factor = np.median(true / found)
    return float((np.abs(factor * found - true) / true).mean())


def test_even_light_gives_the_texture_back_up_to_a_factor():
    true = flat_lit()
    found = annotate(as_frames(0.6 * true), scales=(0.3,))
    assert error(found.albedo.array, true) < 0.02
    assert np.std(np.log(found.irradiance.array)) < 0.03


def test_soft_light_leaves_the_albedo():
    true = flat_lit()
    light = 0.2 + 0.7 * np.linspace(0, 1, 160, dtype=np.float32)[None, None, :, None]
    frames = as_frames(true * light)
    found = annotate(frames, scales=(0.15,))
    assert error(found.albedo.array, true) < 0.1 < 0.3 < error(srgb_to_linear(frames / 255), true)
    along = found.irradiance.array[0, :, :, 0].mean(axis=0)
    assert np.corrcoef(along, light[0, 0, :, 0])[0, 1] > 0.99


def test_the_light_is_grey_and_the_scale_is_the_clips(room):
    found = annotate(room.frames)
    grey = found.irradiance.array
    assert np.array_equal(grey[..., 0], grey[..., 1]) and np.array_equal(grey[..., 0], grey[..., 2])
    assert found.albedo.array.max() == 1 and found.raised_share == pytest.approx(0.005, abs=0.002)
    twice = annotate(np.concatenate([room.frames, room.frames]))
    assert np.allclose(twice.albedo.array[:3], found.albedo.array, atol=1e-3)


def test_what_does_not_move_does_not_flicker_and_a_pan_stays_steady():
    still = panned([(0, 0)] * 3, 96, 128)
    found = annotate(still)
    assert found.flow_change == 0.0 and np.array_equal(found.albedo.array[0], found.albedo.array[2])
    flicker = (still * np.array([1, 0.6, 1])[:, None, None, None]).astype(np.uint8)
    assert annotate(flicker).flow_change < 0.01, "the brightness of a frame is light"
    assert annotate(panned([(2 * t, t) for t in range(3)], 96, 128)).flow_change < 0.03
    assert annotate(still[:1]).flow_change is None


@pytest.mark.parametrize("scales", [(), (0.0,), (0.1, -1.0), (5.0,)])
def test_wrong_options_are_refused(scales):
    with pytest.raises(OpenUniError, match="Allowed"):
        Retinex(scales=scales)

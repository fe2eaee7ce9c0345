"""Albedo: linear, within 0..1, and within the stated bounds in storage and as a picture."""

import numpy as np
import pytest

from openuni.manifests.arrays.srgb import srgb_to_linear
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.albedo import Albedo, AlbedoConstants
from openuni.manifests.video.encode import encode_lossless


def albedo() -> Albedo:
    array = np.random.default_rng(0).random((3, 20, 30, 3)).astype(np.float32)
    array[0] **= 3  # many dark ones
    array[0, 0, 0], array[0, 0, 1] = 0, 1
    return Albedo(array)


def test_stored_reflectance_errs_by_half_a_step_at_most() -> None:
    signal = albedo()
    payload = signal.encode(25)
    back = Albedo.decode(payload.data, payload.constants)
    error = np.abs(back.array.astype(np.float64) - signal.array)
    assert 0.9 / 131070 < error.max() <= 1 / 131070 + 2**-24
    assert back.array[0, 0, :2].tolist() == [[0, 0, 0], [1, 1, 1]]


def test_8_bit_pictures_survive_storage() -> None:
    levels = np.arange(256, dtype=np.float32) / 255
    payload = Albedo(srgb_to_linear(levels)[None, None, :, None].repeat(3, axis=-1)).encode(25)
    back = Albedo.decode(payload.data, payload.constants).to_rgb()[0, 0, :, 0]
    np.testing.assert_array_equal(np.rint(back * 255), np.arange(256))


def test_a_picture_of_albedo_is_srgb() -> None:
    grey = Albedo(np.full((1, 2, 2, 3), 0.18, np.float32))
    np.testing.assert_allclose(grey.to_rgb(), 0.461356, atol=1e-6)


def test_eight_bits_cost_what_is_stated() -> None:
    signal = albedo()
    back = Albedo.from_rgb(np.rint(signal.to_rgb() * 255) / 255, signal.constants())
    error = np.abs(back.array - signal.array)
    assert 0.003 < error.max() <= 0.0045
    assert error[signal.array < 0.003].max() < 0.0002


def test_a_noisy_rendering_errs_by_its_noise() -> None:
    signal = albedo()
    noisy = signal.to_rgb() + np.random.default_rng(1).normal(0, 2 / 255, signal.array.shape)
    error = Albedo.from_rgb(noisy).array - signal.array
    assert np.sqrt((error**2).mean()) < 2.275 * 2 / 255


def test_resizing_is_linear_in_reflectance() -> None:
    array = np.array([0.0, 1.0], np.float32)[None, None, :, None].repeat(3, axis=-1).repeat(2, axis=1)
    assert Albedo(array).resize(1, 1).array.ravel().tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("value", "words"),
    [(1.0001, r"within 0\.\.1, got 0 to 1.0001"), (-1e-6, "got -1e-06"), (np.nan, "NaN or infinite")],
)
def test_values_that_are_no_reflectance_are_named(value: float, words: str) -> None:
    array = np.zeros((1, 3, 3, 3), np.float32)
    array[0, 2, 1, 0] = value
    with pytest.raises(ClipError, match=words):
        Albedo(array)


def test_planes_of_another_kind_are_refused() -> None:
    with pytest.raises(ClipError, match='must have transfer = "linear", got "srgb"'):
        Albedo.decode(albedo().encode(25).data, AlbedoConstants("srgb"))
    for planes in (np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 2, 2, 1), np.uint16)):
        with pytest.raises(ClipError, match="albedo: stored planes must be uint16 with 3 channels, got"):
            Albedo.decode(encode_lossless(planes, 25), AlbedoConstants())

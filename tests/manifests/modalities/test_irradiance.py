"""Irradiance: 16-bit floats survive exactly, one white per clip, and the picture comes back within the bound."""

import numpy as np
import pytest

from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.irradiance import WHITE_FLOOR, Irradiance, IrradianceConstants
from openuni.manifests.video.encode import encode_lossless


def irradiance(brightest: float = 20.0) -> Irradiance:
    array = np.random.default_rng(0).random((3, 20, 30, 3)).astype(np.float32) ** 4
    array *= brightest / array.max()
    return Irradiance(array)


def test_values_of_16_bit_floats_are_stored_exactly() -> None:
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)  # all finite ones >= 0
    assert every[-1] == 65504
    signal = Irradiance(every.reshape(1, 128, 248, 1).repeat(3, axis=-1))
    payload = signal.encode(25)
    np.testing.assert_array_equal(Irradiance.decode(payload.data, payload.constants).array, signal.array)


@pytest.mark.parametrize("brightest", [65000.0, 1.0, 2.0**-14])
def test_other_values_err_by_a_share_of_themselves(brightest: float) -> None:
    signal = irradiance(brightest)
    payload = signal.encode(25)
    back = Irradiance.decode(payload.data, payload.constants).array.astype(np.float64)
    error = np.abs(back - signal.array)
    tiny = signal.array < 2.0**-14
    assert error[tiny].max(initial=0) <= 2.0**-25
    assert (error[~tiny] <= signal.array[~tiny] * 2.0**-11).all()
    assert error.max() > 0


def test_white_is_the_percentile_of_the_brightest_channel() -> None:
    array = np.zeros((2, 10, 100, 3), np.float32)
    array[..., 1] = np.arange(2000).reshape(2, 10, 100)
    assert Irradiance(array).constants().white == np.ceil(0.995 * 1999)
    picture = Irradiance(array).to_rgb()
    assert (picture[..., 1] == 1).mean() < 0.0055
    assert (picture[..., 0] == 0).all()


def test_a_black_clip_stays_black() -> None:
    black = Irradiance(np.zeros((2, 4, 4, 3), np.float32))
    assert black.constants().white == WHITE_FLOOR
    assert (black.to_rgb() == 0).all()
    payload = black.encode(25)
    assert (Irradiance.decode(payload.data, payload.constants).array == 0).all()


def test_the_picture_is_srgb_of_the_share_of_white() -> None:
    array = np.array([0.0, 0.36, 1.0, 2.0, 50.0], np.float32)[None, None, :, None].repeat(3, axis=-1)
    picture = Irradiance(array, white=2.0).to_rgb()[0, 0, :, 0]
    np.testing.assert_allclose(picture, [0, 0.461356, 0.735357, 1, 1], atol=1e-6)


def test_what_is_brighter_than_white_comes_back_as_white() -> None:
    signal = irradiance()
    white = signal.constants().white
    back = Irradiance.from_rgb(signal.to_rgb(), signal.constants())
    np.testing.assert_allclose(back.array, np.minimum(signal.array, white), rtol=1e-5, atol=1e-6)
    assert back.white == white
    assert back.array.max() <= white < signal.array.max()


def test_eight_bits_cost_what_is_stated() -> None:
    signal = irradiance()
    white = signal.constants().white
    back = Irradiance.from_rgb(np.rint(signal.to_rgb() * 255) / 255, signal.constants())
    error = np.abs(back.array - np.minimum(signal.array, white)) / white
    assert 0.003 < error.max() <= 0.0045


def test_a_noisy_rendering_errs_by_its_noise() -> None:
    signal = irradiance(1.0)
    noisy = signal.to_rgb() + np.random.default_rng(1).normal(0, 2 / 255, signal.array.shape)
    white = signal.constants().white
    error = Irradiance.from_rgb(noisy, signal.constants()).array - np.minimum(signal.array, white)
    assert np.sqrt((error**2).mean()) < 2.275 * 2 / 255 * white


def test_without_constants_white_is_one() -> None:
    found = Irradiance.from_rgb(np.ones((1, 2, 2, 3)))
    assert (found.array == 1).all()
    assert found.white == 1


def test_the_white_is_the_clips_and_not_the_windows() -> None:
    array = np.stack([np.full((4, 4, 3), value, np.float32) for value in (1.0, 2.0, 4.0)])
    payload = Irradiance(array).encode(25)
    stored = Irradiance.decode(payload.data, payload.constants)
    assert payload.constants.white == 4
    for part in (stored.take(0, 1), stored.crop(1, 1, 2, 2), stored.resize(2, 2), stored.fit(3, 8)):
        assert part.constants() == payload.constants
    assert stored.take(0, 1).encode(25).constants == payload.constants
    assert Irradiance(array).take(0, 1).constants().white == 1


def test_resizing_is_linear_in_light() -> None:
    array = np.array([0.0, 8.0], np.float32)[None, None, :, None].repeat(3, axis=-1).repeat(2, axis=1)
    assert Irradiance(array).resize(1, 1).array.ravel().tolist() == [4.0] * 3


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-0.001, "must be >= 0, minimum is -0.001"),
        (65505.0, "must be at most 65504 .*, maximum is 65505. Rescale"),
        (np.inf, "NaN or infinite"),
        (np.nan, "NaN or infinite"),
    ],
)
def test_values_that_are_no_irradiance_are_named(value: float, words: str) -> None:
    array = np.ones((1, 3, 3, 3), np.float32)
    array[0, 2, 1, 0] = value
    with pytest.raises(ClipError, match=words):
        Irradiance(array)


@pytest.mark.parametrize("white", [0.0, -1.0, float("inf"), float("nan")])
def test_a_white_that_nothing_can_be_divided_by_is_refused(white: float) -> None:
    constants, picture = IrradianceConstants(white), np.zeros((1, 4, 4, 3), np.float32)
    for use in (
        lambda: Irradiance(picture, white),
        lambda: Irradiance.decode(Irradiance(picture).encode(25).data, constants),
        lambda: Irradiance.from_rgb(picture, constants),
    ):
        with pytest.raises(ClipError, match="white must be above 0 and finite"):
            use()


@pytest.mark.parametrize(
    ("pattern", "words"), [(0x7C00, "NaN or infinite"), (0x7E00, "NaN or infinite"), (0xBC00, "minimum is -1")]
)
def test_stored_patterns_that_are_no_light_are_refused(pattern: int, words: str) -> None:
    data = encode_lossless(np.full((1, 4, 4, 3), pattern, np.uint16), 25)
    with pytest.raises(ClipError, match=words):
        Irradiance.decode(data, IrradianceConstants(1.0))

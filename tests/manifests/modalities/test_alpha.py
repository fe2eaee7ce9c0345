"""Alpha: within the stated bounds in storage and as grey."""

import numpy as np
import pytest

from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.alpha import Alpha, AlphaConstants
from openuni.manifests.video.encode import encode_lossless


def alpha() -> Alpha:
    array = np.random.default_rng(0).random((3, 20, 30, 1)).astype(np.float32)
    array[0, 0, :10], array[0, 0, 10:20] = 0, 1
    return Alpha(array)


def test_stored_coverage_errs_by_half_a_step_at_most() -> None:
    signal = alpha()
    payload = signal.encode(25)
    back = Alpha.decode(payload.data, payload.constants)
    error = np.abs(back.array.astype(np.float64) - signal.array)
    assert 0.9 / 131070 < error.max() <= 1 / 131070 + 2**-24
    np.testing.assert_array_equal(back.array[0, 0, :20], signal.array[0, 0, :20])  # 0 and 1 are exact


def test_8_bit_mattes_are_stored_exactly_to_8_bits() -> None:
    levels = np.arange(256, dtype=np.float32) / 255
    payload = Alpha(levels[None, None, :, None]).encode(25)
    np.testing.assert_array_equal(Alpha.decode(payload.data, payload.constants).array.ravel(), levels)


def test_the_picture_is_grey_and_comes_back_by_the_mean() -> None:
    signal = alpha()
    picture = signal.to_rgb()
    assert picture.shape == (3, 20, 30, 3)
    np.testing.assert_array_equal(picture, np.broadcast_to(signal.array, picture.shape))
    coloured = np.array([0.2, 0.3, 0.7]).reshape(1, 1, 1, 3)
    assert Alpha.from_rgb(coloured).array.item() == pytest.approx(0.4)
    assert Alpha.from_rgb(np.array([-3.0, 9.0])[None, None, :, None].repeat(3, -1)).array.ravel().tolist() == [0, 1]


def test_eight_bits_cost_half_a_level() -> None:
    signal = alpha()
    back = Alpha.from_rgb(np.rint(signal.to_rgb() * 255) / 255, signal.constants())
    assert np.abs(back.array - signal.array).max() <= 1 / 510 + 1e-6


def test_a_noisy_rendering_errs_by_a_share_of_its_noise() -> None:
    signal = alpha()
    noisy = signal.to_rgb() + np.random.default_rng(1).normal(0, 2 / 255, (3, 20, 30, 3))
    error = Alpha.from_rgb(noisy).array - signal.array
    assert np.sqrt((error**2).mean()) < 2 / 255 / np.sqrt(3) * 1.05  # three channels are averaged


def test_shrinking_averages() -> None:
    signal = alpha()
    expected = signal.array.reshape(3, 10, 2, 15, 2, 1).mean(axis=(2, 4))
    np.testing.assert_allclose(signal.resize(10, 15).array, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "words"), [(255.0, "got 0 to 255. Divide"), (-0.1, "got -0.1 to 0"), (np.nan, "NaN or infinite")]
)
def test_values_that_are_no_coverage_are_named(value: float, words: str) -> None:
    array = np.zeros((1, 3, 3, 1), np.float32)
    array[0, 2, 1] = value
    with pytest.raises(ClipError, match=words):
        Alpha(array)


def test_planes_of_another_kind_are_refused() -> None:
    with pytest.raises(ClipError, match="stored planes must be uint16 with 1 channels, got uint8"):
        Alpha.decode(encode_lossless(np.zeros((1, 2, 2, 1), np.uint8), 25), AlphaConstants())
    for levels in (0, -1, 65536):
        with pytest.raises(ClipError, match=f"must have levels within 1..65535, got {levels}"):
            Alpha.decode(alpha().encode(25).data, AlphaConstants(levels))
    with pytest.raises(ClipError, match="must be within"):  # a level above the stated full coverage
        Alpha.decode(alpha().encode(25).data, AlphaConstants(255))

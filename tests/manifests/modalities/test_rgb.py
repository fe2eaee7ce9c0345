"""The picture: exact in storage and through 8 bits."""

import numpy as np
import pytest

from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.rgb import RGB


@pytest.fixture
def rgb() -> RGB:
    return RGB(np.random.default_rng(0).integers(0, 256, (4, 15, 21, 3), dtype=np.uint8))


def test_storage_is_exact(rgb: RGB) -> None:
    payload = rgb.encode(25)
    assert payload.suffix == "mkv"
    np.testing.assert_array_equal(RGB.decode(payload.data, payload.constants).array, rgb.array)


def test_rendering_is_value_over_255_and_back_within_half_a_level(rgb: RGB) -> None:
    rendered = rgb.to_rgb()
    assert rendered[0, 0, 0, 0] == np.float32(rgb.array[0, 0, 0, 0]) / np.float32(255)
    jitter = np.random.default_rng(1).uniform(-0.499, 0.499, rendered.shape).astype(np.float32) / 255
    np.testing.assert_array_equal(RGB.from_rgb(rendered + jitter).array, rgb.array)


def test_a_noisy_rendering_errs_by_its_noise(rgb: RGB) -> None:
    noisy = rgb.to_rgb() + np.random.default_rng(1).normal(0, 2 / 255, rgb.array.shape)
    error = RGB.from_rgb(noisy).array.astype(int) - rgb.array
    assert np.sqrt((error**2).mean()) < 2.1


def test_values_beyond_the_range_are_clipped() -> None:
    assert RGB.from_rgb(np.array([-3.0, 0.5, 9.0]).reshape(1, 1, 1, 3)).array.ravel().tolist() == [0, 128, 255]


def test_shrinking_averages(rgb: RGB) -> None:
    small = rgb.resize(5, 7)
    expected = rgb.array.reshape(4, 5, 3, 7, 3, 3).mean(axis=(2, 4))
    assert np.abs(small.array - expected).max() <= 0.51


def test_fit_covers_and_crops_the_centre() -> None:
    columns = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, None, :, None], (1, 10, 40, 3)).copy()
    fitted = RGB(columns).fit(10, 20)
    assert fitted.array[0, 0, :, 0].tolist() == list(range(10, 30))


@pytest.mark.parametrize("array", [np.zeros((1, 2, 2, 3), np.float32), np.zeros((1, 2, 2, 1), np.uint8)])
def test_other_arrays_are_named(array: np.ndarray) -> None:
    with pytest.raises(ClipError, match=r"rgb: array must be uint8 \[T, H, W, 3\], got"):
        RGB(array)

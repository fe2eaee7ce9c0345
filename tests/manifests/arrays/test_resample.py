"""Resizing: averages, straight lines and labels survive as they should."""

import numpy as np
import pytest

from openuni.manifests.arrays.resample import resize_nearest, resize_smooth


def test_shrinking_averages_areas() -> None:
    array = np.random.default_rng(0).random((2, 12, 20, 3)).astype(np.float32)
    expected = array.reshape(2, 4, 3, 5, 4, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(resize_smooth(array, 4, 5), expected, atol=1e-6)


def test_enlarging_is_linear_and_stays_in_range() -> None:
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[None, None, :, None], (1, 6, 8, 1))
    large = resize_smooth(ramp, 12, 16)
    np.testing.assert_allclose(large[0, 5, 1:-1, 0], (np.arange(16) + 0.5)[1:-1] / 2 - 0.5, atol=1e-5)
    assert large.min() >= 0
    assert large.max() <= 7


def test_one_side_may_shrink_while_the_other_grows() -> None:
    array = np.random.default_rng(0).random((1, 8, 4, 2)).astype(np.float32)
    mixed = resize_smooth(array, 2, 8)
    np.testing.assert_allclose(mixed[0, :, :, 0].mean(), array[..., 0].mean(), atol=1e-2)
    np.testing.assert_allclose(mixed, resize_smooth(resize_smooth(array, 2, 4), 2, 8), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (20, 3), (16, 16)])
def test_any_channel_count_and_size(channels: int, size: tuple[int, int]) -> None:
    array = np.random.default_rng(0).integers(0, 256, (2, 9, 11, channels), dtype=np.uint8)
    assert resize_smooth(array, *size).shape == (2, *size, channels)
    assert resize_nearest(array, *size).shape == (2, *size, channels)


def test_nearest_takes_the_value_under_the_centre_and_invents_none() -> None:
    array = np.arange(6, dtype=np.uint16).reshape(1, 1, 6, 1)
    assert resize_nearest(array, 1, 3).ravel().tolist() == [1, 3, 5]
    assert resize_nearest(array, 1, 2).ravel().tolist() == [1, 4]
    assert resize_nearest(array, 2, 12)[0, 1].ravel().tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    odd = resize_nearest(array, 1, 4).ravel()
    np.testing.assert_array_equal(odd, odd[::-1][::-1])
    mirrored = resize_nearest(array[:, :, ::-1], 1, 3).ravel()
    assert mirrored.tolist() == [4, 2, 0]


def test_an_average_of_ones_is_one() -> None:
    """Where it is not, white albedo and alpha of a 480p clip cannot be scaled to 256 lines."""
    ones = np.ones((1, 480, 832, 3), np.float32)
    assert resize_smooth(ones, 256, 444).max() == 1
    assert resize_smooth(ones, 256, 1000).max() == 1

"""The transfer function: published values, and the way back."""

import numpy as np
import pytest

from openuni.manifests.arrays.srgb import LINEAR_KNEE, STEEPEST_DECODING, linear_of, srgb_of


@pytest.mark.parametrize(
    ("linear", "srgb"),
    [(0.0, 0.0), (1.0, 1.0), (0.18, 0.461356), (0.5, 0.735357), (0.2140411, 0.5), (0.001, 0.01292), (0.01, 0.0998528)],
)
def test_known_values(linear: float, srgb: float) -> None:
    assert float(srgb_of(np.array(linear))) == pytest.approx(srgb, abs=1e-6)
    assert float(linear_of(np.array(srgb))) == pytest.approx(linear, abs=1e-6)


def test_all_8_bit_values_come_back_in_float32() -> None:
    levels = (np.arange(256) / 255).astype(np.float32)
    linear = linear_of(levels)
    assert linear.dtype == srgb_of(linear).dtype == np.float32
    np.testing.assert_allclose(srgb_of(linear), levels, atol=3e-7)
    assert (np.diff(linear) > 0).all()


def test_shape_is_kept_and_nothing_is_clipped() -> None:
    light = np.array([[-0.01, 0.0], [2.0, 8.0]])
    assert srgb_of(light).shape == (2, 2)
    with np.errstate(all="raise"):  # no roots of negative numbers on the way
        np.testing.assert_allclose(linear_of(srgb_of(light)), light, rtol=1e-12, atol=1e-12)
    assert srgb_of(light)[1, 1] > srgb_of(light)[1, 0] > 1


def test_both_parts_meet() -> None:
    around = np.array([LINEAR_KNEE, np.nextafter(LINEAR_KNEE, 1)])
    assert abs(np.diff(srgb_of(around))[0]) < 1e-7  # the standard's rounded constants leave a gap of about 3e-8


def test_no_error_grows_by_more_than_stated() -> None:
    slopes = np.diff(linear_of(np.linspace(0, 1, 10001))) * 10000
    assert slopes.max() <= STEEPEST_DECODING < slopes.max() * 1.001

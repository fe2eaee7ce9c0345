"""The transfer function: published values, and the way back."""

import numpy as np
import pytest

from openuni.manifests.arrays.srgb import LINEAR_KNEE, MAX_DECODING_SLOPE, linear_to_srgb, srgb_to_linear


@pytest.mark.parametrize(
    ("linear", "srgb"),
    [(0.0, 0.0), (1.0, 1.0), (0.18, 0.461356), (0.5, 0.735357), (0.2140411, 0.5), (0.001, 0.01292), (0.01, 0.0998528)],
)
def test_known_values(linear: float, srgb: float) -> None:
    assert float(linear_to_srgb(np.array(linear))) == pytest.approx(srgb, abs=1e-6)
    assert float(srgb_to_linear(np.array(srgb))) == pytest.approx(linear, abs=1e-6)


def test_all_8_bit_values_come_back_in_float32() -> None:
    levels = (np.arange(256) / 255).astype(np.float32)
    linear = srgb_to_linear(levels)
    assert linear.dtype == linear_to_srgb(linear).dtype == np.float32
    np.testing.assert_allclose(linear_to_srgb(linear), levels, atol=3e-7)
    assert (np.diff(linear) > 0).all()


def test_shape_is_kept_and_nothing_is_clipped() -> None:
    light = np.array([[-0.01, 0.0], [2.0, 8.0]])
    assert linear_to_srgb(light).shape == (2, 2)
    with np.errstate(all="raise"):  # no roots of negative numbers on the way
        np.testing.assert_allclose(srgb_to_linear(linear_to_srgb(light)), light, rtol=1e-12, atol=1e-12)
    assert linear_to_srgb(light)[1, 1] > linear_to_srgb(light)[1, 0] > 1


def test_both_parts_meet() -> None:
    around = np.array([LINEAR_KNEE, np.nextafter(LINEAR_KNEE, 1)])
    assert abs(np.diff(linear_to_srgb(around))[0]) < 1e-7  # the standard's rounded constants leave a gap of about 3e-8


def test_no_error_grows_by_more_than_stated() -> None:
    slopes = np.diff(srgb_to_linear(np.linspace(0, 1, 10001))) * 10000
    assert slopes.max() <= MAX_DECODING_SLOPE < slopes.max() * 1.001

"""Depth: the stated bounds hold, nearer is brighter, one scale per clip."""

import numpy as np
import pytest

from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.depth import Depth, DepthConstants

ROUNDING = 2.0**-22  # float32, relative; twice what one rounding costs


def disparity(lo: float = 0.25, hi: float = 9.0) -> Depth:
    array = np.random.default_rng(0).uniform(lo, hi, (4, 20, 30, 1)).astype(np.float32)
    array[0, 0, 0], array[-1, -1, -1] = lo, hi
    return Depth(array)


def metres(lo: float = 0.1, hi: float = 200.0) -> Depth:
    array = np.exp(np.random.default_rng(0).uniform(np.log(lo), np.log(hi), (4, 20, 30, 1))).astype(np.float32)
    return Depth(array, "metres")


@pytest.mark.parametrize(("lo", "hi"), [(0.25, 9.0), (0.0, 1.0), (1000.0, 1000.5), (0.0, 1e-6), (0.0, 60000.0)])
def test_stored_disparity_errs_by_half_a_step_at_most(lo: float, hi: float) -> None:
    depth = disparity(lo, hi)
    payload = depth.encode(25)
    assert payload.constants == DepthConstants("disparity", np.float32(lo).item(), np.float32(hi).item())
    back = Depth.decode(payload.data, payload.constants)
    assert back.unit == "disparity"
    error = np.abs(back.array.astype(np.float64) - depth.array)
    assert error.max() <= (hi - lo) / 131070 + hi * ROUNDING
    if hi < 100:
        assert error.max() > (hi - lo) / 131070 / 2  # the bound is not idle


@pytest.mark.parametrize(("lo", "hi"), [(0.1, 200.0), (1.0, 1.001), (1e-3, 1e5)])
def test_stored_metres_err_by_a_share_of_themselves(lo: float, hi: float) -> None:
    depth = metres(lo, hi)
    payload = depth.encode(25)
    back = Depth.decode(payload.data, payload.constants)
    assert back.unit == "metres"
    relative = np.abs(back.array.astype(np.float64) / depth.array - 1)
    assert relative.max() <= np.log(hi / lo) / 131070 * 1.001 + ROUNDING
    assert back.array.min() >= payload.constants.lo
    assert back.array.max() <= payload.constants.hi


@pytest.mark.parametrize(("unit", "value"), [("disparity", 0.0), ("disparity", 3.25), ("metres", 7.5)])
def test_a_constant_map_survives(unit: str, value: float) -> None:
    depth = Depth(np.full((2, 4, 5, 1), value, np.float32), unit)
    payload = depth.encode(25)
    np.testing.assert_array_equal(Depth.decode(payload.data, payload.constants).array, depth.array)
    assert (depth.to_rgb() == 0.5).all()
    np.testing.assert_allclose(Depth.from_rgb(depth.to_rgb(), depth.constants()).array, value)


def test_nearer_is_brighter_for_both_units() -> None:
    near_to_far = np.array([1.0, 2.0, 4.0], np.float32).reshape(1, 1, 3, 1)
    in_metres = Depth(near_to_far, "metres").to_rgb()[0, 0, :, 0]
    np.testing.assert_allclose(in_metres, [1, (1 / 2 - 1 / 4) / (1 - 1 / 4), 0], atol=1e-6)
    as_disparity = Depth(4 / near_to_far).to_rgb()[0, 0, :, 0]
    np.testing.assert_allclose(as_disparity, in_metres, atol=1e-6)
    assert (Depth(near_to_far).to_rgb()[..., 0] == Depth(near_to_far).to_rgb()[..., 2]).all()


@pytest.mark.parametrize("depth", [disparity(), metres()], ids=["disparity", "metres"])
def test_eight_bits_cost_half_a_level(depth: Depth) -> None:
    constants = depth.constants()
    eight_bits = np.rint(depth.to_rgb() * 255) / 255
    back = Depth.from_rgb(eight_bits, constants)
    assert back.unit == depth.unit
    assert rendered_error(back, depth).max() <= 1 / 510 * 1.001


@pytest.mark.parametrize("depth", [disparity(), metres()], ids=["disparity", "metres"])
def test_a_noisy_rendering_errs_by_its_noise(depth: Depth) -> None:
    noisy = depth.to_rgb() + np.random.default_rng(1).normal(0, 2 / 255, (*depth.array.shape[:3], 3))
    error = rendered_error(Depth.from_rgb(noisy, depth.constants()), depth)
    assert np.sqrt((error**2).mean()) < 2 / 255 / np.sqrt(3) * 1.05  # three channels are averaged
    assert error.max() < 0.03


def rendered_error(back: Depth, depth: Depth) -> np.ndarray:
    """Absolute error as a share of the rendering's range: disparity, or 1 / metres."""
    values = [signal.array.astype(np.float64) for signal in (back, depth)]
    first, second = (1 / value if depth.unit == "metres" else value for value in values)
    return np.abs(first - second) / (second.max() - second.min())


def test_without_constants_a_rendering_is_disparity_from_0_to_1() -> None:
    grey = np.array([0.0, 0.25, 1.0, 2.0]).reshape(1, 2, 2, 1).repeat(3, axis=-1)
    depth = Depth.from_rgb(grey)
    assert depth.unit == "disparity"
    np.testing.assert_allclose(depth.array.ravel(), [0, 0.25, 1, 1])


def test_the_scale_is_the_clips_and_not_the_frames() -> None:
    array = np.stack([np.full((4, 4, 1), value, np.float32) for value in (1.0, 2.0, 3.0)])
    payload = Depth(array).encode(25)
    stored = Depth.decode(payload.data, payload.constants)
    np.testing.assert_allclose(stored.take(1, 2).to_rgb(), 0.5, atol=1e-4)
    assert stored.fit(2, 2).constants() == payload.constants
    assert stored.take(1, 2).encode(25).constants == payload.constants
    wider = Depth(array, normalisation=DepthConstants("disparity", 1.5, 2.5))
    assert wider.encode(25).constants == payload.constants  # values beyond the scale are not cut off


def test_resizing_metres_is_linear_in_inverse_depth() -> None:
    inverse = np.linspace(0.1, 1.0, 8, dtype=np.float32)
    plane = Depth(np.broadcast_to(1 / inverse[None, None, :, None], (1, 6, 8, 1)).copy(), "metres")
    small = plane.resize(3, 4)
    np.testing.assert_allclose(1 / small.array[0, 0, :, 0], inverse.reshape(4, 2).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        Depth(plane.array).resize(3, 4).array[0, 0], plane.array[0, 0].reshape(4, 2).mean(1)[:, None]
    )


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (np.nan, "disparity", "NaN or infinite"),
        (np.inf, "metres", "NaN or infinite"),
        (-0.1, "disparity", "disparity must be >= 0"),
        (0.0, "metres", "metres must be > 0"),
        (1.0, "feet", 'unit must be "disparity" or "metres", got "feet"'),
    ],
)
def test_values_that_are_no_depth_are_named(value: float, unit: str, words: str) -> None:
    array = np.ones((2, 3, 3, 1), np.float32)
    array[1, 2, 0] = value
    with pytest.raises(ClipError, match=words):
        Depth(array, unit)


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        (("furlongs", 0.0, 1.0), 'must have unit "disparity" or "metres", got "furlongs"'),
        (("metres", 0.0, 1.0), "lo = 0 and hi = 1 in metres; lo must be > 0"),
        (("metres", -1.0, 1.0), "lo = -1 and hi = 1 in metres"),
        (("disparity", 2.0, 1.0), "lo = 2 and hi = 1 in disparity; lo must be >= 0"),
        (("disparity", 0.0, float("inf")), "hi finite"),
        (("disparity", float("nan"), 1.0), "lo = nan"),
    ],
)
def test_constants_of_a_strangers_file_are_checked(constants: tuple[str, float, float], message: str) -> None:
    data = Depth(np.ones((1, 4, 4, 1), np.float32)).encode(25.0).data
    with pytest.raises(ClipError, match=message):
        Depth.decode(data, DepthConstants(*constants))
    with pytest.raises(ClipError, match=message):
        Depth.from_rgb(np.zeros((1, 4, 4, 3), np.float32), DepthConstants(*constants))

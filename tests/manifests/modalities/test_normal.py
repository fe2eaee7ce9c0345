"""Normals: directions survive within the stated angles, and nothing stays nothing."""

import numpy as np
import pytest

from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.normal import MIN_LENGTH, Normal, NormalConstants


def directions() -> np.ndarray:
    """float32 [3, 40, 60, 3]: evenly over the sphere, the axes and diagonals among them."""
    vectors = np.random.default_rng(0).normal(size=(3, 40, 60, 3))
    signs = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 3)
    vectors.reshape(-1, 3)[:26] = signs[np.abs(signs).sum(axis=1) > 0]
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def with_nothing() -> np.ndarray:
    array = directions()
    array[:, :10] = 0
    return array


def degrees(back: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Angles; by the chord, which is precise for small ones."""
    chord = np.linalg.norm(back.astype(np.float64) - truth, axis=-1)
    return np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1)))


def test_stored_directions_err_by_two_thousandths_of_a_degree_at_most() -> None:
    normal = Normal(with_nothing())
    payload = normal.encode(25)
    back = Normal.decode(payload.data, payload.constants).array
    error = degrees(back, normal.array)
    assert 0.0005 < error.max() < 0.002  # the bound is not idle
    assert (back[:, :10] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(back[:, 10:], axis=-1), 1, atol=1e-6)


def test_axes_are_stored_exactly() -> None:
    axes = np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))]).astype(np.float32)[None, None]
    payload = Normal(axes).encode(25)
    np.testing.assert_array_equal(Normal.decode(payload.data, payload.constants).array, axes)


def test_vectors_rounded_to_16_bit_floats_pass_and_come_back_with_unit_length() -> None:
    rounded = directions().astype(np.float16).astype(np.float32)
    payload = Normal(rounded).encode(25)
    back = Normal.decode(payload.data, payload.constants).array
    np.testing.assert_allclose(np.linalg.norm(back, axis=-1), 1, atol=1e-6)
    exact = rounded / np.linalg.norm(rounded.astype(np.float64), axis=-1, keepdims=True)
    assert degrees(back, exact).max() < 0.002


def test_to_the_viewer_is_blue_right_is_red_up_is_green_and_nothing_is_grey() -> None:
    array = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)[None, None]
    assert Normal(array).to_rgb()[0, 0].tolist() == [[0.5, 0.5, 1], [1, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 0.5]]


def test_eight_bits_cost_four_tenths_of_a_degree_at_most() -> None:
    normal = Normal(with_nothing())
    back = Normal.from_rgb(np.rint(normal.to_rgb() * 255) / 255).array
    error = degrees(back, normal.array)
    assert 0.3 < error.max() < 0.4
    assert error[:, 10:].mean() < 0.2
    assert (back[:, :10] == 0).all()


def test_the_unquantised_rendering_is_inverted_to_float_precision() -> None:
    normal = Normal(with_nothing())
    assert degrees(Normal.from_rgb(normal.to_rgb(), normal.constants()).array, normal.array).max() < 1e-4


def test_a_noisy_rendering_errs_by_its_noise_and_nothing_stays_nothing() -> None:
    normal = Normal(with_nothing())
    noisy = normal.to_rgb() + np.random.default_rng(1).normal(0, 2 / 255, normal.array.shape)
    back = Normal.from_rgb(noisy).array
    assert degrees(back, normal.array)[:, 10:].mean() < 1.5  # 2 / 255 of noise is 4 / 255 of a unit vector, 0.9 degrees
    assert (back[:, :10] == 0).all()


@pytest.mark.parametrize(("distance", "surface"), [(0.124, False), (0.126, True), (0.3, True)])
def test_what_is_near_mid_grey_is_nothing(distance: float, surface: bool) -> None:
    picture = (0.5 + distance * directions()).astype(np.float32)
    back = Normal.from_rgb(picture).array
    assert (back.any(axis=-1) == surface).all()
    if surface:
        assert degrees(back, directions()).max() < 1e-3
    assert MIN_LENGTH == 2 * 0.125  # as documented


def test_opencvs_frame_has_y_and_z_turned() -> None:
    array = np.array([0.6, 0.0, -0.8], np.float32).reshape(1, 1, 1, 3)  # to the right and towards the viewer
    np.testing.assert_array_equal(Normal.from_opencv(array).array.ravel(), np.array([0.6, 0, 0.8], np.float32))
    up = Normal.from_opencv(np.array([0.0, -1, 0], np.float32).reshape(1, 1, 1, 3))
    assert up.array.ravel().tolist() == [0, 1, 0]


def test_resizing_averages_and_keeps_unit_length() -> None:
    half = np.sqrt(np.float32(0.5))
    columns = np.array([[1, 0, 0], [0, 0, 1]], np.float32)[None, None].repeat(2, axis=1)
    small = Normal(columns).resize(1, 1)
    np.testing.assert_allclose(small.array[0, 0, 0], [half, 0, half], atol=1e-6)
    for size in ((20, 30), (80, 120), (50, 30)):
        resized = Normal(directions()).resize(*size).array
        np.testing.assert_allclose(np.linalg.norm(resized, axis=-1), 1, atol=1e-5)


def test_resizing_does_not_mix_with_nothing() -> None:
    array = np.zeros((1, 8, 8, 3), np.float32)
    array[:, :, 3:] = (0.6, 0, 0.8)
    small = Normal(array).resize(4, 4).array
    np.testing.assert_allclose(small[:, :, 1:], np.broadcast_to([0.6, 0, 0.8], (1, 4, 3, 3)), atol=1e-6)
    assert (small[:, :, 0] == 0).all()
    mostly_nothing = np.zeros((1, 2, 2, 3), np.float32)
    mostly_nothing[0, 0, 0] = (0, 1, 0)
    assert (Normal(mostly_nothing).resize(1, 1).array == 0).all()


def test_normals_that_cancel_out_leave_one_of_them() -> None:
    array = np.array([[0, 0, 1], [0, 0, -1]], np.float32)[None, None].repeat(2, axis=1)
    assert Normal(array).resize(1, 1).array.ravel().tolist() in ([0, 0, 1], [0, 0, -1])


@pytest.mark.parametrize(
    ("vector", "words"),
    [
        ((0.0, 0.0, 0.99), "frame 1, row 2, column 0 has length 0.99. Allowed: 1 within 0.001"),
        ((0.0, 0.0, 1.01), "has length 1.01"),
        ((1e-6, 0.0, 0.0), "has length 1e-06"),
        ((np.nan, 0.0, 1.0), "NaN or infinite"),
        ((np.inf, 0.0, 0.0), "NaN or infinite"),
    ],
)
def test_vectors_that_are_no_normals_are_named(vector: tuple[float, ...], words: str) -> None:
    array = np.zeros((2, 3, 3, 3), np.float32)
    array[1, 2, 0] = vector
    with pytest.raises(ClipError, match=words):
        Normal(array)


def test_a_map_in_another_frame_is_refused() -> None:
    with pytest.raises(ClipError, match=r'must have frame = .*, got "world"'):
        Normal.decode(Normal(directions()).encode(25).data, NormalConstants("world"))

"""Flow: quantiser, the Middlebury colours against torchvision, and the way back from them."""

import numpy as np
import pytest
import torch
from torchvision.utils import flow_to_image

from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.flow import DEFAULT_DIVISOR_SHARE, DIVISOR_FLOOR_PX, Flow, FlowConstants


def flow(scale_px: float = 8.0, frames: int = 4, with_valid: bool = False) -> Flow:
    rng = np.random.default_rng(0)
    angle, speed = rng.uniform(-np.pi, np.pi, (2, frames, 30, 40))
    speed = np.abs(speed) / np.pi * scale_px
    array = np.stack([speed * np.cos(angle), speed * np.sin(angle)], axis=-1).astype(np.float32)
    return Flow(array, rng.random((frames, 30, 40, 1)) > 0.3 if with_valid else None)


def end_point_error(back: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.hypot(*np.moveaxis(back.astype(np.float64) - truth, -1, 0))


@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize(
    ("reach_px", "step_px"),
    [
        (0.0, 1 / 64),
        (3.0, 1 / 64),
        (511.0, 1 / 64),
        (512.0, 1 / 32),
        (1022.0, 1 / 32),
        (1023.0, 1 / 16),
        (9000.0, 1 / 2),
    ],
)
def test_stored_flow_errs_by_half_a_step_at_most(reach_px: float, step_px: float, with_valid: bool) -> None:
    signal = flow(min(reach_px, 300.0), with_valid=with_valid)
    signal.array[0, 0, 0], signal.array[0, 0, 1] = (reach_px, -reach_px), (-reach_px, reach_px)
    payload = signal.encode(25)
    assert payload.constants.step_px == step_px
    assert payload.constants.has_valid is with_valid
    back = Flow.decode(payload.data, payload.constants)
    assert np.abs(back.array - signal.array).max() <= step_px / 2
    if with_valid:
        np.testing.assert_array_equal(back.valid, signal.valid)
    else:
        assert back.valid is None


@pytest.mark.parametrize("divisor_px", [None, 5.0])
def test_rendering_is_torchvisions_for_the_same_divisor(divisor_px: float | None) -> None:
    signal = flow(5.0)
    if divisor_px is not None:  # torchvision divides each image by its own largest speed: make that the same in all
        signal.array[:, 0, 0] = (3.0, 4.0)
        speed = np.hypot(signal.array[..., 0], signal.array[..., 1])
        signal.array[speed > divisor_px] /= 1.01
    for field in signal.array:
        largest = float(torch.from_numpy(field).pow(2).sum(-1).sqrt().max())
        ours = np.floor(255 * Flow(field[None], None, divisor_px or largest).to_rgb()[0])
        theirs = flow_to_image(torch.from_numpy(field).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        # One level: float32 rounds differently on either side of a whole number, in at most 1 of 100 values.
        assert np.abs(ours - theirs).max() <= 1
        assert (ours != theirs).mean() <= 0.01


def test_directions_have_the_wheels_colours_and_rest_is_white() -> None:
    right, down, left, up = ((1, 0), (0, 1), (-1, 0), (0, -1))
    field = np.array([right, down, left, up, (0, 0)], np.float32).reshape(1, 1, 5, 2)
    colours = Flow(field, None, 1.0).to_rgb()[0, 0]
    hues = [int(np.argmax(colour)) for colour in colours[:4]]
    assert colours[4].tolist() == [1, 1, 1]
    assert colours[0][0] == 1  # right is red
    assert colours[0][1] < 0.01
    assert colours[2][1:].min() > 0.8  # left is cyan
    assert colours[2][0] == 0
    assert hues[1] != hues[3]


def test_the_divisor_is_one_per_clip_and_ignores_outliers() -> None:
    array = np.zeros((2, 100, 100, 2), np.float32)
    array[0, ..., 0] = 2.0
    array[1, :2, :2] = 300.0
    assert Flow(array).constants().divisor_px == pytest.approx(2.0)
    assert Flow(np.zeros((1, 4, 4, 2), np.float32)).constants().divisor_px == DIVISOR_FLOOR_PX
    rendered = Flow(array).to_rgb()
    assert rendered.min() >= 0
    saturated = Flow.from_rgb(rendered, Flow(array).constants()).array[1, 0, 0]
    np.testing.assert_allclose(saturated, [np.sqrt(2), np.sqrt(2)], atol=1e-4)  # direction kept, speed at the divisor


def test_the_unquantised_rendering_is_inverted_to_float_precision() -> None:
    signal = Flow(flow(6.0).array, None, 6.5)
    back = Flow.from_rgb(signal.to_rgb(), signal.constants())
    assert end_point_error(back.array, signal.array).max() < 1e-5 * 6.5
    assert back.divisor_px == 6.5


def test_eight_bits_cost_a_hundredth_of_the_divisor_at_most() -> None:
    signal = Flow(flow(6.0).array, None, 6.5)
    for to_bits in (np.rint, np.floor):
        back = Flow.from_rgb(to_bits(signal.to_rgb() * 255) / 255, signal.constants())
        error = end_point_error(back.array, signal.array) / 6.5
        assert error.max() < (0.01 if to_bits is np.rint else 0.02)
        assert error.mean() < (0.003 if to_bits is np.rint else 0.006)


def test_a_noisy_rendering_errs_little() -> None:
    signal = Flow(flow(6.0).array, None, 6.5)
    noisy = signal.to_rgb() + np.random.default_rng(1).normal(0, 2 / 255, (*signal.array.shape[:3], 3))
    error = end_point_error(Flow.from_rgb(noisy, signal.constants()).array, signal.array) / 6.5
    assert error.mean() < 0.02
    assert np.percentile(error, 99) < 0.05


def test_the_inverse_is_the_nearest_colour() -> None:
    rng = np.random.default_rng(2)
    picture = rng.random((1, 1, 60, 3)).astype(np.float32)
    found = Flow.from_rgb(picture, FlowConstants(1 / 64, 1.0, False))
    distance = np.linalg.norm(Flow(found.array, None, 1.0).to_rgb() - picture, axis=-1)[0, 0]
    angle, radius = np.meshgrid(np.linspace(-np.pi, np.pi, 1441), np.linspace(0, 1, 101))
    grid = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)[None].astype(np.float32)
    colours = Flow(grid, None, 1.0).to_rgb().reshape(-1, 3)
    best = np.array([np.linalg.norm(colours - pixel, axis=1).min() for pixel in picture[0, 0]])
    assert (distance <= best + 5e-3).all()


def test_without_constants_the_divisor_is_two_percent_of_the_diagonal() -> None:
    red = np.array([1.0, 0, 0]).reshape(1, 1, 1, 3).repeat(30, axis=1).repeat(40, axis=2)
    found = Flow.from_rgb(red)
    assert pytest.approx(1.0) == DEFAULT_DIVISOR_SHARE * 50
    np.testing.assert_allclose(found.array[0, 0, 0], [1.0, 0.0], atol=1e-5)


def test_from_pairs_repeats_the_last_and_one_frame_is_still() -> None:
    pairs = flow(frames=3, with_valid=True)
    whole = Flow.from_pairs(pairs.array, pairs.valid)
    assert whole.array.shape[0] == 4
    np.testing.assert_array_equal(whole.array[3], pairs.array[2])
    np.testing.assert_array_equal(whole.valid[3], pairs.valid[2])
    single = Flow.from_pairs(np.zeros((0, 5, 6, 2), np.float32), np.zeros((0, 5, 6, 1), bool))
    assert single.array.shape == (1, 5, 6, 2)
    assert not single.array.any()
    assert single.valid.all()
    assert Flow.from_pairs(pairs.array).valid is None


def test_resizing_scales_the_vectors_with_the_size() -> None:
    array = np.broadcast_to(np.array([4.0, -6.0], np.float32), (2, 12, 20, 2)).copy()
    resized = Flow(array, np.ones((2, 12, 20, 1), bool), 10.0).resize(24, 10)
    np.testing.assert_allclose(resized.array[0, 0, 0], [2.0, -12.0])
    assert resized.divisor_px == pytest.approx(10.0)  # sqrt(2 * 1/2) = 1
    assert Flow(array, None, 10.0).resize(6, 10).divisor_px == pytest.approx(5.0)
    assert Flow(array).resize(6, 10).divisor_px is None


def test_a_resized_clip_looks_the_same() -> None:
    signal = Flow(np.broadcast_to(np.array([4.0, -6.0], np.float32), (1, 12, 20, 2)).copy(), None, 10.0)
    np.testing.assert_allclose(signal.resize(6, 10).to_rgb(), signal.to_rgb()[:, ::2, ::2], atol=1e-5)


def test_valid_goes_with_its_pixels() -> None:
    signal = flow(with_valid=True)
    np.testing.assert_array_equal(signal.take(1, 3).valid, signal.valid[1:3])
    np.testing.assert_array_equal(signal.crop(2, 3, 9, 8).valid, signal.valid[:, 2:11, 3:11])
    np.testing.assert_array_equal(signal.resize(15, 20).valid, signal.valid[:, 1::2, 1::2])
    fitted = signal.fit(20, 20)
    assert fitted.valid.shape == (4, 20, 20, 1)
    assert Flow(signal.array).fit(20, 20).valid is None


@pytest.mark.parametrize(
    ("array", "valid", "words"),
    [
        (np.full((1, 3, 3, 2), np.nan, np.float32), None, "NaN or infinite"),
        (np.zeros((1, 3, 3, 2)), None, "must be float32"),
        (np.zeros((1, 3, 3, 2), np.float32), np.zeros((1, 3, 3), bool), "valid must be bool"),
        (np.zeros((1, 3, 3, 2), np.float32), np.zeros((1, 3, 3, 1), np.uint8), "valid must be bool"),
    ],
)
def test_arrays_that_are_no_flow_are_named(array: np.ndarray, valid: np.ndarray | None, words: str) -> None:
    with pytest.raises(ClipError, match=words):
        Flow(array, valid)

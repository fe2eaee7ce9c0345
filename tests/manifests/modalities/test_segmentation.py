"""Segmentation: exact in storage, and exact from colours within the stated margin."""

import numpy as np
import pytest

from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.segmentation import Segmentation, SegmentationConstants, margin, palette


def ids(count: int, start: int = 0) -> Segmentation:
    array = np.random.default_rng(0).integers(start, start + count, (3, 24, 32, 1)).astype(np.uint16)
    array.flat[:count] = np.arange(start, start + count)
    return Segmentation(array)


@pytest.mark.parametrize(("count", "start"), [(1, 0), (9, 0), (256, 0), (2, 255), (300, 65000), (1, 65535)])
def test_storage_is_exact_for_all_ids(count: int, start: int) -> None:
    signal = ids(count, start)
    payload = signal.encode(25)
    assert payload.constants == SegmentationConstants(list(range(start, start + count)))
    back = Segmentation.decode(payload.data, payload.constants)
    assert back.array.dtype == np.uint16
    np.testing.assert_array_equal(back.array, signal.array)


def test_small_ids_are_stored_in_8_bits() -> None:
    array = np.random.default_rng(0).integers(0, 200, (2, 64, 64, 1)).astype(np.uint16)
    large = Segmentation(array + np.uint16(100)).encode(25).data
    assert len(Segmentation(array).encode(25).data) < len(large)


def test_the_palette_is_pascal_vocs() -> None:
    first = [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
        (128, 0, 128),
        (0, 128, 128),
        (128, 128, 128),
    ]
    assert np.rint(palette()[:8] * 255).astype(int).tolist() == [list(colour) for colour in first]
    assert np.rint(palette()[[8, 20, 255]] * 255).astype(int).tolist() == [[64, 0, 0], [0, 64, 128], [224, 224, 192]]
    assert len(np.unique(palette(), axis=0)) == 256


def test_stated_margins_are_the_palettes() -> None:
    assert margin(list(range(8))) * 255 == pytest.approx(64)
    assert margin(list(range(64))) * 255 == pytest.approx(32)
    assert margin(list(range(256))) * 255 == pytest.approx(16)
    assert margin([3]) == np.inf


@pytest.mark.parametrize("chosen", [list(range(8)), list(range(64)), list(range(256)), [0, 8, 9, 200, 255]])
def test_any_perturbation_below_the_margin_is_harmless(chosen: list[int]) -> None:
    array = np.array(chosen, np.uint16)[np.random.default_rng(0).integers(0, len(chosen), (2, 40, 50, 1))]
    signal = Segmentation(array)
    direction = np.random.default_rng(1).normal(size=(2, 40, 50, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    for share, exact in ((0.999, True), (3.0, False)):
        moved = signal.to_rgb() + direction * margin(chosen) * share
        back = Segmentation.from_rgb(moved, SegmentationConstants(chosen)).array
        assert np.array_equal(back, array) is exact


@pytest.mark.parametrize("chosen", [[0, 1], [0, 8, 9, 200, 255], list(range(0, 256, 3))])
def test_the_inverse_is_the_nearest_colour_among_the_clips(chosen: list[int]) -> None:
    picture = np.random.default_rng(0).uniform(-0.2, 1.2, (1, 30, 40, 3)).astype(np.float32)
    back = Segmentation.from_rgb(picture, SegmentationConstants(chosen)).array[..., 0]
    distances = np.linalg.norm(picture[..., None, :] - palette()[chosen], axis=-1)
    found = np.linalg.norm(picture - palette()[back], axis=-1)
    assert set(np.unique(back)) <= set(chosen)
    np.testing.assert_allclose(found, distances.min(axis=-1), atol=1e-5)


def test_without_constants_all_256_colours_are_candidates() -> None:
    signal = ids(256)
    noisy = signal.to_rgb() + np.random.default_rng(1).normal(0, 2 / 255, (3, 24, 32, 3))
    np.testing.assert_array_equal(Segmentation.from_rgb(noisy).array, signal.array)


def test_a_noisy_rendering_of_few_ids_is_exact() -> None:
    signal = ids(8)
    noisy = signal.to_rgb() + np.random.default_rng(1).normal(0, 2 / 255, (3, 24, 32, 3))
    np.testing.assert_array_equal(Segmentation.from_rgb(noisy, signal.constants()).array, signal.array)
    much = signal.to_rgb() + np.random.default_rng(1).normal(0, 16 / 255, (3, 24, 32, 3))
    wrong = Segmentation.from_rgb(much, signal.constants()).array != signal.array
    assert wrong.mean() < 1e-3  # four standard deviations
    assert (Segmentation.from_rgb(much).array != signal.array).mean() > 0.1  # which knowing the ids has saved


def test_ids_without_a_colour_are_an_error() -> None:
    with pytest.raises(ClipError, match="id 256 cannot be rendered, ids must be at most 255"):
        ids(1, 256).to_rgb()
    with pytest.raises(ClipError, match=r"within 0\.\.255"):
        Segmentation.from_rgb(np.zeros((1, 2, 2, 3)), SegmentationConstants([0, 300]))
    with pytest.raises(ClipError, match="got no ids"):
        Segmentation.from_rgb(np.zeros((1, 2, 2, 3)), SegmentationConstants([]))


def test_resizing_invents_no_id() -> None:
    signal = ids(9)
    for size in ((7, 11), (48, 64), (24, 5)):
        assert set(np.unique(signal.resize(*size).array)) <= set(range(9))
    np.testing.assert_array_equal(signal.resize(48, 64).array[:, ::2, ::2], signal.array)


def test_a_window_keeps_the_clips_ids() -> None:
    array = np.zeros((2, 4, 4, 1), np.uint16)
    array[1] = 5
    payload = Segmentation(array).encode(25)
    stored = Segmentation.decode(payload.data, payload.constants)
    assert stored.take(0, 1).constants().ids == [0, 5]
    assert stored.take(0, 1).encode(25).constants.ids == [0]


@pytest.mark.parametrize("array", [np.zeros((1, 2, 2, 1), np.uint8), np.zeros((1, 2, 2, 3), np.uint16)])
def test_other_arrays_are_named(array: np.ndarray) -> None:
    with pytest.raises(ClipError, match=r"segmentation: array must be uint16 \[T, H, W, 1\], got"):
        Segmentation(array)

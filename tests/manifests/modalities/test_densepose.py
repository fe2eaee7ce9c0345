"""DensePose: exact in storage, MagicAnimate's colours, and parts that come back within the margin."""

import numpy as np
import pytest

from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.densepose import DensePose, DensePoseConstants, margin, part_colours
from openuni.manifests.video.encode import encode_lossless


def densepose() -> DensePose:
    array = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
    array[..., 0] %= 25
    array[array[..., 0] == 0] = 0
    return DensePose(array)


def test_storage_is_exact() -> None:
    signal = densepose()
    payload = signal.encode(25)
    assert payload.suffix == "mkv"
    np.testing.assert_array_equal(DensePose.decode(payload.data, payload.constants).array, signal.array)


def test_colours_are_magicanimates() -> None:
    colours = np.rint(part_colours() * 255).astype(int).tolist()
    assert colours[0] == [68, 1, 84]  # viridis at 0, of the background too
    assert colours[24] == [253, 231, 37]  # viridis at 255
    assert colours[12] == [33, 144, 141]  # at 127: in the middle, green
    assert len({tuple(colour) for colour in colours}) == 25
    brightness = part_colours() @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(brightness) > 0).all()  # viridis grows lighter all the way


def test_levels_are_rounded_down() -> None:
    import cv2

    viridis = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]
    levels = [0, 10, 21, 31, 42, 53, 63, 74, 85]  # 255 I / 24 of the first parts: 10.6, 21.25, 31.9, 42.5, ...
    np.testing.assert_array_equal(np.rint(part_colours()[:9] * 255), viridis[levels])


def test_the_picture_shows_the_part_alone() -> None:
    signal = densepose()
    np.testing.assert_array_equal(signal.to_rgb(), part_colours()[signal.array[..., 0]])
    other = signal.array.copy()
    other[..., 1:] = 7
    np.testing.assert_array_equal(DensePose(other).to_rgb(), signal.to_rgb())


def test_parts_come_back_from_8_bits_and_places_do_not() -> None:
    signal = densepose()
    back = DensePose.from_rgb(np.rint(signal.to_rgb() * 255) / 255, signal.constants()).array
    np.testing.assert_array_equal(back[..., 0], signal.array[..., 0])
    assert not back[..., 1:].any()


def test_the_stated_margin_is_the_colours() -> None:
    assert margin() * 255 == pytest.approx(4.74, abs=0.01)


def test_any_perturbation_below_the_margin_is_harmless() -> None:
    signal = densepose()
    direction = np.random.default_rng(1).normal(size=signal.array.shape)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    for share, exact in ((0.999, True), (3.0, False)):
        back = DensePose.from_rgb(signal.to_rgb() + direction * margin() * share).array
        assert np.array_equal(back[..., 0], signal.array[..., 0]) is exact


def test_the_inverse_is_the_nearest_colour() -> None:
    picture = np.random.default_rng(0).uniform(-0.2, 1.2, (1, 30, 40, 3)).astype(np.float32)
    back = DensePose.from_rgb(picture).array[..., 0]
    distances = np.linalg.norm(picture[..., None, :] - part_colours(), axis=-1)
    found = np.linalg.norm(picture - part_colours()[back], axis=-1)
    np.testing.assert_allclose(found, distances.min(axis=-1), atol=1e-5)


def test_resizing_keeps_a_pixels_three_values_together() -> None:
    signal = densepose()
    known = {tuple(pixel) for pixel in signal.array.reshape(-1, 3).tolist()}
    for size in ((7, 11), (48, 64), (24, 5)):
        assert {tuple(pixel) for pixel in signal.resize(*size).array.reshape(-1, 3).tolist()} <= known
    np.testing.assert_array_equal(signal.resize(48, 64).array[:, ::2, ::2], signal.array)


def test_other_arrays_are_named() -> None:
    with pytest.raises(ClipError, match=r"parts must be within 0\.\.24, got 25. Channels are I, U, V"):
        DensePose(np.full((1, 2, 2, 3), 25, np.uint8))
    with pytest.raises(ClipError, match=r"densepose: array must be uint8 \[T, H, W, 3\], got float32"):
        DensePose(np.zeros((1, 2, 2, 3), np.float32))


def test_files_of_another_kind_are_refused() -> None:
    with pytest.raises(ClipError, match="must have part_count = 24, got 14"):
        DensePose.decode(densepose().encode(25).data, DensePoseConstants(14))
    with pytest.raises(ClipError, match="stored planes must be uint8 with 3 channels, got uint16"):
        DensePose.decode(encode_lossless(np.zeros((1, 2, 2, 3), np.uint16), 25), DensePoseConstants())

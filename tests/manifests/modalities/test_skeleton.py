"""Skeletons: exact in storage, points that follow the picture, and a drawing from which there is no way back."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load, save

from openuni.manifests.contracts.modality import read_rendering
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities._stick_figure import draw
from openuni.manifests.modalities.skeleton import Skeleton, SkeletonConstants
from tests.manifests.modalities.people import standing

H, W = 120, 160


def skeleton() -> Skeleton:
    """Two persons in three frames; the second is not there in the last."""
    frames = [[standing((40.0 + 5 * t, 30.0), 12.0), standing((110.0, 40.0 + 2 * t), 10.0)] for t in range(3)]
    array = np.array(frames, np.float32)
    array[..., 2] = np.random.default_rng(0).uniform(0.2, 1, array.shape[:3])
    array[2, 1] = 0
    return Skeleton(array, H, W)


def test_storage_is_exact() -> None:
    signal = skeleton()
    payload = signal.encode(25)
    assert payload.suffix == Skeleton.suffix == "safetensors"
    assert payload.constants == SkeletonConstants(H, W, 2)
    back = Skeleton.decode(payload.data, SkeletonConstants(**json.loads(json.dumps(payload.constants._asdict()))))
    np.testing.assert_array_equal(back.array, signal.array)
    assert back.array.dtype == np.float32
    assert back.size_px == (H, W)
    assert back.constants() == payload.constants
    assert signal.encode(30).data == payload.data, "equal values must give equal bytes"
    np.testing.assert_array_equal(load(payload.data)["points"], signal.array)  # others read it too


def test_a_clip_without_people_is_stored() -> None:
    nobody = Skeleton(np.zeros((4, 0, 133, 3), np.float32), H, W)
    payload = nobody.encode(25)
    back = Skeleton.decode(payload.data, payload.constants)
    assert back.array.shape == (4, 0, 133, 3)
    assert not back.fit(32, 64).to_rgb().any()


def test_the_picture_is_the_drawing_of_every_frame() -> None:
    signal = skeleton()
    picture = signal.to_rgb()
    assert picture.dtype == np.float32
    assert picture.shape == (3, H, W, 3)
    for image, points in zip(picture, signal.array, strict=True):
        np.testing.assert_array_equal(image, draw(points, H, W))
    assert picture[1].any()
    assert not np.array_equal(picture[0], picture[1])


def test_a_drawing_cannot_be_read_back_and_stays_a_picture() -> None:
    picture = skeleton().to_rgb()
    assert not Skeleton.invertible
    with pytest.raises(ClipError, match="skeleton: a drawing cannot be converted back"):
        Skeleton.from_rgb(picture)
    kept = read_rendering("skeleton", picture)
    assert kept.name == "rgb"
    assert np.abs(kept.to_rgb() - picture).max() <= 1 / 510 + 1e-6


def test_resizing_moves_the_points_with_the_picture() -> None:
    signal = skeleton()
    small = signal.resize(60, 320)
    assert small.size_px == (60, 320)
    np.testing.assert_allclose(small.array[..., 0], signal.array[..., 0] * 2)
    np.testing.assert_allclose(small.array[..., 1], signal.array[..., 1] / 2)
    np.testing.assert_array_equal(small.array[..., 2], signal.array[..., 2])


def test_cropping_counts_from_the_corner_and_forgets_what_is_outside() -> None:
    array = np.zeros((1, 1, 133, 3), np.float32)
    array[0, 0, :4] = [(20, 10, 0.5), (19.9, 20, 0.5), (50, 20, 0.5), (49.9, 29.9, 1)]
    window = Skeleton(array, H, W).crop(10, 20, 20, 30)
    assert window.size_px == (20, 30)
    found = window.array[0, 0, :5]
    np.testing.assert_allclose(found[0], [0, 0, 0.5])
    np.testing.assert_array_equal(found[[1, 2, 4]], 0)  # left of it, on its right edge, never there
    np.testing.assert_allclose(found[3], [29.9, 19.9, 1], rtol=1e-6)


def test_fit_covers_and_crops_the_centre() -> None:
    array = np.zeros((2, 1, 133, 3), np.float32)
    array[:, 0, 0] = (80, 60, 1)  # the middle of the picture
    array[:, 0, 1] = (1, 60, 1)  # at its left edge, out of a square window
    fitted = Skeleton(array, H, W).fit(60, 60)
    assert fitted.size_px == (60, 60)
    np.testing.assert_allclose(fitted.array[:, 0, 0], [[30, 30, 1]] * 2)
    assert not fitted.array[:, 0, 1:].any()
    assert fitted.to_rgb().shape == (2, 60, 60, 3)


def test_take_keeps_the_picture() -> None:
    part = skeleton().take(1, 3)
    np.testing.assert_array_equal(part.array, skeleton().array[1:])
    assert part.constants() == SkeletonConstants(H, W, 2)


def test_nothing_is_written_into_the_array() -> None:
    signal = skeleton()
    before = signal.array.copy()
    signal.array.flags.writeable = False
    signal.to_rgb()
    signal.encode(25)
    signal.fit(32, 32)
    np.testing.assert_array_equal(signal.array, before)


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ((np.nan, 0, 1), "NaN or infinite"),
        ((0, np.inf, 1), "NaN or infinite"),
        ((1, 1, 1.5), r"confidence must be within 0\.\.1, got 0 to 1.5"),
        ((1, 1, -1), "got -1 to 0"),
        ((3, 0, 0), "points with confidence 0 must have x = y = 0"),
    ],
)
def test_points_that_are_none_are_named(point: tuple[float, ...], words: str) -> None:
    array = np.zeros((1, 1, 133, 3), np.float32)
    array[0, 0, 7] = point
    with pytest.raises(ClipError, match=words):
        Skeleton(array, H, W)


@pytest.mark.parametrize(
    "array", [np.zeros((1, 1, 18, 3), np.float32), np.zeros((1, 1, 133, 3)), np.zeros((1, 1, 133, 2), np.float32)]
)
def test_other_arrays_are_named(array: np.ndarray) -> None:
    with pytest.raises(ClipError, match=r"skeleton: array must be float32 \[T, P, 133, 3\], got"):
        Skeleton(array, H, W)
    with pytest.raises(ClipError, match="skeleton: array must be"):
        Skeleton(array[0], H, W)


@pytest.mark.parametrize(("height_px", "width_px"), [(0, W), (H, -1), (H, 65537)])
def test_pictures_of_no_size_are_refused(height_px: int, width_px: int) -> None:
    with pytest.raises(ClipError, match=r"sides must be 1\.\.65536 px"):
        Skeleton(np.zeros((1, 1, 133, 3), np.float32), height_px, width_px)
    with pytest.raises(ClipError, match=r"sides must be 1\.\.65536 px"):
        Skeleton.decode(skeleton().encode(25).data, SkeletonConstants(height_px, width_px, 2))


def bomb() -> bytes:
    """A safetensors file of a few bytes that claims 400 GB."""
    header = {"points": {"dtype": "F32", "shape": [250_000_000, 1, 133, 3], "data_offsets": [0, 399_000_000_000]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "damaged"),
        (b"\x80\x04K\x01." * 10, "damaged"),  # a pickle
        (skeleton().encode(25).data[:-1], "damaged"),
        (bomb(), "damaged"),
        (save({"other": np.zeros((3, 2, 133, 3), np.float32)}), 'tensor "points" must be .*, got none'),
        (save({"points": np.zeros((3, 1, 133, 3), np.float32)}), r"must be \[T, 2, 133, 3\], got \(3, 1, 133, 3\)"),
        (save({"points": np.zeros((3, 2), np.float32)}), r"got \(3, 2\)"),
        (save({"points": np.zeros((3, 2, 18, 3), np.float32)}), "array must be float32"),
        (save({"points": np.zeros((3, 2, 133, 3), np.float64)}), "array must be float32"),
        (save({"points": np.full((3, 2, 133, 3), np.nan, np.float32)}), "NaN"),
    ],
)
def test_a_strangers_file_is_checked(data: bytes, words: str) -> None:
    with pytest.raises(ClipError, match=words):
        Skeleton.decode(data, SkeletonConstants(H, W, 2))

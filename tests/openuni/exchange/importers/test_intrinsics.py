"""Streams of different scenes are reported as such, not as misaligned by the shift that happens to fit least badly."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from openuni.exchange.importers._alignment import thumbnails
from openuni.exchange.importers._intrinsics import MIN_CORRELATION, check_product
from openuni.manifests.arrays.srgb import linear_to_srgb
from openuni.manifests.errors import ClipError
from tests.openuni.exchange.importers.rooms import pictures, render

WHERE = Path("clip/rgb")


def brightening(seed: int, frames: int = 21) -> np.ndarray:
    """float32 [T, 48, 64, 3] in 0..1: smooth blobs whose brightness changes steadily, as in generated maps."""
    random = np.random.default_rng(seed)
    first, step = random.random((2, 8, 8, 3)).astype(np.float32)
    steps = (np.clip(first + 0.1 * number * (step - 0.5), 0, 1) for number in range(frames))
    return np.stack([cv2.resize(cells, (64, 48), interpolation=cv2.INTER_LINEAR) for cells in steps])


def reason(picture: np.ndarray, albedo: np.ndarray, irradiance: np.ndarray) -> str:
    with pytest.raises(ClipError) as error:
        check_product(*map(thumbnails, (picture, albedo, irradiance)), WHERE)
    return str(error.value)


@pytest.mark.parametrize("seed", range(8))
def test_generated_maps_of_another_scene_do_not_explain_the_picture(seed: int) -> None:
    """The smallest error is at some shift for each of these."""
    albedo, irradiance = brightening(3 * seed), brightening(3 * seed + 1)
    picture = 255 * (0.8 * brightening(3 * seed + 2) + 0.2 * linear_to_srgb(albedo * irradiance))
    found = re.search(
        r"does not explain rgb: correlation (-?[\d.]+), and at most (-?[\d.]+) if a stream is shifted; minimum 0.5",
        reason(picture, albedo, irradiance),
    )
    assert found, reason(picture, albedo, irradiance)
    assert float(found[1]) <= float(found[2]) + 0.02 < MIN_CORRELATION + 0.02


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_a_picture_of_two_scenes_is_not_called_misaligned(share: float) -> None:
    """All change steadily, so that some shift has a smaller error than none; it explains nothing more."""
    for seed in range(4):
        albedo, irradiance = brightening(3 * seed), brightening(3 * seed + 1)
        picture = 255 * (share * brightening(3 * seed + 2) + (1 - share) * linear_to_srgb(albedo * irradiance))
        try:
            fit = check_product(*map(thumbnails, (picture, albedo, irradiance)), WHERE)
        except ClipError as error:
            assert "does not explain rgb" in str(error) and "misaligned" not in str(error)
        else:  # mostly the product, and the error is smallest without a shift
            assert share == 0.4 and fit.correlation is not None and fit.correlation > 0.7


@pytest.mark.parametrize("stream", ["albedo", "rgb"])
def test_a_shifted_stream_of_a_noisy_picture_is_named(stream: str) -> None:
    room, other = render(21), render(21, phase=-0.12)
    streams = {"rgb": room, "albedo": room} | {stream: other}
    picture = pictures(streams["rgb"]) + np.random.default_rng(0).normal(0, 20, (21, 48, 64, 3))
    text = reason(np.clip(picture, 0, 255).astype(np.uint8), streams["albedo"].albedo, room.irradiance)
    assert f"{stream} is misaligned: 2 frames behind" in text


@pytest.mark.parametrize("phase", [0.4, 0.8, 1.4, 2.0])
def test_maps_from_other_places_of_a_scene_do_not_explain_the_picture(phase: float) -> None:
    there, elsewhere = render(21, phase=phase), render(21, phase=-phase)
    text = reason(pictures(render(21, phase=2 * phase)), there.albedo, elsewhere.irradiance)
    assert "does not explain rgb" in text and "misaligned" not in text


@pytest.mark.parametrize("late", [-3, -1, 1, 3])
@pytest.mark.parametrize("stream", ["albedo", "irradiance", "rgb"])
def test_a_shifted_stream_is_still_named_with_its_shift(stream: str, late: int) -> None:
    room, other = render(21), render(21, phase=-0.06 * late)
    streams = {"rgb": room, "albedo": room, "irradiance": room} | {stream: other}
    text = reason(pictures(streams["rgb"]), streams["albedo"].albedo, streams["irradiance"].irradiance)
    count = f"{abs(late)} frame{'s' * (abs(late) > 1)} {'behind' if late > 0 else 'ahead'}"
    assert f"{stream} is misaligned: {count}" in text


def test_aligned_streams_pass() -> None:
    room = render(21)
    fit = check_product(*map(thumbnails, (pictures(room), room.albedo, room.irradiance)), WHERE)
    assert fit.correlation is not None and fit.correlation > 0.99 and fit.aligned_by_motion

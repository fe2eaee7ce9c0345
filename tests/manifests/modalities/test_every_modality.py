"""The contract, held against every modality there is: a new file is checked without a line here."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from openuni.manifests.contracts.modality import Modality, find_modality, modality_names, picture_levels
from openuni.manifests.errors import ClipError

FRAMES, HEIGHT_PX, WIDTH_PX = 3, 48, 64


def rendering(frames: int = FRAMES, height_px: int = HEIGHT_PX, width_px: int = WIDTH_PX) -> np.ndarray:
    """float32 [T, H, W, 3]: coarse random colours."""
    coarse = np.random.default_rng(0).random((frames, height_px // 8, width_px // 8, 3)).astype(np.float32)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def example(name: str) -> Modality:
    """A value read from a rendering without constants, as the trainer reads what a model generated."""
    try:
        return find_modality(name).from_rgb(rendering())
    except ClipError as error:
        pytest.skip(f"{name} cannot be read back from a rendering, its own test holds the contract: {error}")


def maps(signal: Modality) -> dict[str, np.ndarray]:
    """All arrays of a value: `array` and per-pixel companions such as a validity mask."""
    found = {field.name: getattr(signal, field.name) for field in dataclasses.fields(signal)}
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray) and value.ndim == 4}


@pytest.fixture(params=modality_names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_class_says_what_it_is(name: str) -> None:
    kind = find_modality(name)
    assert kind.name == name
    assert kind.prompt.strip()
    assert kind.__doc__
    assert dataclasses.is_dataclass(kind)
    assert hasattr(kind.constants_type, "_fields")
    assert kind.constants_type._fields, "Parquet has no empty struct"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_rendering_that_is_not_finite_is_refused(name: str, value: float) -> None:
    """A cast to whole numbers, a comparison of colours or a clip would make a value of it."""
    example(name)
    spoilt = rendering()
    spoilt[1, 7, 9, 1] = value
    with pytest.raises(ClipError, match=f"{name}: the rendering has NaN or infinite values"):
        find_modality(name).from_rgb(spoilt)


def test_levels_of_a_picture_are_rounded_and_never_made_of_nan() -> None:
    assert picture_levels("depth", np.array([-0.1, 0, 0.5, 0.998, 2], np.float32)).tolist() == [0, 0, 128, 254, 255]
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(ClipError, match="depth: the rendering has NaN or infinite values"):
            picture_levels("depth", np.array([0.5, value], np.float32))


def test_prompts_differ() -> None:
    prompts = [find_modality(name).prompt for name in modality_names()]
    assert len(set(prompts)) == len(prompts)


def test_constants_are_plain_values_that_come_back_from_json(name: str) -> None:
    constants = example(name).constants()
    assert isinstance(constants, find_modality(name).constants_type)
    for value in constants:
        assert_plain(value)
    assert type(constants)(**json.loads(json.dumps(constants._asdict()))) == constants


def assert_plain(value: Any) -> None:
    assert type(value) in (float, int, str, bool, list), f"{value!r} is a {type(value)}"
    for item in value if isinstance(value, list) else ():
        assert_plain(item)


def test_rgb_is_float32_within_0_and_1(name: str) -> None:
    rgb = example(name).to_rgb()
    assert rgb.dtype == np.float32
    assert rgb.shape == (FRAMES, HEIGHT_PX, WIDTH_PX, 3)
    assert rgb.min() >= 0
    assert rgb.max() <= 1


def test_from_rgb_takes_any_float_rendering(name: str) -> None:
    example(name)
    perturbed = rendering() + np.random.default_rng(1).normal(0, 0.3, rendering().shape)  # float64, beyond 0..1
    signal = find_modality(name).from_rgb(perturbed)
    assert signal.array.shape[:3] == (FRAMES, HEIGHT_PX, WIDTH_PX)


def test_a_rendering_of_a_rendering_is_the_same(name: str) -> None:
    signal = example(name)
    rgb = signal.to_rgb()
    again = find_modality(name).from_rgb(rgb, signal.constants()).to_rgb()
    assert np.abs(again - rgb).max() < 2 / 255


def test_stored_values_keep_shape_dtype_rendering_and_constants(name: str) -> None:
    signal = example(name)
    payload = signal.encode(25.0)
    back = type(signal).decode(payload.data, payload.constants)
    for field, array in maps(signal).items():
        assert maps(back)[field].shape == array.shape
        assert maps(back)[field].dtype == array.dtype
    assert back.constants() == payload.constants
    assert np.abs(back.to_rgb() - signal.to_rgb()).mean() < 1 / 255  # not the largest: flow's wheel has a seam
    assert payload.suffix
    assert signal.encode(25.0).data == payload.data, "equal values must give equal bytes"


def test_storing_twice_loses_nothing_more(name: str) -> None:
    signal = example(name)
    first = signal.encode(25.0)
    once = type(signal).decode(first.data, first.constants)
    second = once.encode(25.0)
    twice = type(signal).decode(second.data, second.constants)
    np.testing.assert_allclose(twice.array, once.array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2])
def test_short_and_odd_sized_clips_are_stored(name: str, frames: int) -> None:
    example(name)
    signal = find_modality(name).from_rgb(rendering()[:frames, :11, :7])
    payload = signal.encode(30.0)
    assert type(signal).decode(payload.data, payload.constants).array.shape[:3] == (frames, 11, 7)


def test_take_crop_resize_and_fit_carry_every_map(name: str) -> None:
    signal = example(name)
    for part, shape in (
        (signal.take(1, 3), (2, HEIGHT_PX, WIDTH_PX)),
        (signal.crop(2, 3, 5, 7), (FRAMES, 5, 7)),
        (signal.resize(7, 9), (FRAMES, 7, 9)),
        (signal.resize(60, 20), (FRAMES, 60, 20)),
        (signal.fit(8, 16), (FRAMES, 8, 16)),
        (signal.fit(60, 30), (FRAMES, 60, 30)),
    ):
        assert maps(part).keys() == maps(signal).keys()
        for field, array in maps(part).items():
            assert array.shape[:3] == shape, field
            assert array.dtype == maps(signal)[field].dtype
    for field, array in maps(signal.take(1, 3)).items():
        np.testing.assert_array_equal(array, maps(signal)[field][1:3])
    for field, array in maps(signal.crop(2, 3, 5, 7)).items():
        np.testing.assert_array_equal(array, maps(signal)[field][:, 2:7, 3:10])


def test_a_clip_read_from_a_corpus_keeps_its_scale_in_every_window(name: str) -> None:
    signal = example(name)
    payload = signal.encode(25.0)
    stored = type(signal).decode(payload.data, payload.constants)
    whole = stored.to_rgb()
    np.testing.assert_array_equal(stored.take(1, 2).to_rgb(), whole[1:2])
    np.testing.assert_array_equal(stored.crop(2, 3, 5, 7).to_rgb(), whole[:, 2:7, 3:10])


def test_other_arrays_are_refused(name: str) -> None:
    kind, array = find_modality(name), example(name).array
    for wrong in (array[0], array.astype(np.complex64), array.repeat(5, axis=-1)):
        with pytest.raises(ClipError, match=name):
            kind(wrong)


def test_nothing_is_written_into_the_array(name: str) -> None:
    signal = example(name)
    before = signal.array.copy()
    signal.array.flags.writeable = False
    signal.to_rgb()
    signal.encode(25.0)
    signal.constants()
    signal.fit(8, 8)
    np.testing.assert_array_equal(signal.array, before)

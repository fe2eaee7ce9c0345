"""Clips, maps and errors come out of messages as they went in."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import find_modality, modality_names
from openuni.manifests.errors import ClipError, MissingRequirement, OpenUniError, Unavailable
from openuni.manifests.hosting.child import find_class
from openuni.manifests.hosting.messages import Received, describe, error_of, pack, result_classes, unpack
from openuni.manifests.video.decoder.channel import Payload
from openuni.manifests.video.motion_vectors import MotionVectors
from tests.manifests.modalities.test_every_modality import example
from tests.operators.in_environment import InEnvironment


def through(value: Any, find: Any = find_class) -> Any:
    """A value on its way through a message."""
    payload = Payload()
    message = json.loads(json.dumps(pack(value, payload)))
    return unpack(message, Received(payload.fds()), find)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    if dataclasses.is_dataclass(one):
        fields = [field.name for field in dataclasses.fields(one)]
        return type(one) is type(other) and all(same(getattr(one, name), getattr(other, name)) for name in fields)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("name", modality_names())
def test_maps_of_every_modality(name: str) -> None:
    given = example(name)
    assert same(given, through(given)) and same(given, through(given, result_classes(InEnvironment)))


def test_a_clip_with_maps_and_vectors() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 40, 60, 3), dtype=np.uint8)
    plain = DecodedClip.from_frames(frames[:, ::2], 12.5, caption="a\0b \U0001f600")  # not contiguous
    kinds = MotionVectors.__annotations__
    fields = {key: np.arange(6, dtype=np.float32).reshape(3, 2) for key in kinds}
    vectors = (None, MotionVectors(**fields), None, None, None)
    depth = find_modality("segmentation")(np.ones((5, 20, 60, 1), np.uint16))
    given = dataclasses.replace(plain, vectors=vectors, maps={"segmentation": depth})
    assert same(given, through(given))
    assert not through(given).frames.flags.writeable


def test_plain_values() -> None:
    given = {"a": [1, 2.5, None, True, "x"], "b": (1, (2, 3)), "c": {"d": []}, "e": float("inf"), "f": Path("/x")}
    assert same(given, through(given))
    assert np.isnan(through(float("nan")))


@pytest.mark.parametrize("wrong", [{1: 2}, object(), print, {"x": {2}}, np.array([object()])])
def test_other_values_are_refused(wrong: Any) -> None:
    with pytest.raises(TypeError):
        through(wrong)


@pytest.mark.parametrize("kind", [ClipError, Unavailable, OpenUniError, MissingRequirement])
def test_our_errors_keep_their_class(kind: type[Exception]) -> None:
    found = error_of(describe(kind("why")))
    assert type(found) is kind and str(found) == "why"


class OutOfMemoryError(RuntimeError):
    """As torch's."""


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), OutOfMemoryError("x"), ZeroDivisionError()])
def test_other_errors_keep_their_name_and_traceback(error: Exception) -> None:
    try:
        raise error
    except Exception as raised:  # noqa: BLE001
        found = error_of(describe(raised))
    assert (type(found).__name__, str(found)) == (type(error).__name__, str(error))
    assert "raise error" in str(found.__cause__)


def test_a_name_that_is_none_is_not_used() -> None:
    found = error_of({"class": "x\ny", "base": "SystemExit", "text": "t", "traceback": ""})
    assert type(found).__name__ == "ForeignError"

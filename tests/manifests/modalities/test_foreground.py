"""Foreground: a picture of its own name, which composites over the background."""

import numpy as np
import pytest

from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.alpha import Alpha
from openuni.manifests.modalities.background import Background
from openuni.manifests.modalities.foreground import Foreground


@pytest.fixture(params=[Foreground, Background])
def layer(request: pytest.FixtureRequest) -> Foreground | Background:
    return request.param(np.random.default_rng(0).integers(0, 256, (3, 15, 21, 3), dtype=np.uint8))


def test_storage_and_8_bits_are_exact(layer: Foreground | Background) -> None:
    payload = layer.encode(25)
    stored = type(layer).decode(payload.data, payload.constants)
    assert type(stored) is type(layer) is find_modality(layer.name)
    np.testing.assert_array_equal(stored.array, layer.array)
    jitter = np.random.default_rng(1).uniform(-0.499, 0.499, layer.array.shape) / 255
    np.testing.assert_array_equal(type(layer).from_rgb(layer.to_rgb() + jitter).array, layer.array)


def test_every_part_of_a_layer_is_of_its_kind(layer: Foreground | Background) -> None:
    for part in (layer.take(0, 1), layer.crop(1, 1, 5, 5), layer.resize(5, 7), layer.fit(8, 8)):
        assert type(part) is type(layer)


def test_errors_name_the_layer(layer: Foreground | Background) -> None:
    with pytest.raises(ClipError, match=rf"^{layer.name}: array must be uint8"):
        type(layer)(layer.array.astype(np.float32))


def test_layers_composite_in_srgb_values() -> None:
    front = Foreground(np.full((1, 1, 3, 3), 200, np.uint8)).to_rgb()
    rear = Background(np.full((1, 1, 3, 3), 100, np.uint8)).to_rgb()
    cover = Alpha(np.array([0, 0.5, 1], np.float32).reshape(1, 1, 3, 1)).array
    blended = np.rint((cover * front + (1 - cover) * rear) * 255)
    assert blended[0, 0, :, 0].tolist() == [100, 150, 200]

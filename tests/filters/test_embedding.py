import numpy as np
import pyarrow as pa
import pytest

from openuni.filters.embedding import Embedding
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.schema import producer_schema
from tests.moving_pictures import panned, texture
from tests.tiny_clip import tiny_clip


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: a tiny random checkpoint in the library's own format."""
    return Embedding(checkpoint=tiny_clip(folder)), DecodedClip.from_frames(frames)


@pytest.fixture(scope="module")
def operator(tmp_path_factory):
    return Embedding(checkpoint=tiny_clip(tmp_path_factory.mktemp("embedding")))


def test_the_vector_is_the_mean_scaled_to_length_1(operator):
    model = operator.load("cpu")
    frames = panned([(0, 0), (20, 5), (40, 9)], 48, 80)
    mean = model.frames(frames, "fp32", 16).astype(np.float64).mean(axis=0)
    assert np.linalg.norm(mean) < 0.999  # scaling matters
    found = np.array(operator.run(model, DecodedClip.from_frames(frames)).vector)
    assert found.shape == (768,)
    assert np.abs(found - mean / np.linalg.norm(mean)).max() < 5e-4 * np.abs(found).max()
    assert np.array_equal(found, found.astype(np.float16))
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-3)


def test_equal_clips_have_cosine_1_and_others_less(operator):
    model = operator.load("cpu")
    one, again, other = (
        np.array(operator.run(model, DecodedClip.from_frames(texture(48, 80, seed=seed)[None])).vector)
        for seed in (1, 1, 2)
    )
    assert one @ again == pytest.approx(1, abs=1e-3)
    assert one @ other < 0.99


def test_frames_that_cancel_out_have_no_vector(operator):
    class Opposite:
        """An embedder whose two frames point in opposite directions."""

        def frames(self, frames, precision, batch):
            return np.array([[1, 0], [-1, 0]], np.float32)

    clip = DecodedClip.from_frames(panned([(0, 0), (1, 0)], 48, 80))
    assert operator.run(Opposite(), clip).vector is None
    assert operator.run(operator.load("cpu"), clip.take(np.array([], np.int64))).vector is None


def test_it_is_stored_in_32_bits():
    kind = producer_schema(Embedding).field("embedding").type
    assert kind.field("vector").type == pa.list_(pa.float32())

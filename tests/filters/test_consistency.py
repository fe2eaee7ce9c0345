import numpy as np
import pytest

from openuni.filters.consistency import Consistency
from openuni.manifests.contracts.decoded_clip import DecodedClip
from tests.moving_pictures import panned, texture
from tests.tiny_clip import tiny_clip


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: a tiny random checkpoint in the library's own format."""
    return Consistency(checkpoint=tiny_clip(folder)), DecodedClip.from_frames(frames)


@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    operator = Consistency(checkpoint=tiny_clip(tmp_path_factory.mktemp("consistency")))
    model = operator.load("cpu")
    return lambda frames: (
        operator.run(model, DecodedClip.from_frames(frames)),
        model.frames(frames, "fp32", 16).astype(np.float64),
    )


def test_a_still_clip_is_1_and_a_hidden_cut_is_seen(measure):
    one, other = texture(48, 80), texture(48, 80, seed=5)
    still, _ = measure(np.stack([one] * 4))
    assert still == pytest.approx((1, 1, 1), abs=1e-6)
    cut, embeddings = measure(np.stack([one, one, other, other]))
    low = embeddings[0] @ embeddings[2]
    assert low < 0.9
    assert cut == pytest.approx(((1 + low + 1) / 3, low, low), abs=1e-6)


def test_cosines_are_those_of_neighbours_in_order(measure):
    there_and_back, embeddings = measure(panned([(0, 0), (20, 5), (40, 9), (0, 0)], 48, 80))
    neighbours = [embeddings[place] @ embeddings[place + 1] for place in range(3)]
    assert there_and_back.mean == pytest.approx(np.mean(neighbours), abs=1e-12)
    assert there_and_back.min == pytest.approx(min(neighbours), abs=1e-12)
    assert there_and_back.ends == pytest.approx(1, abs=1e-6)
    assert there_and_back.min < 0.999


def test_one_frame_has_no_neighbour(measure):
    assert measure(texture(48, 80)[None])[0] == (None, None, None)

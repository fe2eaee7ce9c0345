import numpy as np
import pytest

from openuni.filters.clip_text import ClipText
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import Unavailable
from tests.moving_pictures import panned
from tests.tiny_clip import tiny_clip

CAPTION = "a textured wall, seen by a camera that moves to the right"
FRAMES = panned([(0, 0), (20, 5), (40, 9)], 48, 80)


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: a tiny random checkpoint in the library's own format."""
    return ClipText(checkpoint=tiny_clip(folder)), DecodedClip.from_frames(frames, caption=CAPTION)


@pytest.fixture(scope="module")
def operator(tmp_path_factory):
    return ClipText(checkpoint=tiny_clip(tmp_path_factory.mktemp("clip_text")))


def test_cosine_of_caption_and_frames(operator):
    model = operator.load("cpu")
    cosines = model.frames(FRAMES, "fp32", 16).astype(np.float64) @ model.text(CAPTION, "fp32").astype(np.float64)
    found = operator.run(model, DecodedClip.from_frames(FRAMES, caption=CAPTION))
    assert found.mean == pytest.approx(cosines.mean(), abs=1e-12)
    assert found.min == pytest.approx(cosines.min(), abs=1e-12)
    assert found.min < found.mean
    other = operator.run(model, DecodedClip.from_frames(FRAMES, caption="rain"))
    assert abs(other.mean - found.mean) > 1e-4


@pytest.mark.parametrize("caption", [None, "", " \n"])
def test_without_a_caption_it_is_unavailable(operator, caption):
    with pytest.raises(Unavailable, match="no caption"):
        operator.run(operator.load("cpu"), DecodedClip.from_frames(FRAMES, caption=caption))


def test_a_caption_that_is_cut_off_says_so(operator):
    model = operator.load("cpu")
    fits, long = "word " * 75, "word " * 76  # 77 tokens with start and end

    def scores(caption):
        return operator.run(model, DecodedClip.from_frames(FRAMES, caption=caption))

    assert (scores(fits).truncated, scores(long).truncated) == (False, True)
    assert scores(long).mean == scores("word " * 400).mean  # the rest does not count


def test_a_clip_without_frames_has_no_score(operator):
    empty = DecodedClip.from_frames(FRAMES, caption=CAPTION).take(np.array([], np.int64))
    assert operator.run(operator.load("cpu"), empty) == (None, None, False)

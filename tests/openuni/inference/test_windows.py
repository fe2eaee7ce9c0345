"""Windows over long clips: every frame is covered, and what was cut joins as if it had never been."""

from itertools import pairwise

import numpy as np
import pytest

from openuni.inference.windows import stitch, window_spans
from openuni.manifests.modalities.segmentation import Segmentation


@pytest.mark.parametrize(("frames", "length", "overlap"), [(5, 5, 2), (6, 5, 2), (40, 9, 4), (41, 9, 1), (9, 5, 8)])
def test_windows_cover_the_clip_and_share_frames(frames, length, overlap):
    found = window_spans(frames, length, overlap)
    assert found[0][0] == 0 and found[-1][1] == frames
    assert all(stop - start == length for start, stop in found)
    starts = [start for start, _ in found]
    assert starts == sorted(set(starts))
    shared = min(overlap, length - 1)
    assert all(before[1] - after[0] >= shared for before, after in pairwise(found))


def cut(picture, windows):
    return [picture[start:stop] for start, stop in windows]


@pytest.mark.parametrize("modality", ["normal", "depth", "segmentation"])
def test_windows_of_one_rendering_give_it_back(modality):
    windows = window_spans(20, 9, 4)
    random = np.random.default_rng(0)
    if modality == "segmentation":
        ids = np.zeros((20, 8, 8, 1), np.uint16)
        ids[:, 1:4, 1:4], ids[:, 5:7, 2:8] = 3, 7
        whole = Segmentation(ids).to_rgb()
    else:
        whole = np.repeat(random.random((20, 8, 8, 1), np.float32), 3, axis=-1)
    joined = stitch(modality, cut(whole, windows), windows)
    assert np.abs(joined.rendering - whole).max() < 1e-5
    assert joined.seam_error == pytest.approx(0, abs=1e-6)


def test_windows_of_one_frame_just_follow_one_another():
    whole = np.random.default_rng(0).random((3, 4, 4, 3), np.float32)
    joined = stitch("depth", cut(whole, window_spans(3, 1, 8)), window_spans(3, 1, 8))
    assert np.array_equal(joined.rendering, whole) and joined.seam_error is None


def test_depth_in_another_scale_and_shift_is_fitted():
    windows = window_spans(20, 9, 4)
    whole = np.repeat(np.random.default_rng(0).uniform(0.3, 0.7, (20, 8, 8, 1)).astype(np.float32), 3, axis=-1)
    scaled = [part * (1 - 0.1 * n) + 0.05 * n for n, part in enumerate(cut(whole, windows))]
    joined = stitch("depth", scaled, windows)
    assert np.abs(joined.rendering - whole).max() < 1e-4
    assert stitch("normal", scaled, windows).seam_error > 0.01, "another modality keeps its values, and the seam shows"


def test_an_instance_keeps_its_id_where_windows_call_it_differently():
    windows = window_spans(12, 8, 4)
    ids = np.zeros((12, 8, 8, 1), np.uint16)
    ids[:, 1:4, 1:4] = 1
    ids[:, 5:8, 1:8] = 2
    ids[9:, 0, 6] = 5  # comes when only the second window looks
    other = np.array([0, 2, 1, 0, 0, 1], np.uint16)[
        ids
    ]  # the second window swaps two names, and uses one of them twice
    other[ids == 5] = 9
    parts = [Segmentation(ids[:8]).to_rgb(), Segmentation(other[4:]).to_rgb()]
    found = Segmentation.from_rgb(stitch("segmentation", parts, windows).rendering).array
    assert (found[ids < 5] == ids[ids < 5]).all()
    new = np.unique(found[ids == 5])
    assert len(new) == 1 and new[0] not in (0, 1, 2)

"""`content` and `adaptive`: PySceneDetect's own cuts, on frames that we decode, whatever their times are."""

import cv2
import numpy as np
import pytest
import scenedetect
from scenedetect.detectors import AdaptiveDetector, ContentDetector

from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.probe import make_clip, probe
from openuni.manifests.video.reader import iter_frames
from openuni.shots.detectors.adaptive import Adaptive
from openuni.shots.detectors.content import Content
from tests.coded_clips import encode
from tests.openuni.shots.edited_films import Scene, even, find

CUTS = [40, 90]
PAIRS = [(Content(), ContentDetector), (Adaptive(), AdaptiveDetector)]


def three_shots(seed: int) -> np.ndarray:
    """uint8 [120, 72, 128, 3]: textured shots, cut at 40 and 90."""
    rng = np.random.default_rng(seed)
    scenes = [Scene(rng) for _ in range(3)]
    counts = np.diff([0, *CUTS, 120])
    frames = [scene.frame() for scene, count in zip(scenes, counts, strict=True) for _ in range(count)]
    return np.clip(frames, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def frames():
    return three_shots(2)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["content", "adaptive"])
def test_hard_cuts_are_exact_and_those_that_the_library_finds(ours, theirs, frames, tmp_path):
    path = encode(tmp_path / "a.mp4", pictures=frames, times=range(len(frames)), options={"crf": "18"})
    info = probe(str(path))
    decoded = iter_frames(make_clip(str(path), info), size_px=ours.size_px(72, 128))
    found = ours.transitions(None, decoded, even(len(frames)))
    assert [(one.start, one.stop, one.kind) for one in found] == [(cut, cut, "hard") for cut in CUTS]
    for start_in_scene in (True, False):  # which matters only where no cut is found
        scenes = scenedetect.detect(str(path), theirs(), start_in_scene=start_in_scene)
        assert [start.frame_num for start, _ in scenes] == [0, *CUTS]
    assert all(0.5 < one.confidence < 1 for one in found)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["content", "adaptive"])
def test_one_shot_has_no_cut(ours, theirs, frames):
    assert find(ours, frames[:40]) == []


def test_the_confidence_of_a_cut_is_that_of_its_measure():
    frames = np.zeros((60, 48, 64, 3), np.uint8)
    frames[30:] = 90  # grey: the value changes by 90, hue and saturation stay
    (cut,) = find(Content(), frames)
    assert cut.start == 30 and cut.confidence == pytest.approx(30 / (30 + 27), abs=1e-4)
    (cut,) = find(Content(luma_only=True, threshold=89), frames)
    assert cut.confidence == pytest.approx(90 / (90 + 89), abs=1e-4)
    assert find(Content(luma_only=True, threshold=91), frames) == []


def test_colours_reach_the_library_in_its_own_order():
    frames = np.zeros((40, 48, 64, 3), np.uint8)
    frames[:20], frames[20:] = (255, 0, 0), (128, 0, 255)  # red to violet: hue 0 to 135 of 180; with R and B changed 45
    (cut,) = find(Content(), frames)
    assert cut.confidence == pytest.approx(45 / (45 + 27), abs=0.01)


def test_options_reach_the_library(frames):
    assert [one.start for one in find(Content(min_shot_frames=45), frames)] == [90]
    assert find(Adaptive(min_content=250), frames) == []
    assert find(Adaptive(threshold=1e6), frames) == []
    with pytest.raises(OpenUniError, match="window_frames"):
        Adaptive(window_frames=0)
    with pytest.raises(OpenUniError, match="threshold"):
        Content(threshold=-1)


def test_large_films_are_scaled_to_a_long_side_of_256_px():
    assert Content().size_px(1080, 1920) == (144, 256)
    assert Content().size_px(1920, 1080) == (256, 144)
    assert Adaptive().size_px(72, 128) == (72, 128)


def test_a_cut_is_found_in_scaled_frames_too(frames):
    large = np.stack([cv2.resize(frame, (640, 360)) for frame in frames[30:60]])
    assert [one.start for one in find(Content(min_shot_frames=5), large)] == [10]

"""The weight-free detector on films of known cuts: moving cameras, moving things and flashes are no transitions."""

import numpy as np
import pytest

from openuni.manifests.errors import OpenUniError
from openuni.shots.detectors.adaptive import Adaptive
from openuni.shots.detectors.content import Content
from openuni.shots.detectors.gradual import MAX_SPAN, Gradual, measure
from tests.openuni.shots.edited_films import Scene, even, f1, film, find, matched

KINDS = ["dissolve", "hard", "fade", "dissolve", "fade", "hard"]


@pytest.fixture(scope="module")
def films():
    return [film(500 + seed, KINDS) for seed in range(5)]


def test_cuts_dissolves_and_fades_are_found_within_5_frames_at_f1_of_0_9(films):
    joints = [joints for _, joints in films]
    found = [find(Gradual(), frames) for frames, _ in films]
    assert f1(found, joints) >= 0.9
    soft = [[[one for one in film if one.kind != "hard"] for film in films] for films in (found, joints)]
    assert f1(*soft) >= 0.9
    pairs = [pair for one in zip(found, joints, strict=True) for pair in matched(*one)]
    assert all((one.start, one.stop) == joint[:2] for one, joint in pairs if joint.kind == one.kind == "hard")
    assert all(0.5 <= one.confidence <= 1 for one, _ in pairs)
    # both ends of a dissolve are where they are, not only its middle: what is mixed is cut out
    ends = [abs(one.start - joint.start) + abs(one.stop - joint.stop) for one, joint in pairs if one.kind == "dissolve"]
    assert np.mean(ends) < 5


def test_detectors_of_hard_cuts_do_not_see_dissolves(films):
    """A detector of its own is worth its file."""
    films = films[:2]
    joints = [joints for _, joints in films]
    for detector in (Content(), Adaptive()):
        found = [find(detector, frames) for frames, _ in films]
        pairs = [pair for one in zip(found, joints, strict=True) for pair in matched(*one)]
        dissolves = sum(joint.kind == "dissolve" for film_joints in joints for joint in film_joints)
        assert sum(joint.kind == "dissolve" for _, joint in pairs) < dissolves / 2
        assert f1(found, joints) < 0.9


def test_one_shot_without_end_has_no_transition():
    rng = np.random.default_rng(4)
    scene = Scene(rng)
    frames = np.clip([scene.frame() for _ in range(120)], 0, 255).astype(np.uint8)
    assert find(Gradual(), frames) == []
    frames[40:42] = frames[40:42] * 0.4 + 150  # a flash
    frames[80] = Scene(rng).frame().clip(0, 255)  # a single wrong frame: the shot goes on behind it
    assert find(Gradual(), frames) == []


def test_plain_frames_at_the_ends_belong_to_no_shot():
    rng = np.random.default_rng(5)
    scene = Scene(rng)
    frames = np.clip([scene.frame() for _ in range(60)], 0, 255).astype(np.uint8)
    black = np.zeros((12, *frames.shape[1:]), np.uint8)
    found = find(Gradual(), np.concatenate([black, frames, black]))
    assert [(one.start, one.stop, one.kind) for one in found] == [(0, 12, "fade"), (72, 84, "fade")]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_films_shorter_than_any_transition(count):
    frames = np.random.default_rng(0).integers(0, 256, (count, 36, 64, 3), np.uint8)
    for one in Gradual().transitions(None, iter(frames), even(count)):
        assert 0 <= one.start <= one.stop <= count


def test_products_are_those_of_the_frames_they_name():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2 * MAX_SPAN + 7, 36, 64, 3), np.uint8)
    frames[60] = frames[50]
    signal = measure(iter(frames))
    assert np.isclose(signal.products[60, 10], signal.products[50, 0])  # a frame with its equal ten frames before
    assert signal.correlation(10)[60] > 0.9 > 0.2 > abs(signal.correlation(9)[60])
    assert not signal.products[5, 6:].any()  # nothing lies before the first frame


def test_options_out_of_range_are_refused():
    with pytest.raises(OpenUniError, match="dissolve_misfit = 0"):
        Gradual(dissolve_misfit=0)

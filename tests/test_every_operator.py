"""The operator contract, checked for every operator file; new operators need no registration here.

An operator that requires files (a checkpoint) defines `contract_case(folder, frames) -> (operator, clip)` in its test
file; all others run with their defaults.
"""

import dataclasses
import importlib
import runpy
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import find_operator, operator_names
from openuni.manifests.contracts.options import Added, annotation_extras, former_names, recorded
from openuni.manifests.contracts.window_filter import supports_windows
from openuni.manifests.modalities.segmentation import Segmentation
from tests import faulty_operators as faulty
from tests import operator_contract as contract
from tests.docs import blocks
from tests.moving_pictures import panned

ROOT = Path(__file__).parents[1]
OPERATORS = [(kind, name) for kind in ("filter", "annotator") for name in operator_names(kind)]
NOTHING = {"black": np.zeros((3, 48, 64, 3), np.uint8), "white": np.full((3, 48, 64, 3), 255, np.uint8)}
MOVING = panned([(0, 0), (2, 1), (4, 2), (6, 3)], 48, 64)
LONGER = panned([(2 * step, step % 3) for step in range(5)], 48, 64)
TIMES_S = [np.array([0.0]), np.arange(100) / 25, np.cumsum(np.random.default_rng(0).uniform(0.001, 2.0, 50))]


@pytest.fixture(scope="module", params=OPERATORS, ids=[f"{kind}-{name}" for kind, name in OPERATORS])
def case(request, tmp_path_factory):
    """Class, and a maker of (operator, clip) from frames."""
    kind, name = request.param
    operator_class = find_operator(kind, name)
    test_file = ROOT / "tests" / f"{kind}s" / f"test_{name}.py"
    assert test_file.exists(), f"{kind} {name} has no test: write {test_file.relative_to(ROOT)}"
    own = getattr(importlib.import_module(f"tests.{kind}s.test_{name}"), "contract_case", None)
    folder = tmp_path_factory.mktemp(name)

    def make(frames):
        return own(folder, frames) if own else (operator_class(), DecodedClip.from_frames(frames))

    return operator_class, make


def test_there_are_operators_of_both_kinds():
    assert {kind for kind, _ in OPERATORS} == {"filter", "annotator"}


def test_importing_is_light(case):
    contract.importing_is_light(case[0].__module__)


def test_input_is_untouched(case):
    contract.input_is_untouched(*case[1](MOVING))


def test_result_is_as_declared(case):
    contract.result_is_as_declared(*case[1](MOVING))


def test_a_clip_of_one_frame_works(case):
    contract.result_is_as_declared(*case[1](MOVING[:1]))


@pytest.mark.parametrize("frames", list(NOTHING.values()), ids=list(NOTHING))
def test_a_clip_that_shows_nothing_works(case, frames):
    contract.result_is_as_declared(*case[1](frames))


def test_result_is_deterministic(case):
    contract.result_is_deterministic(*case[1](MOVING))


def test_windows_give_the_same(case):
    if case[0].gpus:
        pytest.skip("networks take their time: see below")
    contract.windows_give_the_same(*case[1](LONGER), sizes=range(1, len(LONGER) + 1))
    contract.windows_give_the_same(*case[1](LONGER[:1]))
    contract.windows_give_the_same(*case[1](NOTHING["black"]))


@pytest.mark.slow
def test_windows_of_networks_give_the_same(case):
    """Windows of one batch: two batches of two frames, and a half."""
    if not case[0].gpus or not supports_windows(case[0]):
        pytest.skip("no network, or no windows")
    operator, clip = case[1](LONGER)
    if hasattr(operator, "frames_per_batch"):
        operator = dataclasses.replace(operator, frames_per_batch=2)
    contract.windows_give_the_same(operator, clip, sizes=[1])


@pytest.mark.parametrize("times_s", TIMES_S, ids=["one frame", "even", "uneven"])
def test_samples_are_indices(case, times_s):
    contract.samples_are_indices(case[1](MOVING)[0], times_s)


def test_docstring_is_written(case):
    contract.docstring_is_written(case[0])


def test_everything_is_documented(case):
    contract.everything_is_documented(case[0])


def test_operator_travels(case):
    contract.operator_travels(case[1](MOVING)[0])


def test_version_is_the_same_everywhere(case):
    contract.version_is_the_same_everywhere(case[1](MOVING)[0])


def test_version_follows_the_options(case):
    contract.version_follows_the_options(case[1](MOVING)[0])


# Options that were renamed: present name -> the name in versions and records.

SEGMENTER = {
    "keyframe_interval_s": "key_every_s",
    "min_predicted_iou": "least_predicted_iou",
    "min_stability": "least_stability",
    "overlap_priority": "on_top",
    "min_area_share": "least_area_share",
    "max_area_share": "most_area_share",
}
RENAMED = {
    ("annotator", "sam"): SEGMENTER,
    ("annotator", "sam2"): SEGMENTER | {"instances_per_batch": "instances_at_a_time"},
    ("annotator", "dwpose"): {"min_score": "least_score", "nms_iou": "most_overlap", "max_gap_s": "longest_gap_s"},
    ("annotator", "marigold_normals"): {"ensemble_size": "ensemble"},
    ("annotator", "marigold_intrinsics"): {"ensemble_size": "ensemble"},
    ("annotator", "video_depth"): {"stabilization_frames": "steady_frames"},
    ("annotator", "matting"): {"trimap_band_share": "band_share"},
    ("filter", "ocr"): {"min_overlay_s": "stays_s", "min_recognition_score": "min_read"},
}


@pytest.mark.parametrize(("kind", "name"), OPERATORS)
def test_renamed_options_keep_their_former_names_in_versions_and_records(kind, name, monkeypatch):
    operator_class, former = find_operator(kind, name), RENAMED.get((kind, name), {})
    assert former_names(operator_class) == former
    monkeypatch.setattr(operator_class, "checkpoints", lambda self: ())  # versions without local weights
    for operator in (operator_class(), _with_changed(operator_class(), former)):
        hints = get_type_hints(operator_class, include_extras=True)
        added = {name for name, hint in hints.items() if any(isinstance(one, Added) for one in annotation_extras(hint))}
        options = {name: value for name, value in dataclasses.asdict(operator).items() if name not in added}
        before = {former.get(option, option): value for option, value in options.items()}
        assert recorded(operator) == before
        facts = {"name": name, "revision": operator.revision, "options": before, "weights": []}
        assert operator.version() == fingerprint(**facts)


def _with_changed(operator, options):
    """A copy with other values for `options`: half of a float, one more for an integer."""

    def other(value):
        if isinstance(value, str):
            return "large"  # of overlap_priority, the only text
        return value + 1 if isinstance(value, int) else value / 2

    return dataclasses.replace(operator, **{name: other(getattr(operator, name)) for name in options})


# Every check fails for the fault that it detects, and passes for an operator without a fault.

BOTH = {
    "windows_give_the_same": [faulty.RangePerWindow, faulty.ForgetsTheOverlap, faulty.ForgetsTheLastMap],
    "input_is_untouched": [faulty.WritesInput, faulty.WritesTimes, faulty.UnlocksInput],
    "result_is_as_declared": [
        faulty.ReturnsOther,
        faulty.ReturnsNumPy,
        faulty.ReturnsNone,
        faulty.ReturnsNan,
        faulty.ForgetsAFrame,
        faulty.FilterWithMaps,
    ],
    "result_is_deterministic": [faulty.Random, faulty.RandomWeights],
}
CLASS = {
    "docstring_is_written": [faulty.NoDocstring],
    "everything_is_documented": [faulty.SilentOption, faulty.SilentScore, faulty.NoOrigin],
}
OPERATOR = {
    "operator_travels": [faulty.NotFrozen],
    "version_is_the_same_everywhere": [faulty.VersionPerProcess],
    "version_follows_the_options": [faulty.VersionForgetsOptions],
}


def _pairs(table):
    return [pytest.param(check, fault, id=fault.__name__) for check, faults in table.items() for fault in faults]


@pytest.mark.parametrize(("check", "fault"), _pairs(BOTH))
def test_faults_of_run_are_found(check, fault):
    with pytest.raises(AssertionError):
        getattr(contract, check)(fault(), DecodedClip.from_frames(MOVING))


def test_writing_to_the_frames_as_given_fails_by_itself():
    clip = DecodedClip.from_frames(MOVING)
    with pytest.raises(ValueError, match="read-only"):
        clip.frames[0] = 0


def test_an_operator_that_needs_two_frames_is_found():
    with pytest.raises(IndexError):
        contract.result_is_as_declared(faulty.NeedsTwoFrames(), DecodedClip.from_frames(MOVING[:1]))


def test_an_operator_that_needs_something_to_see_is_found():
    contract.result_is_as_declared(faulty.NeedsContrast(), DecodedClip.from_frames(MOVING))
    with pytest.raises(AssertionError, match="cannot be measured"):
        contract.result_is_as_declared(faulty.NeedsContrast(), DecodedClip.from_frames(NOTHING["black"]))


def test_writing_to_a_map_that_others_start_from_is_found():
    maps = {"segmentation": Segmentation(np.zeros((len(MOVING), 48, 64, 1), np.uint16))}
    clip = dataclasses.replace(DecodedClip.from_frames(MOVING), maps=maps)
    with pytest.raises(AssertionError, match="changed the clip"):
        contract.input_is_untouched(faulty.WritesMap(), clip)


@pytest.mark.parametrize(("check", "fault"), _pairs(CLASS))
def test_faults_of_the_class_are_found(check, fault):
    with pytest.raises(AssertionError):
        getattr(contract, check)(fault)


@pytest.mark.parametrize(("check", "fault"), _pairs(OPERATOR))
def test_faults_of_the_operator_are_found(check, fault):
    with pytest.raises(AssertionError):
        getattr(contract, check)(fault())


def test_an_operator_that_cannot_be_hashed_is_found():
    with pytest.raises(TypeError, match="unhashable"):
        contract.operator_travels(faulty.NotHashable())


@pytest.mark.parametrize("fault", [faulty.SamplesBackwards, faulty.SamplesTooFar])
def test_faults_of_sample_are_found(fault):
    with pytest.raises(AssertionError):
        contract.samples_are_indices(fault(), TIMES_S[1])


@pytest.mark.parametrize("line", ["from cv2 import resize", "import openuni.manifests.video.clip, av.error"])
def test_a_heavy_import_is_found(tmp_path, line):
    (tmp_path / "planted_heavy.py").write_text(line)
    with pytest.raises(AssertionError, match="move that inside the function"):
        contract.importing_is_light("planted_heavy", tmp_path)


def test_an_operator_without_a_fault_passes_every_check():
    good, clip = faulty.Good(), DecodedClip.from_frames(MOVING)
    contract.importing_is_light("tests.faulty_operators")
    for check in BOTH:
        getattr(contract, check)(good, clip)
    for check in CLASS:
        getattr(contract, check)(faulty.Good)
    for check in OPERATOR:
        getattr(contract, check)(good)
    contract.samples_are_indices(good, TIMES_S[1])


@pytest.mark.parametrize("kind", ["filter", "annotator"])
def test_the_example_of_the_readme_meets_the_contract_under_its_dotted_path(kind, tmp_path, monkeypatch):
    (block,) = blocks(ROOT / f"{kind}s" / "README.md", "python")
    (tmp_path / "whole.py").write_text(block.text)
    runpy.run_path(str(tmp_path / "whole.py"))  # runs the example's own test
    (tmp_path / f"lab_{kind}").mkdir()
    (tmp_path / f"lab_{kind}" / "example.py").write_text(block.text.split("\n# tests/")[0])
    monkeypatch.syspath_prepend(tmp_path)
    operator_class = find_operator(kind, f"lab_{kind}.example", imports=True)
    contract.importing_is_light(f"lab_{kind}.example", tmp_path)
    for check in BOTH:
        getattr(contract, check)(operator_class(), DecodedClip.from_frames(MOVING))
    contract.result_is_as_declared(operator_class(), DecodedClip.from_frames(MOVING[:1]))
    for check in CLASS:
        getattr(contract, check)(operator_class)
    contract.operator_travels(operator_class())
    contract.version_is_the_same_everywhere(operator_class(), tmp_path)
    contract.version_follows_the_options(operator_class())

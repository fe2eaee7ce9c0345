"""The comparison of devices itself: it passes where nothing differs, and finds what does."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.devices import TOLERANCES, case_names, differences, make_case, numbers, same

ROOT = Path(__file__).parents[1]
QUICK = ["annotators/raft", "annotators/depth_anything", "annotators/densepose", "codecs/wan_vae"]


@pytest.fixture(scope="module", params=QUICK)
def results(request, tmp_path_factory):
    """Name, and the results of two runs on the CPU."""
    made = make_case(request.param, tmp_path_factory.mktemp("case"))
    return request.param, made.run(made.load("cpu")), made.run(made.load("cpu"))


def test_the_same_device_passes(results):
    name, one, other = results
    assert differences(name, one, other) == []
    assert same(one, other)


def test_a_changed_result_is_found(results):
    name, one, other = results
    (first, *_) = numbers(other)
    first.setflags(write=True)
    before = first.copy()
    if first.dtype.kind == "f":
        for factor, is_found in ((0.3, False), (3.0, True)):  # times the tolerance
            first.flat[first.size // 2] = before.flat[first.size // 2]
            first.flat[first.size // 2] += factor * TOLERANCES[name].values * np.abs(before).max()
            assert bool(differences(name, one, other)) is is_found, factor
    else:
        first[0, :2] = ~first[0, :2]  # two rows of labels
        assert differences(name, one, other)
    assert not same(one, other)
    first[...] = before
    assert same(one, other)


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ([np.zeros(3, np.float32)], [np.zeros(4, np.float32)]),
        ([np.zeros(3, np.float32)], [np.zeros(3, np.float64)]),
        ([np.zeros(3, np.float32)], [np.array([0, np.nan, 0], np.float32)]),
        ([np.full(3, np.nan, np.float32)], [np.zeros(3, np.float32)]),
        ([1.0], [float("nan")]),
        ([1.0], [None]),
        ([1.0], [1.0, 2.0]),
        ([1.0], [1.01]),
        (["a text"], ["another"]),
    ],
)
def test_what_cannot_be_within_a_tolerance_is_found(expected, found):
    assert differences("annotators/raft", expected, found)
    assert differences("annotators/raft", found, expected)


def test_every_case_has_a_tolerance():
    assert set(TOLERANCES) == set(case_names())


def pytest_cuda(*arguments, **environment):
    command = [sys.executable, "-m", "pytest", "-p", "tests.blocked_modules", "-m", "cuda", "-rs", "tests/test_cuda.py"]
    blocked = {"OPENUNI_BLOCKED_MODULES": "av decord duckdb ray"}
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=os.environ | blocked | environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.slow
def test_all_cases_run_where_video_and_ray_packages_are_missing(tmp_path):
    done = pytest_cuda(f"--basetemp={tmp_path}/pytest", OPENUNI_STAND_IN_DEVICE="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    expected = 2 * len(case_names()) + 1
    assert f"{expected} passed" in done.stdout, done.stdout
    assert "is not installed" not in done.stdout


@pytest.mark.slow
def test_without_a_gpu_they_are_skipped_with_the_reason(tmp_path):
    done = pytest_cuda(f"--basetemp={tmp_path}/pytest", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no CUDA GPU" in done.stdout and "passed" not in done.stdout

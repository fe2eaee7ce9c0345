"""The benchmark of a training step, with a small model on the CPU, and where packages are missing."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.training_step import Case, cases, measured, ratios

ROOT = Path(__file__).parent.parent
BLOCKED = """
import runpy, tests.blocked_modules
runpy.run_module("tests.benchmarks.training_step", run_name="__main__")
"""


def test_steps_and_ratios_of_small_models() -> None:
    found = [
        measured(Case(model, "four blocks", "33x256x256", 1, 2, "eager"), "cpu", 1, True, 1e12)
        for model in ("plain", "unityvideo", "unividx")
    ]
    for row in found:
        assert row["step_s"] > 0 and row["samples_per_s"] == pytest.approx(2 / row["step_s"])
        assert row["share_of_peak"] == pytest.approx(row["useful_tflop"] / row["step_s"])
        assert row["tokens"] == 24 and row["peak_gb"] is None
        assert row["launches"] > len(row["costliest"]) == 12
    values = {row["ratio"]: row["value"] for row in ratios(found)}
    assert values["one stream over plain: unityvideo, eager"] == pytest.approx(
        found[1]["step_s"] / found[0]["step_s"], abs=1e-3
    )
    assert len(values) == 2


def test_the_cases_are_those_of_the_goals() -> None:
    parts = {only: list(cases(only)) for only in ("mfu", "memory", "ratios")}
    assert list(cases("")) == [case for part in parts.values() for case in part]
    assert {(case.grid, case.streams) for case in parts["mfu"]} == {("33x256x256", 2), ("81x480x832", 2)}
    assert {case.size for case in parts["memory"]} == {"5B"}


@pytest.mark.slow
def test_it_needs_neither_ray_nor_video_readers_nor_duckdb() -> None:
    case = Case("unityvideo", "5B", "33x256x256, 5B", 2, 1, "eager, selective")
    arguments = ["--tiny", "--device", "cpu", "--steps", "1", "--case", json.dumps(dataclasses.asdict(case))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["OPENUNI_BLOCKED_MODULES"] = "ray av decord duckdb"
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["step_s"] > 0 and row["share_of_peak"] is None and row["tokens"] == 48
    limited = ["--tiny", "--device", "cpu", "--only", "memory", "--modes", "eager, full", "--limit-s", "0.01"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.training_step", *limited], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and json.loads(done.stdout)["error"] == "took longer than 0.01 s"

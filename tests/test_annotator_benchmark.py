"""The annotator benchmark runs where packages are missing, as on a machine that is lent for its GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKED = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "av", "decord", "duckdb", "diffusers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
runpy.run_module("tests.benchmarks.annotators", run_name="__main__")
"""


@pytest.mark.slow
def test_the_annotator_benchmark_measures_what_it_can_and_names_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    arguments = [
        "--cpu",
        "--annotators",
        "dwpose,depth_anything",
        "--clips",
        "2",
        "--rounds",
        "1",
        "--limit-s",
        "9",
        "--out",
        str(out),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert set(found["alone"]) == {"dwpose", "depth_anything"}
    for figures in found["alone"].values():
        assert figures["s_per_clip"] > 0 and figures["bare_s_per_clip"] > 0 and figures["calls"] > 0
    assert found["precision"]["depth_anything fp32"]["errors"] == {"depth": {"mean": 0.0, "max": 0.0}}
    assert found["together"]["all"]["clips"] >= 1
    assert {"pipeline", "decode", "coding"} <= set(found["left_out"])
    assert "NOT REACHED" not in done.stdout and "not measured (needs a GPU" in done.stdout

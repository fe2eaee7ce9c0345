"""What a run exports to Prometheus, and what its ledger says of the nodes: read from a real Ray and a real corpus."""

import json
import os
import re
import time
import urllib.request
from contextlib import chdir
from typing import Any

import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.pipeline import ledger
from openuni.pipeline.runners.resources import Resources
from tests.command_line import cli
from tests.raw_clips import write_clips

PATIENCE_S = 30.0
RECIPE = """
[work]
short_side_px = 24
[filters.motion]
[filters.luminance]
[annotators.dis]
[encode]
modalities = ["rgb", "flow"]
size_px = [16, 16]
frames = 5
"""


def newest_ledger(corpus: Any) -> dict[str, Any]:
    *_, last = corpus.runs()
    return last


def exported(ray: Any) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples of our metrics on all nodes: name -> its tags and value."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for node in ray.nodes():
        if node["Alive"]:
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
            text = urllib.request.urlopen(url, timeout=10).read().decode()
            for name, tags, value in re.findall(r"^(ray_openuni_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
                found.setdefault(name, []).append((dict(re.findall(r'(\w+)="([^"]*)"', tags)), float(value)))
    return found


def total(samples: list[tuple[dict[str, str], float]], **wanted: str) -> float:
    return sum(value for tags, value in samples if wanted.items() <= tags.items())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_prometheus_gets_what_happened(tmp_path):
    """From the agents of a cluster of two nodes, as Prometheus would ask them."""
    from ray.cluster_utils import Cluster

    write_clips(tmp_path / "raw", 6)
    (tmp_path / "raw/clip-900.mp4").write_bytes(b"no video")
    (tmp_path / "corpus.toml").write_text(RECIPE)
    with chdir(tmp_path):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=2)
    try:
        resources = Resources(None, 0.0, cluster.address)
        reporter = Reporter(quiet=True)
        recipe, out = tmp_path / "corpus.toml", tmp_path / "out"
        corpus = openuni.run(recipe, tmp_path / "raw", out=out, resources=resources, reporter=reporter)
        import ray

        ray.init(address=cluster.address, log_to_driver=False)
        nodes = {node["NodeID"] for node in ray.nodes()}
        deadline = time.monotonic() + PATIENCE_S
        while True:  # workers hand over their counts every few seconds
            found = exported(ray)
            items = found.get("ray_openuni_items_total", [])
            if total(items, pool="encode", status="ok") == 6 or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        ray.shutdown()
    finally:
        cluster.shutdown()
    assert total(items, pool="ingest", status="ok") == 6 and total(items, pool="ingest", status="failed") == 1
    for pool in ("motion + luminance", "dis", "encode"):
        assert total(items, pool=pool, status="ok") == 6, pool
    record = newest_ledger(corpus)
    dis = next(phase for phase in record["phases"] if phase["phase"] == "dis")
    for stage in ("decode", "compute", "store", "wait"):
        seconds = total(found["ray_openuni_stage_seconds_total"], stage=stage, pool="dis")
        assert seconds == pytest.approx(dis[f"{stage}_s"], abs=2e-3), stage
    seconds = total(found["ray_openuni_operator_seconds_total"], operator="dis")
    assert seconds == pytest.approx(dis["operators"]["dis"]["seconds"], abs=2e-3)
    for operator in ("motion", "luminance", "dis", "dct"):
        assert total(found["ray_openuni_operator_items_total"], operator=operator) == 6, operator
    assert total(found["ray_openuni_item_seconds_count"], pool="dis") == 6
    assert {tags["state"] for tags, _ in found["ray_openuni_workers"]} == {"placed", "wanted"}
    assert total(found["ray_openuni_workers"], state="wanted", pool="ingest") == 3
    assert total(found["ray_openuni_queued_items"], pool="ingest") == 0
    assert len(nodes) == 2
    assert nodes >= {node["node"] for node in record["nodes"]}  # a slow start may leave all items to one of them
    assert sum(node["items"]["dis"] for node in record["nodes"]) == 6


def test_the_ledger_of_a_run_names_nodes_and_what_was_slow(tmp_path, monkeypatch):
    write_clips(tmp_path / "raw", 3)
    (tmp_path / "raw/clip-900.mp4").write_bytes(b"no video")
    (tmp_path / "corpus.toml").write_text(RECIPE)
    command = ("run", tmp_path / "corpus.toml", tmp_path / "raw", "--out", tmp_path / "out", "--workers", 0)
    monkeypatch.setattr(ledger, "MIN_NAMED_S", 0.0)
    done = cli(*command)
    assert done.returncode == 1, done.stderr
    (path,) = (tmp_path / "out/runs").glob("*.json")
    record = json.loads(path.read_text())
    (node,) = record["nodes"]
    assert node["host"] == node["node"] == os.uname().nodename
    assert node["items"] == {"ingest": 4, "motion + luminance": 3, "dis": 3, "encode": 3}
    assert (node["failed"], node["deaths"]) == (1, 0) and node["decode_s"] > 0 and node["store_s"] > 0
    assert {one["operator"] for one in record["slowest_operators"]} == {
        *("shots.none", "motion", "luminance", "dis", "dct", "bytes"),
    }
    assert len(record["slowest_items"]) == 10
    seconds = [item["seconds"] for item in record["slowest_items"]]
    assert seconds == sorted(seconds, reverse=True) and seconds[0] > 0
    said = "".join(done.stderr.partition("slowest: ")[2].split())  # lines are wrapped
    assert said.startswith(record["slowest_operators"][0]["operator"] + ",")
    assert record["slowest_items"][0]["key"] in said and f"runs/{path.name}" in said
    log = path.with_suffix(".log").read_text()
    assert all(f"{item['key']} took " in log for item in record["slowest_items"])
    monkeypatch.undo()
    again = cli(*command)
    assert "slowest" not in again.stderr, "nothing was done"
    assert "nodes" not in json.loads(max((tmp_path / "out/runs").glob("*.json")).read_text())

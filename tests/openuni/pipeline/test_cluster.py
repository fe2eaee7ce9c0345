"""A Ray cluster of three nodes on this machine, one with GPUs that only Ray counts."""

import json
import platform
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.pipeline.runners import node_check
from openuni.pipeline.runners.node_check import NodeReport, check_node, clock_difference, differences, node_request
from openuni.pipeline.runners.resources import Resources
from openuni.report.cluster import check_cluster
from tests.command_line import cli
from tests.raw_clips import contents, write_clips

RECIPE = """
keep = "motion.speed_diag_per_s > 0.01"
[work]
short_side_px = 24
[filters.motion]
[filters.luminance]
[annotators.dis]
[annotators."tests.operators.on_gpu"]
log = "{log}"
seconds = {seconds}
[encode]
modalities = ["rgb", "segmentation"]
size_px = [16, 16]
frames = 5
"""


class ThreeNodes:
    """A cluster that gains and loses nodes."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.address: str = cluster.address
        self.gpu_node = self.add(2, 1)
        self.cpu_node = self.add(2)

    def add(self, cpus: int, gpus: int = 0) -> Any:
        return self.cluster.add_node(num_cpus=cpus, num_gpus=gpus)

    def kill(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreeNodes]:
    from ray.cluster_utils import Cluster

    with chdir(tmp_path_factory.mktemp("ray")):  # as in conftest
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes = ThreeNodes(cluster)
    try:
        yield nodes
    finally:
        cluster.shutdown()


def write_recipe(folder: Path, seconds: float = 0.0) -> Path:
    (folder / "log").touch()
    path = folder / "corpus.toml"
    path.write_text(RECIPE.format(log=folder / "log", seconds=seconds))
    return path


def run(recipe: Path, raw: Path, out: Path, resources: Resources | None = None) -> Corpus:
    return openuni.run(recipe, raw, out=out, resources=resources or Resources(), reporter=Reporter(quiet=True))


def phases(corpus: Corpus) -> list[str]:
    *_, last = corpus.runs()
    return [phase["phase"] for phase in last["phases"]]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_on_three_nodes_equals_one_in_process(tmp_path, three_nodes):
    """GPU and CPU operators in pools of their own, on workers of several nodes."""
    write_clips(tmp_path / "raw", 12)
    recipe = write_recipe(tmp_path)
    alone = run(recipe, tmp_path / "raw", tmp_path / "alone")
    (tmp_path / "log").write_text("")
    together = run(recipe, tmp_path / "raw", tmp_path / "together", Resources(None, None, three_nodes.address))
    assert contents(together) == contents(alone)
    assert phases(together) == ["ingest", "motion + luminance", "tests.operators.on_gpu", "dis", "encode"]
    assert phases(alone) == ["ingest", "motion + luminance", "dis + tests.operators.on_gpu", "encode"]
    workers = {line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}
    assert len(workers) == 1  # there is one GPU


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_that_die_in_every_phase_and_others_that_join_change_nothing(tmp_path, three_nodes):
    """In turns a node with a GPU and one without; each time another of its kind joins."""
    write_clips(tmp_path / "raw", 16)
    recipe = write_recipe(tmp_path, 0.3)
    alone = run(recipe, tmp_path / "raw", tmp_path / "alone")
    started: queue.Queue[str | None] = queue.Queue()
    killed: list[str] = []

    class Watching(Reporter):
        """Tells when a phase starts."""

        def phase(self, name: str, total: int) -> Any:
            started.put(name)
            return super().phase(name, total)

    def work() -> Corpus:
        out, resources = tmp_path / "out", Resources(None, None, three_nodes.address)
        try:
            return openuni.run(recipe, tmp_path / "raw", out=out, resources=resources, reporter=Watching(quiet=True))
        finally:
            started.put(None)

    with ThreadPoolExecutor(1) as pool:  # Ray adds nodes in the main thread only
        done = pool.submit(work)
        while (phase := started.get(timeout=300)) is not None:
            if phase == "dis":
                continue  # at the same time as the phase before
            time.sleep(1.0)
            if len(killed) % 2:
                three_nodes.kill(three_nodes.gpu_node)
                three_nodes.gpu_node = three_nodes.add(2, 1)
            else:
                three_nodes.kill(three_nodes.cpu_node)
                three_nodes.cpu_node = three_nodes.add(2)
            killed.append(phase)
        corpus = done.result()
    on_gpu = "tests.operators.on_gpu"  # begins beside the filters
    assert killed == ["ingest", "motion + luminance", on_gpu, on_gpu, "encode"]
    assert contents(corpus) == contents(alone)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_driver_that_dies_is_started_again_elsewhere(tmp_path, three_nodes):
    write_clips(tmp_path / "raw", 12)
    recipe = write_recipe(tmp_path, 0.3)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "openuni", "run", recipe, tmp_path / "raw", "--out", out]
    command += ["--address", three_nodes.address]
    driver = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while not (tmp_path / "log").read_text() and time.monotonic() < deadline and driver.poll() is None:
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    _, error = driver.communicate()
    assert (tmp_path / "log").read_text(), error.decode()
    resumed = run(recipe, tmp_path / "raw", out)  # in this process, as on another machine
    assert contents(resumed) == contents(run(recipe, tmp_path / "raw", tmp_path / "alone"))


def test_what_does_not_fit_is_told_before_any_work(tmp_path, ray_address):
    write_clips(tmp_path / "raw", 2)
    recipe = write_recipe(tmp_path)
    for resources, text in (
        (Resources(500, 0.0, ray_address), r"500 workers do not fit: the cluster has 8 CPUs and 0 GPUs"),
        (Resources(None, 64.0, ray_address), r"--gpus 64: the cluster has 8 CPUs and 0 GPUs"),
        (Resources(None, None, ray_address), r"on_gpu: designed for a GPU, and the cluster has 8 CPUs.*--gpus 0"),
    ):
        with pytest.raises(MissingRequirement, match=text):
            run(recipe, tmp_path / "raw", tmp_path / "out", resources)
        assert not (tmp_path / "out/clips").exists()
    with pytest.raises(OpenUniError, match=r"cannot join the Ray cluster at 127\.0\.0\.1:9"):
        run(recipe, tmp_path / "raw", tmp_path / "out", Resources(None, None, "127.0.0.1:9"))


def test_no_worker_means_this_process_also_with_an_address(tmp_path):
    write_clips(tmp_path / "raw", 2)
    out = tmp_path / "out"
    done = cli(
        "run", write_recipe(tmp_path), tmp_path / "raw", "--out", out, "--workers", 0, "--address", "127.0.0.1:9"
    )
    assert done.returncode == 0, done.stderr


def test_nodes_look_for_the_files_that_hold_imported_clips(tmp_path):
    (tmp_path / "part.tar").write_bytes(b"0")
    request = node_request([], [f"{tmp_path}/part.tar#bytes=0-99", f"{tmp_path}/gone.tar#bytes=5-9&xxh3={'0' * 16}"])
    assert request.files == (f"{tmp_path}/part.tar", f"{tmp_path}/gone.tar")
    problems = " ".join(check_node(request).problems)
    assert "gone.tar" in problems and "part.tar" not in problems


def test_doctor_asks_every_node(tmp_path, ray_address):
    recipe = tmp_path / "corpus.toml"
    recipe.write_text('[filters.luminance]\n[annotators.raft]\ncheckpoint = "no/such.pth"\n')
    done = cli("doctor", recipe, "--address", ray_address, "--gpus", "0")
    assert done.returncode == 2
    lines = [line for line in done.stdout.splitlines() if " node " in line]
    assert len(lines) == 1 and "unavailable" in lines[0] and "no/such.pth" in lines[0]
    recipe.write_text("[filters.luminance]\n")
    done = cli("doctor", recipe, "--address", ray_address)
    assert done.returncode == 0
    assert f"openuni {openuni.__version__} (" in done.stdout and "8 CPUs, 0 GPUs" in done.stdout


def test_doctor_shows_what_every_node_has(tmp_path, ray_address):
    import av

    recipe = tmp_path / "corpus.toml"
    recipe.write_text("[filters.luminance]\n")
    done = cli("doctor", recipe, "--address", ray_address, "--out", tmp_path / "corpus")
    header, row = done.stdout.split("\n\n")[1].splitlines()
    assert header.split("  ")[0] == "node" and header.endswith("clock")
    free = f"{shutil.disk_usage(tmp_path).free / 1024**3:.0f}"
    assert row.split()[1:3] == ["8", "0"] and row.split()[3].split(".")[0] in {free, str(int(free) - 1)}
    assert platform.python_version() in row and av.__version__ in row and row.endswith("ok")
    done = cli("doctor", recipe, "--address", ray_address, "--out", "memory://doctor/corpus", "--json")
    (node,) = json.loads(done.stdout)["nodes"]
    assert node["corpus_free_bytes"] is None and node["spool_free_bytes"] > 0
    assert node["versions"]["numpy"] == np.__version__ and node["missing_codecs"] == [] and node["clock_s"] == 0.0
    done = cli("doctor", recipe, "--json", "--out", tmp_path / "corpus")
    assert json.loads(done.stdout)["nodes"] == [] and json.loads(done.stdout)["checks"][0]["what"] == "video"


def test_what_could_change_results_on_a_node_is_named():
    report = NodeReport("n", "3.12.1", "0.1.0 (abc)", (), (), versions={"av": "17.0", "torch": "2.13"}, clock_s=-7.2)
    found = differences(report, "3.11.9", {"av": "18.1", "torch": "2.13", "ffmpeg": "8.0"})
    assert found == [
        "Python 3.12.1, the driver has 3.11.9",
        "av 17.0, the driver has 18.1",
        "its clock is 7 s behind the driver's (at most 5 s): synchronize it",
    ]
    assert differences(report._replace(missing_codecs=("av1",), clock_s=5.0), "3.12.1", {}) == ["no decoder for av1"]
    assert differences(report._replace(clock_s=60.0), "3.12.1", {})[0].startswith("its clock is 60 s ahead of")


@pytest.mark.parametrize(("node_s", "difference"), [(100.0, 0.0), (103.0, 0.0), (105.5, 2.5), (90.0, -10.0)])
def test_a_clock_differs_by_what_the_time_of_the_answer_cannot_explain(node_s, difference):
    assert clock_difference(node_s, asked_s=100.0, answered_s=103.0) == difference


def test_a_node_without_room_cannot_take_part(tmp_path, monkeypatch):
    request = node_request([], (), str(tmp_path / "corpus"))
    assert check_node(request).problems == ()
    monkeypatch.setattr(node_check, "MIN_FREE_BYTES", 2**60)
    (problem,) = check_node(request).problems
    assert "GiB free for the corpus; 1 GiB is required" in problem
    monkeypatch.setenv("OPENUNI_SPOOL", str(tmp_path / "spool"))
    (problem,) = check_node(request._replace(out="memory://doctor/corpus")).problems
    assert "OPENUNI_SPOOL" in problem


def test_a_node_with_another_openuni_or_corpus_is_refused(tmp_path, ray_address, monkeypatch):
    from openuni.config.recipe import CorpusRecipe
    from openuni.report import cluster as report

    request_of = report.node_request
    (tmp_path / "corpus.json").write_text("{}")

    def other(*given: Any) -> Any:
        return request_of(*given)._replace(
            code="9.9.9 (abc)", files=("/no/such/footage.mp4",), corpus_digest="0", corpus=str(tmp_path)
        )

    monkeypatch.setattr(report, "node_request", other)
    found = check_cluster(CorpusRecipe.parse({"filters": {"luminance": {}}}), ray_address, None, str(tmp_path))
    texts = " ".join(result.text for result in found.checks if result.is_blocking)
    assert "the driver has 9.9.9 (abc)" in texts
    assert "cannot see /no/such/footage.mp4" in texts
    assert f"has another corpus at {tmp_path}" in texts

"""Replies that are lost, and nodes that are about to go: items are done again, and no run ends for them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

import openuni
from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.pipeline.runners import ray_runner
from openuni.pipeline.runners.capacity import Shape
from openuni.pipeline.runners.ray_runner import RayRunner
from openuni.pipeline.runners.ray_worker import RayWorker, Reply
from openuni.pipeline.runners.resources import LATER, Pool, PoolSize, Resources
from openuni.pipeline.runners.work_queue import Queue
from openuni.pipeline.worker import ItemOutcome, Spec, Worker
from tests.raw_clips import write_clips


class Numbers(Worker):
    """Items are names; it does nothing with them."""

    def prepare(self, item: Any) -> Any:
        return item

    def compute(self, item: Any, prepared: Any) -> Any:
        return prepared

    def store(self, item: Any, computed: Any) -> ItemOutcome:
        return ItemOutcome(item.key, "ok")

    def fail(self, item: Any, error: str) -> ItemOutcome:
        return ItemOutcome(item.key, "failed", error)

    def finish(self) -> None:
        pass


class NumbersSpec(Spec):
    def start(self, device: str) -> Worker:
        return Numbers()


class Item(str):
    """A name."""

    __slots__ = ()

    @property
    def key(self) -> str:
        return str(self)


class Forgetful(RayWorker):
    """Ray cannot store the replies about some items."""

    def step(self, item: Any, next_item: Any | None) -> Reply:
        from ray.exceptions import ObjectStoreFullError, OutOfMemoryError

        reply = super().step(item, next_item)
        if item.key == "always":
            raise ObjectStoreFullError("no room for the reply")
        once = Path(os.environ["OPENUNI_TEST_FOLDER"]) / item.key
        if item.key.startswith("once") and not once.exists():
            once.touch()
            raise OutOfMemoryError("killed, the node is running low on memory")
        return reply


class OnForgetfulWorkers(RayRunner):
    folder: Path

    def new_actor(self, shape: Shape) -> Any:
        home = str(Path(__file__).parents[4])
        environment = {"OPENUNI_THREADS": "1", "PYTHONPATH": home, "OPENUNI_TEST_FOLDER": str(self.folder)}
        actor = self.ray.remote(Forgetful).options(num_cpus=1, runtime_env={"env_vars": environment})
        setup = ray_runner.Setup(str(self.folder), [], 0, ray_runner.code_version())
        return actor.remote(setup)


@pytest.mark.slow
def test_items_whose_replies_ray_loses_are_tried_again(tmp_path, ray_address):
    """For lack of memory, or of room in the object store."""
    runner = OnForgetfulWorkers(Resources(2, 0.0, ray_address))
    runner.folder = tmp_path
    outcomes: dict[str, ItemOutcome] = {}
    names = [Item(f"item {number}") for number in range(6)] + [Item("once 1"), Item("always"), Item("once 2")]
    done = lambda outcome: outcomes.update({outcome.key: outcome})  # noqa: E731
    try:
        runner.run_pools([Pool("numbers", NumbersSpec(), names, done, lambda held: held, PoolSize(2, Shape()))])
    finally:
        runner.close()
    assert {key for key, outcome in outcomes.items() if outcome.status == "ok"} == {*names} - {"always"}
    assert outcomes["always"].error == "WorkerDied: the worker process died 3 times with this clip in flight"


def test_a_source_may_have_nothing_for_a_while():
    queue = Queue(iter(["a", LATER, LATER, "b"]), lambda held: held)
    assert [queue.next_new() for _ in range(3)] == ["a", None, None]
    assert queue.waiting and not queue.is_empty
    assert queue.next_new() == "b" and not queue.waiting and not queue.is_empty
    assert queue.next_new() is None and queue.is_empty
    closed = Queue(iter(["a", "b"]), lambda held: held)
    closed.close()
    assert closed.next_new() is None and closed.is_empty


# ---------------------------------------------------------------------- nodes that are about to go


@pytest.fixture
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """A cluster and its second node."""
    from ray.cluster_utils import Cluster

    with chdir(tmp_path_factory.mktemp("ray")):  # as in conftest
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        node = cluster.add_node(num_cpus=2)
    yield cluster, node
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_that_is_about_to_go_is_left_before_it_does(tmp_path, two_nodes, monkeypatch):
    """Its workers get no new items and seal what they have; so its end interrupts nothing."""
    monkeypatch.setattr(ray_runner, "POLL_S", 1.0)
    cluster, node = two_nodes
    write_clips(tmp_path / "raw", 70)
    log = tmp_path / "log"
    log.write_text("")
    recipe = tmp_path / "corpus.toml"
    text = f'[work]\nshort_side_px = 24\n[annotators."tests.operators.logged"]\nlog = "{log}"\nseconds = 0.5\n'
    recipe.write_text(text)

    def work() -> Corpus:
        resources = Resources(None, None, cluster.address)
        return openuni.run(
            recipe, tmp_path / "raw", out=tmp_path / "out", resources=resources, reporter=Reporter(quiet=True)
        )

    def processes() -> set[str]:
        return {line.split()[0] for line in log.read_text().splitlines()}

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        while len(processes()) < 3 and not done.done():
            time.sleep(0.1)
        command = [str(Path(sys.executable).parent / "ray"), "drain-node", "--address", cluster.address]
        command += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "notice"]
        subprocess.run([*command, "--deadline-remaining-seconds", "120"], check=True, capture_output=True)
        time.sleep(5.0)
        lines = len(log.read_text().splitlines())
        assert lines < 70 and not done.done()
        time.sleep(2.0)
        late = {line.split()[0] for line in log.read_text().splitlines()[lines:]}
        assert len(late) == 1  # the worker on the other node
        assert len(list((tmp_path / "out/annotations/tests.operators.logged").glob("*.parquet"))) == 2  # sealed
        cluster.remove_node(node, allow_graceful=False)
        corpus = done.result()
    found = [line.split()[1] for line in log.read_text().splitlines()]
    assert len(found) == len(set(found)) == 70  # none was done twice
    assert "died with" not in "".join(path.read_text() for path in (tmp_path / "out/runs").glob("*.log"))
    rows = corpus.table("annotations/tests.operators.logged").to_pylist()
    assert [row["tests.operators.logged"]["status"] for row in rows] == ["ok"] * 70

"""Prometheus metrics of a run on Ray: exported by every node's Ray agent, which needs ray[default].

Ray puts `ray_` before each name, and adds the tags of its own, such as the node's address. docs/cluster/watch.md lists
them. Runs in one process export nothing.
"""

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from openuni.console.usage import PoolWatcher
from openuni.pipeline.worker import ItemOutcome

# upper bounds of the buckets. Ray exports the sum of a histogram as if all values lay in the middle of their buckets:
# seconds are counters as well.
SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
UPDATE_S = 0.25
OPERATOR_TAGS = ("pool", "operator")


class WorkerMetrics:
    """What one worker of a pool exports."""

    def __init__(self, pool: str) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self.pool = pool
        self.items = Counter("openuni_items", "Items done, by pool and status (ok, failed)", ("pool", "status"))
        self.stages = Counter(
            "openuni_stage_seconds", "Seconds of workers by stage: decode, compute, store, wait", ("pool", "stage")
        )
        self.runs = Counter("openuni_operator_items", "Items that an operator or codec has processed", OPERATOR_TAGS)
        self.operators = Counter("openuni_operator_seconds", "Seconds of an operator or codec", OPERATOR_TAGS)
        self.durations = Histogram("openuni_item_seconds", "Seconds of one item in all stages", SECONDS, ("pool",))
        self.gpu_busy = Gauge("openuni_gpu_busy", "Share of time in which a GPU runs kernels, 0 to 1", ("pool", "gpu"))

    def record(self, outcome: ItemOutcome) -> None:
        """One more item."""
        usage, pool = outcome.usage, self.pool
        self.items.inc(1, {"pool": pool, "status": outcome.status})
        stages = {"decode": usage.decode_s, "compute": usage.compute_s, "store": usage.store_s, "wait": usage.wait_s}
        for stage, seconds in stages.items():
            _add(self.stages, seconds, {"pool": pool, "stage": stage})
        for operator, seconds in usage.operators_s.items():
            self.runs.inc(1, {"pool": pool, "operator": operator})
            _add(self.operators, seconds, {"pool": pool, "operator": operator})
        self.durations.observe(usage.work_s, {"pool": pool})
        for gpu, share in usage.gpus.items():
            self.gpu_busy.set(share.busy, {"pool": pool, "gpu": gpu})


class PoolState(NamedTuple):
    """How the workers of a pool fare."""

    name: str
    watcher: PoolWatcher
    placed: int  # workers that have started
    wanted: int
    in_flight: int  # items that workers hold


class DriverMetrics:
    """What the process that hands out the items exports, and tells the watchers of the pools."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge

        self.workers = Gauge("openuni_workers", "Workers of a pool, by state (placed, wanted)", ("pool", "state"))
        self.queue = Gauge("openuni_queued_items", "Items of a pool that no worker holds yet", ("pool",))
        self.deaths = Counter("openuni_worker_deaths", "Workers of a pool that died", ("pool",))
        self.updated = 0.0

    def tell(self, pools: Iterable[PoolState], *, at_once: bool = False) -> None:
        """The pools as they are; every `UPDATE_S` unless `at_once`."""
        if not at_once and time.monotonic() - self.updated < UPDATE_S:
            return
        self.updated = time.monotonic()
        for pool in pools:
            pool.watcher.workers(pool.placed, pool.wanted, pool.in_flight)
            self.workers.set(pool.placed, {"pool": pool.name, "state": "placed"})
            self.workers.set(pool.wanted, {"pool": pool.name, "state": "wanted"})
            self.queue.set(pool.watcher.queue, {"pool": pool.name})

    def worker_died(self, pool: PoolState, node_id: str) -> None:
        """A worker died, or its node."""
        pool.watcher.worker_died(node_id)
        self.deaths.inc(1, {"pool": pool.name})


def _add(counter: Any, amount: float, tags: dict[str, str]) -> None:
    if amount > 0:  # a counter refuses 0
        counter.inc(amount, tags)

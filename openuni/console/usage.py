"""What items cost and where: seconds by stage, by node and by operator, the share of time that GPUs are busy."""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SLOWEST_ITEMS = 10


class GpuShare(NamedTuple):
    """How busy one GPU was."""

    busy: float  # mean share of time, 0..1
    samples: int  # one per second


class ItemUsage(NamedTuple):
    """What one item cost its worker. Decoding and storing overlap with the computation of other items."""

    host: str = ""
    node_id: str = ""  # Ray's; empty: the process of the run
    decode_s: float = 0.0  # reading and decoding, wherever it took place
    compute_s: float = 0.0  # without the decoding in it
    store_s: float = 0.0  # writing rows and payloads
    wait_s: float = (
        0.0  # before the computation and in it: for frames, for the item before to be stored, for the driver
    )
    operators_s: Mapping[str, float] = {}  # of the computation, by operator
    gpus: Mapping[str, GpuShare] = {}  # by physical GPU, since the worker's last outcome

    @property
    def work_s(self) -> float:
        """Decoding, computing and storing together."""
        return self.decode_s + self.compute_s + self.store_s


class PoolWatcher:
    """Is told how the workers of a pool fare. This one does nothing."""

    @property
    def queue(self) -> int:
        """Items that no worker holds yet."""
        return 0

    def workers(self, placed: int, wanted: int, in_flight: int) -> None:
        """`placed`: workers that have started. `in_flight`: items that workers hold."""

    def worker_died(self, node_id: str) -> None:
        """A worker died, or its node. `node_id`: empty if it had not started."""


@dataclass
class NodeUsage:
    """Sums over the items of one node."""

    host: str = ""
    items: int = 0
    failed: int = 0
    decodes: int = 0
    deaths: int = 0  # of workers
    decode_s: float = 0.0
    compute_s: float = 0.0
    store_s: float = 0.0
    wait_s: float = 0.0

    def add(self, other: "NodeUsage") -> None:
        """Add the sums of the same node."""
        self.host = self.host or other.host
        for name in ("items", "failed", "decodes", "deaths", "decode_s", "compute_s", "store_s", "wait_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class OperatorUsage:
    """Sums over the items of one operator."""

    items: int = 0
    seconds: float = 0.0

    @property
    def seconds_per_item(self) -> float:
        """Mean over the items."""
        return self.seconds / self.items if self.items else 0.0


class SlowItem(NamedTuple):
    """An item that took long. Compares by seconds."""

    seconds: float  # decoding, computing and storing
    key: str
    phase: str
    host: str


@dataclass
class PhaseUsage:
    """Sums over the items of one phase, in memory that does not grow with their number."""

    phase: str
    nodes: dict[str, NodeUsage] = field(default_factory=dict)  # by Ray's node id, or host name
    operators: dict[str, OperatorUsage] = field(default_factory=dict)
    gpus: dict[str, GpuShare] = field(default_factory=dict)
    slowest: list[SlowItem] = field(default_factory=list)  # a heap, the fastest of them first

    def add(self, key: str, status: str, decodes: int, usage: ItemUsage) -> None:
        """One more item."""
        node = self.nodes.setdefault(usage.node_id or usage.host, NodeUsage())
        failed = int(status != "ok")
        seconds = (usage.decode_s, usage.compute_s, usage.store_s, usage.wait_s)
        node.add(NodeUsage(usage.host, 1, failed, decodes, 0, *seconds))
        for name, operator_s in usage.operators_s.items():
            operator = self.operators.setdefault(name, OperatorUsage())
            operator.items += 1
            operator.seconds += operator_s
        for gpu, share in usage.gpus.items():
            self.gpus[gpu] = joined(self.gpus.get(gpu), share)
        item = SlowItem(usage.work_s, key, self.phase, usage.host)
        if len(self.slowest) < SLOWEST_ITEMS:
            heapq.heappush(self.slowest, item)
        else:
            heapq.heappushpop(self.slowest, item)

    def add_death(self, node_id: str) -> None:
        """A worker of the node died."""
        self.nodes.setdefault(node_id, NodeUsage()).deaths += 1

    @property
    def total(self) -> NodeUsage:
        """Sums over all nodes."""
        total = NodeUsage()
        for node in self.nodes.values():
            total.add(node)
        return total

    @property
    def gpu_busy(self) -> float | None:
        """Mean over the GPUs, 0..1; None if none was measured."""
        shares = [share.busy for share in self.gpus.values() if share.samples]
        return sum(shares) / len(shares) if shares else None

    @property
    def gpu_samples(self) -> int:
        """Number of samples of the GPU that has most."""
        return max((share.samples for share in self.gpus.values()), default=0)

    def shares(self) -> tuple[float | None, float | None]:
        """Shares of the workers' time in which they decode, and in which they store, 0..1; None before any item."""
        total = self.total
        worker_s = total.compute_s + total.wait_s  # of the thread that computes: all of its time
        if not worker_s:
            return None, None
        return min(1.0, total.decode_s / worker_s), min(1.0, total.store_s / worker_s)

    def as_record(self) -> dict[str, Any]:
        """What the ledger keeps of a phase."""
        total = self.total
        record: dict[str, Any] = {
            "decode_s": round(total.decode_s, 3),
            "compute_s": round(total.compute_s, 3),
            "store_s": round(total.store_s, 3),
            "wait_s": round(total.wait_s, 3),
            "operators": {
                name: {"items": one.items, "seconds": round(one.seconds, 3)} for name, one in self.operators.items()
            },
        }
        busy = self.gpu_busy
        return record | ({} if busy is None else {"gpu_busy": round(busy, 3)})


def joined(one: GpuShare | None, other: GpuShare) -> GpuShare:
    """The share over the samples of both."""
    samples = other.samples + (one.samples if one else 0)
    if one is None or not samples:
        return other
    return GpuShare((one.busy * one.samples + other.busy * other.samples) / samples, samples)


def slowest_operators(phases: Iterable[PhaseUsage]) -> list[tuple[str, OperatorUsage]]:
    """All operators of a run, the one with the most seconds per item first."""
    found: dict[str, OperatorUsage] = {}
    for phase in phases:
        for name, one in phase.operators.items():
            known = found.setdefault(name, OperatorUsage())
            known.items += one.items
            known.seconds += one.seconds
    return sorted(found.items(), key=lambda pair: -pair[1].seconds_per_item)


def slowest_items(phases: Iterable[PhaseUsage]) -> list[SlowItem]:
    """The items of a run that took longest in one phase, the slowest first."""
    return sorted((item for phase in phases for item in phase.slowest), reverse=True)[:SLOWEST_ITEMS]


def nodes_record(phases: Iterable[PhaseUsage]) -> list[dict[str, Any]]:
    """What the ledger keeps of every node: items by phase, seconds by stage, decodes, deaths of workers."""
    totals: dict[str, NodeUsage] = {}
    items: dict[str, dict[str, int]] = {}
    for phase in phases:
        for name, node in phase.nodes.items():
            totals.setdefault(name, NodeUsage()).add(node)
            if node.items:
                of_node = items.setdefault(name, {})
                of_node[phase.phase] = of_node.get(phase.phase, 0) + node.items
    return [
        {
            "host": node.host,
            "node": name,
            "items": items.get(name, {}),
            "failed": node.failed,
            "decodes": node.decodes,
            "deaths": node.deaths,
            "decode_s": round(node.decode_s, 3),
            "compute_s": round(node.compute_s, 3),
            "store_s": round(node.store_s, 3),
            "wait_s": round(node.wait_s, 3),
        }
        for name, node in sorted(totals.items(), key=lambda pair: (pair[1].host, pair[0]))
    ]

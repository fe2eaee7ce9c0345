"""What a run may use, and the runner contract: phases over many items, in any number of processes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple

from openuni.console.usage import PoolWatcher
from openuni.pipeline.runners.capacity import Capacity, Shape
from openuni.pipeline.worker import ItemOutcome, Spec

MAX_ATTEMPTS = 3  # of an item with which the process dies


class Later(Enum):
    """What `Pool.items` give while they have none."""

    LATER = "nothing now; ask again later"


LATER: Final = Later.LATER


@dataclass(frozen=True)
class Resources:
    """Where to run: in this process, on Ray workers of this machine, or on those of a cluster."""

    workers: int | None = 0  # Ray workers at a time; 0: this process; None: as many as the nodes hold
    gpus: float | None = 0.0  # used by the workers; None: all of the cluster
    address: str | None = None  # of a running Ray cluster; None starts one on this machine
    workers_per_gpu: int | None = None  # that share one GPU; None: 1, or more where measurements say so
    placement_timeout_s: float | None = None  # how long to wait for nodes; None: the workers must fit on those there

    @property
    def per_gpu(self) -> int:
        """Workers that share one GPU."""
        return self.workers_per_gpu or 1


class PoolSize(NamedTuple):
    """How many workers a pool has, and what each reserves."""

    workers: int
    shape: Shape

    @property
    def per_gpu(self) -> int:
        """Workers that share one GPU."""
        return max(1, round(1 / self.shape.gpus)) if self.shape.gpus else 1


class Pool(NamedTuple):
    """Workers of one kind and their work in a phase. The pools of a phase work at the same time."""

    name: str
    spec: Spec
    items: Iterable[Any]
    report: Callable[[ItemOutcome], None]  # called in the driver as each item is done, in no fixed order
    on_death: Callable[[list[Any]], list[Any]]  # of the items that a dead worker held, those that still need work
    size: PoolSize
    watcher: PoolWatcher = PoolWatcher()  # is told of the workers, if they are processes of their own
    follows: bool = False  # its items may be `LATER`, and it ends with the other pools: the rest is another phase's


class Runner(ABC):
    """Runs phases, one after the other, on the same processes where it can."""

    resources: Resources = Resources()

    def capacity(self) -> Capacity | None:
        """What the nodes have; None: everything is done in this process."""
        return None

    def gpu_memory_gb(self) -> float | None:
        """Memory of the smallest GPU, 10^9 bytes; None where it is not known."""
        return None

    @abstractmethod
    def run_pools(self, pools: Sequence[Pool]) -> None:
        """Do all items of all pools."""

"""What a run may use, and the runner contract: one phase over many items, in any number of processes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from openuni.pipeline.worker import ItemOutcome, Spec

MAX_ATTEMPTS = 3  # of an item with which the process dies


@dataclass(frozen=True)
class Resources:
    """Where to run. `workers` 0 is this process; else that many Ray actors, `gpus` shared among them."""

    workers: int = 0
    gpus: float = 0.0
    address: str | None = None  # of a running Ray cluster; None starts one on this machine

    @property
    def gpus_per_worker(self) -> float:
        """Share of a GPU each worker asks Ray for."""
        return self.gpus / self.workers if self.workers else 0.0


class Runner(ABC):
    """Runs phases, one after the other, on the same processes."""

    @abstractmethod
    def run(
        self,
        spec: Spec,
        items: Iterable[Any],
        report: Callable[[ItemOutcome], None],
        on_death: Callable[[list[Any]], list[Any]],
    ) -> None:
        """Do all items; `report` is called in this process as each one is done, in no fixed order.

        `on_death` is called with the items that a dead worker held and returns those that still need work.
        """

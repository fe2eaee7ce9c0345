"""What is left of a pool's items, and which worker has which of them."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from openuni.pipeline.runners.capacity import Shape
from openuni.pipeline.runners.metrics import PoolState
from openuni.pipeline.runners.resources import LATER, MAX_ATTEMPTS, Pool

MAX_NODE_DEATHS = 10  # of nodes that held the same item: it may be what ends them

logger = logging.getLogger(__name__)


@dataclass
class ActorSlot:
    """One Ray actor and what it is doing."""

    actor: Any
    shape: Shape
    in_flight: dict[str, Any] = field(default_factory=dict)  # by key: given to the actor, and not reported yet
    following: Any | None = None  # of these, the one it prefetches
    call: Future[Any] | None = None  # the call that it has not answered
    started: bool = False
    node_id: str = ""  # known once started
    retiring: bool = False  # its node is about to go: it gets no new items
    finishing: bool = False  # it was told to finish


@dataclass
class Queue:
    """What is left: new items, retries (one at a time), and exhausted items, which only need their failed row."""

    pending: Iterator[Any]
    on_death: Callable[[list[Any]], list[Any]]
    returned: deque[Any] = field(default_factory=deque)  # given to a worker that did not begin with them
    retries: deque[Any] = field(default_factory=deque)
    exhausted: deque[Any] = field(default_factory=deque)
    attempts: dict[str, int] = field(default_factory=dict)
    node_deaths: dict[str, int] = field(default_factory=dict)
    drained: bool = False  # `pending` has nothing more
    waiting: bool = False  # `pending` had nothing when it was last asked, and may have something later

    def record_worker_death(self, held: list[Any], *, with_node: bool) -> None:
        """Count a worker's death against the items it held, except those it had finished."""
        counts, most = (self.node_deaths, MAX_NODE_DEATHS) if with_node else (self.attempts, MAX_ATTEMPTS)
        what = "a node" if with_node else "a worker"
        for item in self.on_death(held):
            counts[item.key] = counts.get(item.key, 0) + 1
            logger.warning("%s died with %s in flight (attempt %d)", what, item.key, counts[item.key])
            (self.exhausted if counts[item.key] >= most else self.retries).append(item)

    def next_new(self) -> Any | None:
        """The next item that nobody has had; None if there is none, or none yet."""
        if self.returned:
            return self.returned.popleft()
        item = None if self.drained else next(self.pending, None)
        self.waiting = item is LATER
        if self.waiting:
            return None
        self.drained = item is None
        return item

    def close(self) -> None:
        """Hand out no new items any more."""
        self.drained, self.waiting = True, False

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to hand out."""
        return self.drained and not self.returned and not self.retries and not self.exhausted

    def death_text(self, item: Any) -> str:
        """The error of an item that is not tried again."""
        if self.node_deaths.get(item.key, 0) >= MAX_NODE_DEATHS:
            return f"WorkerDied: {MAX_NODE_DEATHS} nodes died with this clip in flight"
        return f"WorkerDied: the worker process died {MAX_ATTEMPTS} times with this clip in flight"


@dataclass
class PoolRun:
    """A pool at work."""

    pool: Pool
    queue: Queue
    slots: list[ActorSlot] = field(default_factory=list)
    calls: int = 0  # that workers have not answered
    failed_starts: int = 0

    def state(self) -> PoolState:
        """How its workers fare."""
        placed, held = sum(slot.started for slot in self.slots), sum(len(slot.in_flight) for slot in self.slots)
        wanted = max(self.pool.size.workers, len(self.slots))
        return PoolState(self.pool.name, self.pool.watcher, placed, wanted, held)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to hand out, and nothing is in hand."""
        return self.queue.is_empty and not self.calls

    @property
    def is_unplaced(self) -> bool:
        """Whether none of its workers has started."""
        return bool(self.slots) and not any(slot.started for slot in self.slots)

    @property
    def wants_room(self) -> bool:
        """Whether one of its workers has not started."""
        return any(not slot.started for slot in self.slots)


def close_followers(runs: list[PoolRun]) -> None:
    """End the pools that follow others once these are done."""
    if all(run.is_done for run in runs if not run.pool.follows):
        for run in runs:
            if run.pool.follows:
                run.queue.close()

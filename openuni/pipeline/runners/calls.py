"""The calls of actors that have not been answered yet.

Replies are put into a queue as they come. Asking Ray which of thousands of calls have ended (`ray.wait`) would look at
all of them for every reply.
"""

from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from openuni.pipeline.runners.work_queue import ActorSlot, PoolRun


class Answer(NamedTuple):
    """A call that has ended, with a result or an exception."""

    run: PoolRun
    slot: ActorSlot
    call: Future[Any]


class Calls:
    """At most one call per actor."""

    def __init__(self) -> None:
        self._ended: SimpleQueue[Answer] = SimpleQueue()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, run: PoolRun, slot: ActorSlot, reference: Any | None) -> None:
        """Wait for a call of an actor too. `reference`: Ray's; None: there is no call."""
        if reference is None:
            return
        slot.call = reference.future()
        run.calls += 1
        self._count += 1
        slot.call.add_done_callback(lambda call: self._ended.put(Answer(run, slot, call)))

    def drop(self, run: PoolRun, slot: ActorSlot) -> None:
        """Do not wait for the call of an actor any more."""
        if slot.call is not None:
            slot.call = None
            run.calls -= 1
            self._count -= 1

    def take(self, timeout_s: float) -> list[Answer]:
        """All calls that have ended; waits for the first one."""
        found: list[Answer] = []
        with suppress(Empty):
            found.append(self._ended.get(timeout=timeout_s))
            while True:
                found.append(self._ended.get_nowait())
        answers = [answer for answer in found if answer.slot.call is answer.call]
        for answer in answers:
            self.drop(answer.run, answer.slot)
        return answers

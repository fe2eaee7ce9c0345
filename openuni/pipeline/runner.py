"""Running one phase over many items: in this process, or on Ray actors. The only home of Ray in the pipeline.

Both ways drive the same `WorkerLoop`. Ray adds processes that may die: what they had in hand is retried elsewhere,
alone, and recorded as failed after `MAX_ATTEMPTS`.
"""

import logging
import math
import os
import sys
import tempfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import openuni
from openuni.manifests.contracts.discovery import local_import_roots
from openuni.manifests.errors import OpenUniError
from openuni.manifests.graceful_shutdown import graceful_shutdown
from openuni.pipeline.worker import ItemOutcome, Spec, WorkerLoop

MAX_ATTEMPTS = 3
MAX_FAILED_STARTS = 10


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


@contextmanager
def open_runner(resources: Resources) -> Iterator[Runner]:
    """The runner for these resources; its processes end with the context."""
    if resources.workers == 0:
        yield InProcessRunner("cuda" if resources.gpus else "cpu")
        return
    runner = RayRunner(resources)
    try:
        yield runner
    finally:
        runner.close()


class InProcessRunner(Runner):
    """Everything in this process: for debugging, small corpora, and machines without Ray."""

    def __init__(self, device: str) -> None:
        self.device = device

    def run(
        self,
        spec: Spec,
        items: Iterable[Any],
        report: Callable[[ItemOutcome], None],
        on_death: Callable[[list[Any]], list[Any]],
    ) -> None:
        """See `Runner.run`."""
        loop = WorkerLoop(spec.start(self.device))
        try:
            source = iter(items)
            with graceful_shutdown("the clip in hand") as interrupted:
                item = next(source, None)
                while item is not None and not interrupted.is_set():
                    next_item = next(source, None)
                    settled = loop.step(item, next_item)
                    if settled is not None:
                        report(settled)
                    item = next_item
                settled = loop.flush()
                if settled is not None:
                    report(settled)
            if interrupted.is_set():
                raise KeyboardInterrupt
        finally:
            loop.finish()


@dataclass
class ActorSlot:
    """One Ray actor and what it is doing."""

    actor: Any
    in_flight: dict[str, Any] = field(default_factory=dict)  # by key: given to the actor, and not reported yet
    next_item: Any | None = None  # of these, the one it prepares
    started: bool = False


@dataclass
class Queue:
    """What is left: fresh items, suspects to be retried alone, and the doomed, which only need their failed row."""

    pending: Iterator[Any]
    on_death: Callable[[list[Any]], list[Any]]
    retries: deque[Any] = field(default_factory=deque)
    exhausted: deque[Any] = field(default_factory=deque)
    attempts: dict[str, int] = field(default_factory=dict)

    def record_worker_death(self, held: list[Any]) -> None:
        """Count a worker's death against the items it held; those that finished before it are done."""
        for item in self.on_death(held):
            self.attempts[item.key] = self.attempts.get(item.key, 0) + 1
            too_often = self.attempts[item.key] >= MAX_ATTEMPTS
            (self.exhausted if too_often else self.retries).append(item)


class RayRunner(Runner):
    """Actors that pull items. Frames never travel: an actor gets names, and writes its own parts."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.slots: list[ActorSlot] = []
        self.failed_starts = 0

    @cached_property
    def ray(self) -> Any:
        """Ray, started when the first phase has work: a run with nothing left to do does not wait for it."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # CPU workers keep what they see of GPUs
        import ray

        local = {
            "address": "local",  # never a cluster that happens to run on this machine
            "num_cpus": self.resources.workers,
            "num_gpus": math.ceil(self.resources.gpus),
            "include_dashboard": False,
        }
        # Ray puts the folder in which it is started first on its workers' path, before all installed packages: a
        # user's tensorflow.py there would be imported. A working_dir would prevent it too, at 15 s per start.
        self.empty_folder = tempfile.TemporaryDirectory(prefix="openuni-")
        with chdir(self.empty_folder.name):
            ray.init(
                **({"address": self.resources.address} if self.resources.address else local),
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        return ray

    @cached_property
    def actor_type(self) -> Any:
        """The actor class with its share of the machine."""
        threads = str(max(1, (os.cpu_count() or 1) // self.resources.workers))
        environment = {"OMP_NUM_THREADS": threads, "OPENUNI_THREADS": threads}
        home = _uninstalled_home()
        if home is not None:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
        return self.ray.remote(RayWorker).options(
            num_cpus=1,
            num_gpus=self.resources.gpus_per_worker,
            max_restarts=0,
            runtime_env={"env_vars": environment},
        )

    def close(self) -> None:
        """End all actors, and the local Ray."""
        if "ray" in self.__dict__:
            self.ray.shutdown()
            self.empty_folder.cleanup()

    def run(
        self,
        spec: Spec,
        items: Iterable[Any],
        report: Callable[[ItemOutcome], None],
        on_death: Callable[[list[Any]], list[Any]],
    ) -> None:
        """See `Runner.run`."""
        queue = Queue(iter(items), on_death)
        running: dict[Any, ActorSlot] = {}
        self.failed_starts = 0
        while len(self.slots) < self.resources.workers:
            self.slots.append(ActorSlot(self._new_actor()))
        for slot in self.slots:
            running[self._start(slot, spec)] = slot
        while running:
            ready, _ = self.ray.wait(list(running), num_returns=1)
            slot = running.pop(ready[0])
            reference = self._advance(slot, ready[0], spec, queue, report)
            if reference is not None:
                running[reference] = slot
            self._wake_idle(running, queue)
        self._finish()

    def _new_actor(self) -> Any:
        # paths in options are meant from the folder where the command runs; operators that a recipe named by a dotted
        # path are found where the driver found them
        return self.actor_type.remote(str(Path.cwd()), local_import_roots())

    def _start(self, slot: ActorSlot, spec: Spec) -> Any:
        slot.in_flight, slot.next_item, slot.started = {}, None, False
        return slot.actor.start.remote(spec)

    def _advance(
        self, slot: ActorSlot, done: Any, spec: Spec, queue: Queue, report: Callable[[ItemOutcome], None]
    ) -> Any | None:
        """Take one finished call of an actor; returns its next call, or None when there is nothing left for it."""
        try:
            outcome = self.ray.get(done)
        except self.ray.exceptions.RayActorError:
            return self._replace(slot, spec, queue)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, OpenUniError) else error from None
        if not slot.started:
            slot.started, self.failed_starts = True, 0
        if outcome is not None:
            del slot.in_flight[outcome.key]
            report(outcome)
        return self._next_call(slot, queue)

    def _next_call(self, slot: ActorSlot, queue: Queue) -> Any | None:
        """The slot's next call, or None when nothing is left for it."""
        item, slot.next_item = slot.next_item, None
        if item is None:
            if slot.in_flight and (queue.exhausted or queue.retries):
                return slot.actor.flush.remote()  # what comes next comes alone
            if queue.exhausted:
                item = queue.exhausted.popleft()
                slot.in_flight[item.key] = item
                error = f"WorkerDied: the worker process died {MAX_ATTEMPTS} times with this clip in hand"
                return slot.actor.fail.remote(item, error)
            # a suspect is alone in hand: a further death proves which clip is to blame
            item = queue.retries.popleft() if queue.retries else next(queue.pending, None)
        if item is None:
            return slot.actor.flush.remote() if slot.in_flight else None
        slot.in_flight[item.key] = item
        if not queue.retries and not queue.exhausted and item.key not in queue.attempts:
            slot.next_item = next(queue.pending, None)
            if slot.next_item is not None:
                slot.in_flight[slot.next_item.key] = slot.next_item
        return slot.actor.step.remote(item, slot.next_item)

    def _replace(self, slot: ActorSlot, spec: Spec, queue: Queue) -> Any:
        """The actor died: blame what it held, and start another one."""
        held = list(slot.in_flight.values())
        if not held:
            self.failed_starts += 1
            if self.failed_starts >= MAX_FAILED_STARTS:
                raise OpenUniError(
                    f"{MAX_FAILED_STARTS} workers in a row died while starting. Is there memory for the models? "
                    "Try fewer --workers, or --workers 0 to see the error in this process."
                )
        queue.record_worker_death(held)
        slot.actor = self._new_actor()
        return self._start(slot, spec)

    def _wake_idle(self, running: dict[Any, ActorSlot], queue: Queue) -> None:
        """Give retried items to actors that had run out of work."""
        busy = {id(slot) for slot in running.values()}
        for slot in self.slots:
            if (queue.retries or queue.exhausted) and slot.started and id(slot) not in busy:
                reference = self._next_call(slot, queue)
                if reference is not None:
                    running[reference] = slot

    def _finish(self) -> None:
        for slot in self.slots:
            try:
                self.ray.get(slot.actor.finish.remote())
            except self.ray.exceptions.RayActorError:
                slot.actor = self._new_actor()  # what it had finished is recovered from its journal
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, OpenUniError) else error from None


def _uninstalled_home() -> str | None:
    """The folder from which workers import an openuni that is not installed; it holds nothing else. None: installed."""
    home = Path(openuni.__file__).absolute().parent.parent
    if {"site-packages", "dist-packages"} & set(home.parts):
        return None
    return str(home / "src") if (home / "src" / "openuni").is_dir() else str(home)


class RayWorker:
    """The actor: a `WorkerLoop` in a process of its own."""

    def __init__(self, folder: str, import_roots: list[str]) -> None:
        if Path(folder).is_dir():
            os.chdir(folder)
        sys.path.extend(root for root in import_roots if root not in sys.path)
        self.loop: WorkerLoop | None = None

    def start(self, spec: Spec) -> None:
        """Begin a phase: models are loaded here."""
        import cv2
        import ray

        cv2.setNumThreads(int(os.environ["OPENUNI_THREADS"]))  # torch and others read OMP_NUM_THREADS themselves

        self.loop = WorkerLoop(spec.start("cuda" if ray.get_gpu_ids() else "cpu"))

    def step(self, item: Any, next_item: Any | None) -> ItemOutcome | None:
        """See `Loop.step`."""
        assert self.loop is not None
        return self.loop.step(item, next_item)

    def fail(self, item: Any, error: str) -> ItemOutcome | None:
        """Record an item that killed its workers."""
        assert self.loop is not None
        return self.loop.fail(item, error)

    def flush(self) -> ItemOutcome | None:
        """See `Loop.flush`."""
        assert self.loop is not None
        return self.loop.flush()

    def finish(self) -> None:
        """End the phase; the process stays for the next one."""
        if self.loop is not None:
            loop, self.loop = self.loop, None
            loop.finish()

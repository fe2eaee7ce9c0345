"""Running phases on Ray actors. The only home of Ray in the pipeline, with `ray_worker`.

Actors are processes that may die: the items they held are retried on another worker, one at a time, and recorded as
failed after `MAX_ATTEMPTS`. Ray itself may fail: starting it is retried, and a Ray that is lost is started once more.
"""

import logging
import math
import os
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from openuni.console.logs import verbosity
from openuni.manifests.contracts.discovery import local_import_roots
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.failures import format_error
from openuni.pipeline.runners.ray_worker import RayWorker, Reply, Setup, uninstalled_home
from openuni.pipeline.runners.resources import MAX_ATTEMPTS, Resources, Runner
from openuni.pipeline.worker import ItemOutcome, Spec

MAX_FAILED_STARTS = 10
MAX_RAY_STARTS = 3
CONNECT_TIMEOUT_S = 10.0  # of a cluster's address; Ray itself would wait for minutes
POLL_S = 10.0  # how long to wait for a reply before asking whether Ray is alive
LOST_AFTER_S = 60.0  # without a living node
GCS_LOST_AFTER_S = 15.0  # without its control store; after 60 s Ray would end this process by itself, with exit code 1
NO_NODE = "no node of the Ray cluster is alive"
NO_GCS = "the control store of Ray (gcs_server) does not answer"
PLACEMENT_NOTICE_S = 60.0  # without a first reply of any worker

logger = logging.getLogger(__name__)


class RayLost(Exception):
    """No node of the Ray that was in use is alive, or its control store is gone."""


@dataclass
class ActorSlot:
    """One Ray actor and what it is doing."""

    actor: Any
    in_flight: dict[str, Any] = field(default_factory=dict)  # by key: given to the actor, and not reported yet
    following: Any | None = None  # of these, the one it prefetches
    started: bool = False


@dataclass
class Queue:
    """What is left: new items, retries (one at a time), and exhausted items, which only need their failed row."""

    pending: Iterator[Any]
    on_death: Callable[[list[Any]], list[Any]]
    retries: deque[Any] = field(default_factory=deque)
    exhausted: deque[Any] = field(default_factory=deque)
    attempts: dict[str, int] = field(default_factory=dict)

    def record_worker_death(self, held: list[Any]) -> None:
        """Count a worker's death against the items it held, except those it had finished."""
        for item in self.on_death(held):
            self.attempts[item.key] = self.attempts.get(item.key, 0) + 1
            too_often = self.attempts[item.key] >= MAX_ATTEMPTS
            logger.warning("a worker died with %s in flight (attempt %d)", item.key, self.attempts[item.key])
            (self.exhausted if too_often else self.retries).append(item)


class RayRunner(Runner):
    """Actors that pull items. Frames never travel: an actor gets names, and writes its own parts."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.slots: list[ActorSlot] = []
        self.failed_starts = 0
        self.restarted = False
        self.gcs_seen = self.gcs_asked = 0.0  # when the control store last answered, and when it was last asked

    @cached_property
    def ray(self) -> Any:
        """Ray, started when the first phase has work: a run with nothing left to do does not wait for it."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # CPU workers keep what they see of GPUs
        import ray

        # Ray puts the folder in which it is started first on its workers' path, before all installed packages: a
        # user's tensorflow.py there would be imported. A working_dir would prevent it too, and slow every start.
        self.empty_folder = tempfile.TemporaryDirectory(prefix="openuni-")
        _check_reachable(self.resources.address)
        for attempt in range(1, MAX_RAY_STARTS + 1):
            try:
                with chdir(self.empty_folder.name):
                    self._init(ray)
                return ray
            except Exception as error:  # of many kinds: Ray has no class for "could not start"
                reason = format_error(error)
                ray.shutdown()
                if self.resources.address is not None:
                    raise _cannot_join(self.resources.address, reason) from error
                if attempt == MAX_RAY_STARTS:
                    raise OpenUniError(
                        f"Ray did not start in {MAX_RAY_STARTS} attempts: {reason}. Is the machine overloaded, or /tmp "
                        "full? Try again later, or use --workers 0 to run without Ray."
                    ) from error
                logger.warning("Ray did not start (%s); attempt %d of %d", reason, attempt + 1, MAX_RAY_STARTS)
                os.environ["RAY_raylet_start_wait_time_s"] = str(60 * attempt)  # noqa: SIM112  # as Ray spells it
        raise AssertionError("unreachable")

    def _init(self, ray: Any) -> None:
        local = {
            "address": "local",  # never a cluster that happens to run on this machine
            "num_cpus": self.resources.workers,
            "num_gpus": math.ceil(self.resources.gpus),
            "include_dashboard": False,
        }
        ray.init(
            **({"address": self.resources.address} if self.resources.address else local),
            logging_level=logging.ERROR,
            log_to_driver=False,
        )

    @cached_property
    def actor_type(self) -> Any:
        """The actor class with its share of the machine."""
        threads = str(max(1, (os.cpu_count() or 1) // self.resources.workers))
        environment = {"OMP_NUM_THREADS": threads, "OPENUNI_THREADS": threads}
        home = uninstalled_home()
        if home is not None:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
        return self.ray.remote(RayWorker).options(
            num_cpus=1,
            num_gpus=self.resources.gpus_per_worker,
            max_restarts=0,
            runtime_env={"env_vars": environment},
        )

    def close(self) -> None:
        """Stop all actors, and the local Ray."""
        if "ray" in self.__dict__:
            self.ray.shutdown()
            self.empty_folder.cleanup()
            for name in ("ray", "actor_type"):
                self.__dict__.pop(name, None)
        self.slots = []

    def run(
        self,
        spec: Spec,
        items: Iterable[Any],
        report: Callable[[ItemOutcome], None],
        on_death: Callable[[list[Any]], list[Any]],
    ) -> None:
        """See `Runner.run`. Raises `OpenUniError` if Ray cannot be started, or is lost twice."""
        queue = Queue(iter(items), on_death)
        while True:
            try:
                self._run(spec, queue, report)
                return
            except RayLost as lost:
                held = [item for slot in self.slots for item in slot.in_flight.values()]
                if self.restarted or self.resources.address is not None:
                    raise OpenUniError(
                        f"the connection to Ray was lost: {lost}. Finished items are kept; run the same command again "
                        "to resume, with --workers 0 to run without Ray."
                    ) from lost
                logger.warning("%s; starting Ray again", lost)
                self.restarted = True
                self.close()
                queue.retries.extend(queue.on_death(held))

    def _run(self, spec: Spec, queue: Queue, report: Callable[[ItemOutcome], None]) -> None:
        running: dict[Any, ActorSlot] = {}
        self.failed_starts = 0
        while len(self.slots) < self.resources.workers:
            self.slots.append(ActorSlot(self._new_actor()))
        for slot in self.slots:
            running[self._start(slot, spec)] = slot
        while running:
            slot_ready = self._next_ready(running)
            slot = running.pop(slot_ready)
            reference = self._advance(slot, slot_ready, spec, queue, report)
            if reference is not None:
                running[reference] = slot
            self._wake_idle(running, queue)
        self._finish()

    def _next_ready(self, running: dict[Any, ActorSlot]) -> Any:
        """The next finished call. Raises `RayLost` when none can come any more."""
        waited_since, noted = time.monotonic(), False
        lost_since: float | None = None
        while True:
            ready, _ = self.ray.wait(list(running), num_returns=1, timeout=POLL_S)
            has_gcs = self._gcs_answers()
            if ready:
                return ready[0]
            if not has_gcs:
                continue  # it could not be asked about nodes
            now = time.monotonic()
            lost_since = None if self._is_alive() else lost_since or now
            if lost_since is not None and now - lost_since >= LOST_AFTER_S:
                raise RayLost(NO_NODE)
            if not noted and now - waited_since > PLACEMENT_NOTICE_S and not any(slot.started for slot in self.slots):
                noted = True
                logger.warning(
                    "no worker has started for %.0f s: %d workers need 1 CPU and %g GPU each, and the cluster has %s",
                    now - waited_since,
                    self.resources.workers,
                    self.resources.gpus_per_worker,
                    {name: amount for name, amount in self.ray.cluster_resources().items() if name in ("CPU", "GPU")},
                )

    def _gcs_answers(self) -> bool:
        """Whether the control store is there; actors go on without it, and their replies still come.

        Raises `RayLost` once it has been gone for `GCS_LOST_AFTER_S`.
        """
        now = time.monotonic()
        if "://" in (self.resources.address or "") or now - self.gcs_asked < POLL_S / 2:
            return self.gcs_seen == self.gcs_asked
        if now - self.gcs_asked > 3 * POLL_S:
            self.gcs_seen = now  # nobody has asked for a while
        self.gcs_asked = now
        host, _, port = self.ray.get_runtime_context().gcs_address.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout=POLL_S / 2):
                self.gcs_seen = now
        except OSError as error:
            if now - self.gcs_seen >= GCS_LOST_AFTER_S:
                raise RayLost(NO_GCS) from error
            self.gcs_seen = min(self.gcs_seen, now - 1e-3)
        return self.gcs_seen == now

    def _is_alive(self) -> bool:
        """Whether any node of the cluster is. Raises `RayLost` if nothing answers."""
        try:
            return any(node["Alive"] for node in self.ray.nodes())
        except Exception as error:  # the control store is gone too
            raise RayLost(format_error(error)) from error

    def _new_actor(self) -> Any:
        return self.actor_type.remote(Setup(str(Path.cwd()), local_import_roots(), verbosity()))

    def _start(self, slot: ActorSlot, spec: Spec) -> Any:
        slot.in_flight, slot.following, slot.started = {}, None, False
        return slot.actor.start.remote(spec)

    def _get(self, reference: Any) -> ItemOutcome | None:
        """The outcome in a reply; its log lines are logged here. Raises an actor's `OpenUniError` as it was."""
        try:
            reply: Reply = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, OpenUniError) else error from None
        for line in reply.lines:
            line.emit()
        return reply.outcome

    def _advance(
        self, slot: ActorSlot, done: Any, spec: Spec, queue: Queue, report: Callable[[ItemOutcome], None]
    ) -> Any | None:
        """Take one finished call of an actor; returns its next call, or None when there is nothing left for it."""
        try:
            outcome = self._get(done)
        except self.ray.exceptions.RayActorError:
            return self._replace(slot, spec, queue)
        if not slot.started:
            slot.started, self.failed_starts = True, 0
        if outcome is not None:
            del slot.in_flight[outcome.key]
            report(outcome)
        return self._next_call(slot, queue)

    def _next_call(self, slot: ActorSlot, queue: Queue) -> Any | None:
        """The slot's next call, or None when nothing is left for it."""
        item, slot.following = slot.following, None
        if item is None:
            if slot.in_flight and (queue.exhausted or queue.retries):
                return slot.actor.flush.remote()  # the next item runs alone
            if queue.exhausted:
                item = queue.exhausted.popleft()
                slot.in_flight[item.key] = item
                error = f"WorkerDied: the worker process died {MAX_ATTEMPTS} times with this clip in flight"
                return slot.actor.fail.remote(item, error)
            # a retried item runs alone: if the worker dies again, that item is the cause
            item = queue.retries.popleft() if queue.retries else next(queue.pending, None)
        if item is None:
            return slot.actor.flush.remote() if slot.in_flight else None
        slot.in_flight[item.key] = item
        if not queue.retries and not queue.exhausted and item.key not in queue.attempts:
            slot.following = next(queue.pending, None)
            if slot.following is not None:
                slot.in_flight[slot.following.key] = slot.following
        return slot.actor.step.remote(item, slot.following)

    def _replace(self, slot: ActorSlot, spec: Spec, queue: Queue) -> Any:
        """The actor died: retry what it held, and start another one."""
        held = list(slot.in_flight.values())
        if not held:
            self.failed_starts += 1
            if not self._is_alive():
                raise RayLost(NO_NODE)
            if self.failed_starts >= MAX_FAILED_STARTS:
                raise OpenUniError(
                    f"{MAX_FAILED_STARTS} workers in a row died while starting. Is there enough memory for the models? "
                    "Use fewer --workers, or --workers 0 to see the error in this process."
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
                self._get(slot.actor.finish.remote())
            except self.ray.exceptions.RayActorError:
                slot.actor = self._new_actor()  # the rows it had finished are recovered from its journal


def _check_reachable(address: str | None) -> None:
    """Raise `OpenUniError` if nothing answers at `HOST:PORT`; other forms of an address are Ray's to check."""
    host, _, port = (address or "").rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S):
            pass
    except OSError as error:
        raise _cannot_join(f"{host}:{port}", str(error)) from error


def _cannot_join(address: str, reason: str) -> OpenUniError:
    return OpenUniError(
        f"cannot join the Ray cluster at {address}: {reason}. Check the address and that `ray status` works there, "
        "or leave --address out to start Ray on this machine."
    )

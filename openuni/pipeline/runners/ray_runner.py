"""Running phases on Ray actors, one pool of them per kind of work. The only home of Ray in the pipeline, with
`ray_session` and `ray_worker`.

Actors are processes that may die: the items they held are retried on another worker, one at a time, and recorded as
failed after `MAX_ATTEMPTS`. A node that dies is not its items' fault. Nodes may come and go during a phase.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from openuni.console.logs import verbosity
from openuni.manifests.contracts.discovery import local_import_roots
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.runners.calls import Answer, Calls
from openuni.pipeline.runners.capacity import Capacity, Node, Shape
from openuni.pipeline.runners.metrics import DriverMetrics
from openuni.pipeline.runners.node_check import NodeReport, NodeRequest, code_version, gpu_memory_gb
from openuni.pipeline.runners.ray_session import POLL_S, RayLost, RaySession
from openuni.pipeline.runners.ray_worker import RayWorker, Reply, Setup, uninstalled_home
from openuni.pipeline.runners.resources import Pool, Resources, Runner
from openuni.pipeline.runners.work_queue import ActorSlot, PoolRun, Queue, close_followers

MAX_FAILED_STARTS = 10
LOST_AFTER_S = 60.0  # without a living node
NO_NODE = "no node of the Ray cluster is alive"
PLACEMENT_NOTICE_S = 60.0  # without a first reply of any worker
PLACEMENT_TIMEOUT_S = 600.0  # for nodes that others use; `Resources.placement_timeout_s` for nodes that are to come

logger = logging.getLogger(__name__)


class RayRunner(Runner):
    """Actors that pull items. Frames never travel: an actor gets names, and writes its own parts."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.session = RaySession(resources)
        self.idle: list[ActorSlot] = []  # from an earlier phase: starting a process takes seconds
        self.restarted = False
        self.grown_at = time.monotonic()  # when free nodes were last looked for
        self.drains_seen_at = time.monotonic()  # when draining nodes were last looked for

    @property
    def ray(self) -> Any:
        """Ray's module, connected."""
        return self.session.ray

    def capacity(self) -> Capacity:
        """See `Runner.capacity`. Starts Ray, or joins the cluster."""
        return self.session.capacity()

    def gpu_memory_gb(self) -> float | None:
        """See `Runner.gpu_memory_gb`. Of a cluster: as its nodes answered `check_nodes`."""
        if self.resources.address is None:
            return min(gpu_memory_gb(), default=None) if self.capacity().gpus else None
        return self.session.smallest_gpu_gb

    def check_nodes(self, request_of: Callable[[Node], NodeRequest]) -> dict[Node, NodeReport | str]:
        """What every node of the cluster answers to its request, or why it did not."""
        return self.session.check_nodes(request_of)

    def close(self) -> None:
        """Stop all actors, and the local Ray."""
        self.session.close()
        self.idle = []

    def run_pools(self, pools: Sequence[Pool]) -> None:
        """See `Runner.run_pools`. Raises `OpenUniError` if Ray cannot be started, or is lost twice."""
        runs = [PoolRun(pool, Queue(iter(pool.items), pool.on_death)) for pool in pools]
        while True:
            try:
                self._run(runs)
                return
            except RayLost as lost:
                if self.restarted or self.resources.address is not None:
                    raise OpenUniError(
                        f"the connection to Ray was lost: {lost}. Finished items are kept; run the same command again "
                        "to resume, with --workers 0 to run without Ray."
                    ) from lost
                logger.warning("%s; starting Ray again", lost)
                self.restarted = True
                self.close()
                for run in runs:
                    held = [item for slot in run.slots for item in slot.in_flight.values()]
                    run.slots = []
                    run.queue.retries.extend(run.queue.on_death(held))

    def _run(self, runs: list[PoolRun]) -> None:
        calls = Calls()
        self._take_slots(runs)
        for run in runs:
            run.failed_starts = run.calls = 0
            for slot in run.slots:
                calls.add(run, slot, self._start(slot, run))
        self.metrics = DriverMetrics()
        self.metrics.tell((run.state() for run in runs), at_once=True)
        while calls:
            for answer in self._next_answers(calls, runs):
                calls.add(answer.run, answer.slot, self._advance(answer))
            close_followers(runs)
            for run in runs:
                self._wake_idle(calls, run)
                self._release_unplaced(calls, run)
            self._release_done(runs)
            self._grow(calls, runs)
            self._leave_draining(calls, runs)
            self.metrics.tell(run.state() for run in runs)
        self.metrics.tell((run.state() for run in runs), at_once=True)
        self._finish(runs)

    def _take_slots(self, runs: list[PoolRun]) -> None:
        """Actors for every pool: those of the phase before where they have the shape, else new ones.

        Those with a GPU first: the others could take the cores of the nodes that have one.
        """
        for run in sorted(runs, key=lambda run: -run.pool.size.shape.gpus):
            workers, shape = run.pool.size
            run.slots = [slot for slot in self.idle if slot.shape == shape][:workers]
            taken = {id(slot) for slot in run.slots}
            self.idle = [slot for slot in self.idle if id(slot) not in taken]
            new = workers - len(run.slots)
            if new and shape.gpus:
                self._kill_idle()
            run.slots += [self._new_slot(shape) for _ in range(new)]
            if new and shape.gpus and len(runs) > 1:
                calls = [slot.actor.ready.remote() for slot in run.slots]
                self.ray.wait(calls, num_returns=len(calls), timeout=PLACEMENT_NOTICE_S)
        self._kill_idle()  # the others may wait for what these hold

    def _kill_idle(self) -> None:
        for slot in self.idle:
            self.kill_actor(slot.actor)
        self.idle = []

    def _release_done(self, runs: list[PoolRun]) -> None:
        """End the workers of a pool that is done while another one waits for room."""
        for run in runs:
            if run.slots and run.is_done and any(other is not run and other.wants_room for other in runs):
                self._finish([run])
                self._kill_idle()

    def _next_answers(self, calls: Calls, runs: list[PoolRun]) -> list[Answer]:
        """All finished calls, at least one unless a pool waits for items. Raises `RayLost` when none can come."""
        waited_since, noted = time.monotonic(), False
        lost_since: float | None = None
        while True:
            answers = calls.take(POLL_S)
            has_gcs = self.session.control_store_answers()
            if answers:
                return answers
            if not has_gcs:
                continue  # it could not be asked about nodes
            now = time.monotonic()
            lost_since = None if self.session.living_nodes() else lost_since or now
            if lost_since is not None and now - lost_since >= LOST_AFTER_S:
                raise RayLost(NO_NODE)
            if any(run.queue.waiting for run in runs):
                return []
            self._grow(calls, runs)
            stuck = [run for run in runs if not run.pool.follows and not run.queue.is_empty and run.is_unplaced]
            if not stuck:
                continue
            timeout_s = max(PLACEMENT_TIMEOUT_S, self.resources.placement_timeout_s or 0.0)
            if now - waited_since > timeout_s:
                raise OpenUniError(
                    f"no worker could be placed in {now - waited_since:.0f} s: {self._wanted(stuck)}. Free some nodes, "
                    "or ask for fewer --workers or --gpus. Finished items are kept; run the same command to resume."
                )
            if not noted and now - waited_since > PLACEMENT_NOTICE_S:
                noted = True
                logger.warning("no worker has started for %.0f s: %s", now - waited_since, self._wanted(stuck))

    def _wanted(self, runs: list[PoolRun]) -> str:
        asked = " and ".join(f"{run.pool.size.workers} x {run.pool.size.shape}" for run in runs)
        free = {name: amount for name, amount in self.ray.available_resources().items() if name in ("CPU", "GPU")}
        return f"workers need {asked}; the cluster has {self.capacity()}, of which {free or 'nothing'} is free"

    def _new_slot(self, shape: Shape) -> ActorSlot:
        return ActorSlot(self.new_actor(shape), shape)

    def new_actor(self, shape: Shape) -> Any:
        """A worker that is being placed on a node."""
        threads = str(max(1, int(shape.cpus)))
        gpus = f"{shape.gpus:g}"  # for libraries that reserve a share of a GPU's memory
        environment = {"OMP_NUM_THREADS": threads, "OPENUNI_THREADS": threads, "OPENUNI_GPUS": gpus}
        home = uninstalled_home()
        if home is not None:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
        actor_type = self.ray.remote(RayWorker).options(
            num_cpus=shape.cpus,
            num_gpus=shape.gpus,
            max_restarts=0,
            runtime_env={"env_vars": environment},
        )
        return actor_type.remote(Setup(str(Path.cwd()), local_import_roots(), verbosity(), code_version()))

    def kill_actor(self, actor: Any) -> None:
        """End a worker."""
        self.ray.kill(actor)

    def _start(self, slot: ActorSlot, run: PoolRun) -> Any:
        slot.in_flight, slot.following = {}, None
        slot.started = slot.retiring = slot.finishing = False
        return slot.actor.start.remote(run.pool.spec, run.pool.name)

    def _get(self, call: Future[Any]) -> Reply:
        """A reply; its log lines are logged here. Raises an actor's `OpenUniError` as it was."""
        try:
            reply: Reply = call.result()
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, OpenUniError) else error from None
        for line in reply.lines:
            line.emit()
        return reply

    def _advance(self, answer: Answer) -> Any | None:
        """Take one finished call of an actor; returns its next call, or None when there is nothing left for it."""
        run, slot, call = answer
        try:
            reply = self._get(call)
        except self.ray.exceptions.RayError as error:
            if not _is_loss(error):
                raise
            self.kill_actor(slot.actor)
            return self._replace(run, slot, preempted=bool(getattr(error, "preempted", False)))
        if reply.refusal is not None:
            self._drop(run, slot, reply.host, reply.refusal)
            return None
        if not slot.started:
            slot.started, slot.node_id, run.failed_starts = True, reply.node_id, 0
        for outcome in reply.outcomes:
            del slot.in_flight[outcome.key]
            run.pool.report(outcome)
        if slot.finishing:
            return self._move(run, slot)
        return self._next_call(slot, run.queue)

    def _next_call(self, slot: ActorSlot, queue: Queue) -> Any | None:
        """The slot's next call, or None when nothing is left for it."""
        item, slot.following = slot.following, None
        if slot.retiring:
            if item is not None:  # read ahead at most
                queue.returned.append(slot.in_flight.pop(item.key))
            slot.finishing = not slot.in_flight
            return slot.actor.finish.remote() if slot.finishing else slot.actor.flush.remote()
        if item is None:
            if slot.in_flight and (queue.exhausted or queue.retries):
                return slot.actor.flush.remote()  # the next item runs alone
            if queue.exhausted:
                item = queue.exhausted.popleft()
                slot.in_flight[item.key] = item
                return slot.actor.fail.remote(item, queue.death_text(item))
            # a retried item runs alone: if the worker dies again, that item is the cause
            item = queue.retries.popleft() if queue.retries else queue.next_new()
        if item is None:
            return slot.actor.flush.remote() if slot.in_flight else None
        slot.in_flight[item.key] = item
        if not queue.retries and not queue.exhausted and item.key not in queue.attempts:
            slot.following = queue.next_new()
            if slot.following is not None:
                slot.in_flight[slot.following.key] = slot.following
        return slot.actor.step.remote(item, slot.following)

    def _replace(self, run: PoolRun, slot: ActorSlot, *, preempted: bool) -> Any:
        """The actor died: retry what it held, and start another one."""
        held = list(slot.in_flight.values())
        living = self.session.living_nodes()
        if not held:
            run.failed_starts += 1
            if not living:
                raise RayLost(NO_NODE)
            if run.failed_starts >= MAX_FAILED_STARTS:
                raise OpenUniError(
                    f"{MAX_FAILED_STARTS} workers in a row died while starting. Is there enough memory for the models? "
                    "Use fewer --workers, or --workers 0 to see the error in this process."
                )
        with_node = preempted or (bool(slot.node_id) and slot.node_id not in living)
        run.queue.record_worker_death(held, with_node=with_node)
        self.metrics.worker_died(run.state(), slot.node_id)
        slot.actor, slot.node_id = self.new_actor(slot.shape), ""
        return self._start(slot, run)

    def _leave_draining(self, calls: Calls, runs: list[PoolRun]) -> None:
        """Workers on nodes that are about to go get no new items, and seal the rows that they have finished."""
        now = time.monotonic()
        if now - self.drains_seen_at < POLL_S / 2:
            return
        self.drains_seen_at = now
        draining = self.session.draining_nodes()
        for run in runs if draining else ():
            for slot in run.slots:
                if slot.started and not slot.retiring and slot.node_id in draining:
                    logger.info("a worker on node %s is moved: the node is draining", slot.node_id)
                    slot.retiring = True
                    if slot.call is None:
                        calls.add(run, slot, self._next_call(slot, run.queue))

    def _move(self, run: PoolRun, slot: ActorSlot) -> Any | None:
        """The worker has sealed its rows: start another one, if there is anything left for it."""
        self.kill_actor(slot.actor)
        if run.queue.is_empty:
            run.slots.remove(slot)
            return None
        slot.actor, slot.node_id = self.new_actor(slot.shape), ""
        return self._start(slot, run)

    def _drop(self, run: PoolRun, slot: ActorSlot, host: str, refusal: OpenUniError) -> None:
        """A worker cannot take part: go on without it, or raise what it said if it was the last one."""
        run.slots.remove(slot)
        self.kill_actor(slot.actor)
        if not run.slots:
            if run.pool.follows:  # the phase of its own that comes later will say so
                run.queue.close()
                return
            raise refusal
        logger.warning("a worker on %s cannot take part: %s; going on with %d workers", host, refusal, len(run.slots))

    def _wake_idle(self, calls: Calls, run: PoolRun) -> None:
        """Give retried and new items to actors that had run out of work."""
        if run.queue.is_empty or run.calls == len(run.slots):
            return
        for slot in run.slots:
            if slot.started and slot.call is None:
                reference = self._next_call(slot, run.queue)
                if reference is None:
                    return  # there is nothing yet
                calls.add(run, slot, reference)

    def _release_unplaced(self, calls: Calls, run: PoolRun) -> None:
        """Do not wait for workers that no node has room for once their pool has nothing left to hand out."""
        if not run.queue.is_empty or not (run.pool.follows or any(slot.started for slot in run.slots)):
            return
        if any(slot.in_flight for slot in run.slots):
            return  # a worker may still die, and its items come back
        for slot in [slot for slot in run.slots if not slot.started]:
            calls.drop(run, slot)
            self.kill_actor(slot.actor)
            run.slots.remove(slot)

    def _grow(self, calls: Calls, runs: list[PoolRun]) -> None:
        """Use nodes that have joined, if the number of workers was left open."""
        if self.resources.workers is not None:
            return
        now = time.monotonic()
        if now - self.grown_at < POLL_S:
            return
        self.grown_at = now
        free = self.ray.available_resources()
        for run in sorted(runs, key=lambda run: -run.pool.size.shape.gpus):
            shape = run.pool.size.shape
            if run.queue.is_empty or not all(slot.started for slot in run.slots):
                continue
            while free.get("CPU", 0.0) >= shape.cpus and free.get("GPU", 0.0) >= shape.gpus:
                free["CPU"] = free.get("CPU", 0.0) - shape.cpus
                free["GPU"] = free.get("GPU", 0.0) - shape.gpus
                slot = self._new_slot(shape)
                run.slots.append(slot)
                calls.add(run, slot, self._start(slot, run))

    def _finish(self, runs: list[PoolRun]) -> None:
        slots = [slot for run in runs for slot in run.slots]
        calls = [(slot, slot.actor.finish.remote()) for slot in slots]
        for slot, call in calls:
            try:
                self._get(call.future())
                self.idle.append(slot)
            except self.ray.exceptions.RayError as error:
                if not _is_loss(error):
                    raise
                self.kill_actor(slot.actor)  # the rows it had finished are recovered from its journal
        for run in runs:
            run.slots = []


def _is_loss(error: Exception) -> bool:
    """Whether an error of Ray means that the worker or its reply is lost: it died, alone or with its node, was killed
    for lack of memory, or its reply did not fit into a full object store. Else it is an exception of our own code.
    """
    from ray.exceptions import RayError, RayTaskError

    return not isinstance(error, RayTaskError) or isinstance(error.cause, RayError)

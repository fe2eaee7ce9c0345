"""The connection to Ray: starting one on this machine, or joining a cluster.

Ray itself may fail: starting it is retried, and the session tells whether any node is still alive.
"""

import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import chdir, suppress
from functools import cached_property
from typing import Any

from openuni.manifests.errors import OpenUniError
from openuni.pipeline.failures import format_error
from openuni.pipeline.runners.capacity import Capacity, Node
from openuni.pipeline.runners.node_check import (
    ANSWER_TIMEOUT_S,
    NodeReport,
    NodeRequest,
    check_node,
    clock_difference,
    read_clock,
)
from openuni.pipeline.runners.ray_worker import uninstalled_home
from openuni.pipeline.runners.resources import Resources

MAX_STARTS = 3
POLL_S = 10.0  # how long to wait for a reply of a worker before asking whether Ray is alive
GCS_LOST_AFTER_S = 15.0  # without its control store; after 60 s Ray would end this process by itself, with exit code 1
GCS_MARGIN_S = 15.0  # before Ray would: where a call of Ray waits for the control store and cannot be interrupted
NO_GCS = "the control store of Ray (gcs_server) does not answer"
CLOCK_TIMEOUT_S = 20.0
CONNECT_TIMEOUT_S = 10.0  # of a cluster's address; Ray itself would wait for minutes

logger = logging.getLogger(__name__)


class RayLost(Exception):
    """No node of the Ray that was in use is alive, or its control store is gone."""


class RaySession:
    """Ray, started when the first phase has work: a run with nothing left to do does not wait for it."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.smallest_gpu_gb: float | None = None  # as the nodes have answered
        self.watch: ControlStoreWatch | None = None
        self.gcs_seen = self.gcs_asked = 0.0  # when the control store last answered, and when it was last asked

    @property
    def is_open(self) -> bool:
        """Whether Ray was started or joined."""
        return "ray" in self.__dict__

    @cached_property
    def ray(self) -> Any:
        """The module, connected. Raises `OpenUniError` if Ray does not start, or the cluster cannot be joined."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # CPU workers keep what they see of GPUs
        import ray

        # Ray puts the folder in which it is started first on its workers' path, before all installed packages: a
        # user's tensorflow.py there would be imported. A working_dir would prevent it too, and slow every start.
        self.empty_folder = tempfile.TemporaryDirectory(prefix="openuni-")
        _check_reachable(self.resources.address)
        for attempt in range(1, MAX_STARTS + 1):
            try:
                with chdir(self.empty_folder.name):
                    self._init(ray)
                self._watch_control_store(ray)
                return ray
            except Exception as error:  # of many kinds: Ray has no class for "could not start"
                reason = format_error(error)
                ray.shutdown()
                if self.resources.address is not None:
                    raise _cannot_join(self.resources.address, reason) from error
                if attempt == MAX_STARTS:
                    raise OpenUniError(
                        f"Ray did not start in {MAX_STARTS} attempts: {reason}. Is the machine overloaded, or /tmp "
                        "full? Try again later, or use --workers 0 to run without Ray."
                    ) from error
                logger.warning("Ray did not start (%s); attempt %d of %d", reason, attempt + 1, MAX_STARTS)
                os.environ["RAY_raylet_start_wait_time_s"] = str(60 * attempt)  # noqa: SIM112  # as Ray spells it
        raise AssertionError("unreachable")

    def _init(self, ray: Any) -> None:
        local = {
            "address": "local",  # never a cluster that happens to run on this machine
            # more workers than cores are the user's choice on their own machine
            "num_cpus": max(os.cpu_count() or 1, self.resources.workers or 0),
            "include_dashboard": False,
        }
        ray.init(
            **({"address": self.resources.address} if self.resources.address else local),
            logging_level=logging.ERROR,
            log_to_driver=False,
        )

    def _watch_control_store(self, ray: Any) -> None:
        if "://" not in (self.resources.address or ""):
            host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
            ray_ends_after_s = float(os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s", "60"))  # noqa: SIM112
            fatal_after_s = max(GCS_LOST_AFTER_S, ray_ends_after_s - GCS_MARGIN_S)
            self.watch = ControlStoreWatch(host, int(port), fatal_after_s)
            self.watch.start()

    def capacity(self) -> Capacity:
        """The living nodes and what they have in all, whether it is in use or not."""
        nodes = [
            Node(
                name=str(node["NodeManagerHostname"]),
                cpus=float(node["Resources"].get("CPU", 0.0)),
                gpus=float(node["Resources"].get("GPU", 0.0)),
                node_id=str(node["NodeID"]),
            )
            for node in self.ray.nodes()
            if node["Alive"]
        ]
        return Capacity(tuple(sorted(nodes, key=lambda node: (node.name, node.node_id))))

    def check_nodes(self, request_of: Callable[[Node], NodeRequest]) -> dict[Node, NodeReport | str]:
        """What every node answers to its request, or why it did not."""
        calls = {node: self._task_on(node, check_node).remote(request_of(node)) for node in self.capacity().nodes}
        done, _ = self.ray.wait(list(calls.values()), num_returns=len(calls), timeout=ANSWER_TIMEOUT_S)
        clocks = self._clocks([node for node, call in calls.items() if call in done])  # a process waits there already
        answers: dict[Node, NodeReport | str] = {}
        for node, call in calls.items():
            try:
                answers[node] = self.ray.get(call, timeout=0)._replace(clock_s=clocks.get(node))
            except self.ray.exceptions.GetTimeoutError:
                answers[node] = f"did not answer within {ANSWER_TIMEOUT_S:.0f} s"
            except Exception as error:  # noqa: BLE001  # openuni is not installed there, or its import fails in any way
                answers[node] = f"cannot run openuni: {_cause(error)}"
        memory_gb = [gb for report in answers.values() if isinstance(report, NodeReport) for gb in report.gpu_memory_gb]
        self.smallest_gpu_gb = min(memory_gb, default=None)
        return answers

    def _task_on(self, node: Node, function: Callable[..., Any]) -> Any:
        """The function as a task of Ray that runs on the node, beside whatever else runs there."""
        strategy = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        home = uninstalled_home()
        return self.ray.remote(function).options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=strategy(node.node_id, soft=False),
            runtime_env={"env_vars": {"PYTHONPATH": home}} if home is not None else {},
        )

    def _clocks(self, nodes: Iterable[Node]) -> dict[Node, float]:
        """How far the clocks of nodes are ahead of this one's at least, seconds; of those that answer."""
        asked_s = time.time()
        calls = {self._task_on(node, read_clock).remote(): node for node in nodes}
        found: dict[Node, float] = {}
        waiting, deadline = list(calls), time.monotonic() + CLOCK_TIMEOUT_S
        while waiting and time.monotonic() < deadline:
            ready, waiting = self.ray.wait(waiting, num_returns=1, timeout=1.0)
            for call in ready:
                with suppress(Exception):  # the check itself says why
                    found[calls[call]] = clock_difference(self.ray.get(call), asked_s, time.time())
        return found

    def living_nodes(self) -> set[str]:
        """Ids of the nodes that are alive. Raises `RayLost` if nothing answers."""
        try:
            return {str(node["NodeID"]) for node in self.ray.nodes() if node["Alive"]}
        except Exception as error:  # the control store is gone too
            raise RayLost(format_error(error)) from error

    def draining_nodes(self) -> set[str]:
        """Ids of the nodes that are about to go, such as spot instances with a notice; none through a Ray client."""
        if "://" in (self.resources.address or ""):
            return set()
        try:
            return set(self.ray._private.state.state.get_draining_nodes())
        except Exception as error:  # noqa: BLE001  # the control store may be gone, or Ray has moved the function
            logger.info("cannot ask which nodes are draining: %s", format_error(error))
            return set()

    def control_store_answers(self) -> bool:
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

    def close(self) -> None:
        """Disconnect; ends the Ray that was started here, with its workers."""
        if self.is_open:
            if self.watch is not None:
                self.watch.stop.set()
            self.ray.shutdown()
            self.empty_folder.cleanup()
            del self.__dict__["ray"]


class ControlStoreWatch(threading.Thread):
    """Ends this process once the control store has been gone for `fatal_after_s`, and says so.

    Calls that start or end an actor wait for the control store, without a time limit, until Ray ends the process by
    itself, with exit code 1.
    """

    def __init__(self, host: str, port: int, fatal_after_s: float, end: Callable[[], object] = lambda: os._exit(2)):
        super().__init__(name="control store", daemon=True)
        self.host, self.port, self.fatal_after_s, self.end = host, port, fatal_after_s, end
        self.stop = threading.Event()

    def run(self) -> None:
        """Ask until `stop` is set."""
        seen, wait_s = time.monotonic(), min(POLL_S, self.fatal_after_s) / 2
        while not self.stop.wait(wait_s):
            try:
                with socket.create_connection((self.host, self.port), timeout=wait_s):
                    seen = time.monotonic()
            except OSError:
                if time.monotonic() - seen < self.fatal_after_s or self.stop.is_set():
                    continue
                sys.stderr.write(
                    f"openuni: the connection to Ray was lost: {NO_GCS}. Finished items are kept; run the same command "
                    "again to resume, with --workers 0 to run without Ray.\n"
                )
                sys.stderr.flush()
                self.end()
                return


def _cause(error: Exception) -> str:
    """The last line of a remote error, which names what is missing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]


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

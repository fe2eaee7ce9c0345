"""The Ray actor: a `WorkerLoop` in a process of its own, whose log lines travel to the driver with its replies."""

import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import openuni
from openuni.console.logs import LEVELS, Collector, Line, openuni_logger
from openuni.console.usage import GpuShare
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.runners.gpu_usage import gpu_sampler
from openuni.pipeline.runners.metrics import WorkerMetrics
from openuni.pipeline.runners.node_check import code_version
from openuni.pipeline.worker import ItemOutcome, Spec, WorkerLoop


class Setup(NamedTuple):
    """What a worker process takes over from the driver."""

    folder: str  # current folder: relative paths in options start there
    import_roots: list[str]  # folders of operators that a recipe named by dotted paths
    verbosity: int  # how often -v was given
    code: str  # `code_version()` of the driver


class Reply(NamedTuple):
    """The answer to a call of an actor."""

    outcomes: tuple[ItemOutcome, ...]
    lines: tuple[Line, ...]  # logged since the last reply
    node_id: str  # Ray's, of the worker's node
    host: str
    refusal: OpenUniError | None = None  # why the worker cannot take part


def uninstalled_home() -> str | None:
    """The folder to import openuni from if it is not installed; it contains nothing else. None if installed."""
    home = Path(openuni.__file__).absolute().parent.parent
    if {"site-packages", "dist-packages"} & set(home.parts):
        return None
    return str(home / "src") if (home / "src" / "openuni").is_dir() else str(home)


class RayWorker:
    """The actor. Its methods are those of `WorkerLoop`, with a `Reply`."""

    def __init__(self, setup: Setup) -> None:
        if Path(setup.folder).is_dir():
            os.chdir(setup.folder)
        sys.path.extend(root for root in setup.import_roots if root not in sys.path)
        self.logs = Collector(f"worker-{os.getpid()}")
        logger = openuni_logger()
        logger.addHandler(self.logs)
        logger.setLevel(min(LEVELS[1], LEVELS[min(setup.verbosity, len(LEVELS) - 1)]))
        self.loop: WorkerLoop | None = None
        self.node_id = ""
        self.code = setup.code
        self.metrics: WorkerMetrics | None = None
        self.sampling = ExitStack()
        self.gpu_shares: Callable[[], dict[str, GpuShare]] = dict

    def ready(self) -> None:
        """Answers once the actor has been placed."""

    def start(self, spec: Spec, pool: str) -> Reply:
        """Start a phase: load models, open writers. `pool`: its name."""
        import cv2
        import ray

        self.node_id = ray.get_runtime_context().get_node_id()
        if code_version() != self.code:
            text = f"{platform.node()} has openuni {code_version()}, the driver has {self.code}"
            return self._reply()._replace(refusal=OpenUniError(f"{text}. Install the same version on all nodes."))
        cv2.setNumThreads(int(os.environ["OPENUNI_THREADS"]))  # torch and others read OMP_NUM_THREADS themselves
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        try:
            worker = spec.start(device)
        except OpenUniError as error:  # what this node lacks others may have
            return self._reply()._replace(refusal=error)
        self.loop = WorkerLoop(worker)
        self.metrics = WorkerMetrics(pool)
        self.gpu_shares = self.sampling.enter_context(gpu_sampler(device))
        return self._reply()

    def step(self, item: Any, next_item: Any | None) -> Reply:
        """See `WorkerLoop.step`."""
        assert self.loop is not None
        return self._reply(self.loop.step(item, next_item))

    def fail(self, item: Any, error: str) -> Reply:
        """Record an item that killed its workers."""
        assert self.loop is not None
        return self._reply(self.loop.fail(item, error))

    def flush(self) -> Reply:
        """See `WorkerLoop.flush`."""
        assert self.loop is not None
        return self._reply(self.loop.flush())

    def finish(self) -> Reply:
        """Finish the phase; the process stays for the next one."""
        if self.loop is not None:
            loop, self.loop = self.loop, None
            self.sampling.close()
            loop.finish()
        return self._reply()

    def _reply(self, outcomes: Sequence[ItemOutcome] = ()) -> Reply:
        return Reply(tuple(map(self._for_driver, outcomes)), self.logs.take(), self.node_id, platform.node())

    def _for_driver(self, outcome: ItemOutcome) -> ItemOutcome:
        # exceptions of any library do not travel; their tracebacks do
        failures = tuple(one._replace(exception=None) for one in outcome.failures)
        usage = outcome.usage._replace(node_id=self.node_id, gpus=self.gpu_shares())
        found = outcome._replace(failures=failures, usage=usage)
        assert self.metrics is not None
        self.metrics.record(found)
        return found

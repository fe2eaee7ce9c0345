"""The Ray actor: a `WorkerLoop` in a process of its own, whose log lines travel to the driver with its replies."""

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import openuni
from openuni.console.logs import LEVELS, Collector, Line, openuni_logger
from openuni.manifests.errors import OpenUniError
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

    def ready(self) -> None:
        """Answers once the actor has been placed."""

    def start(self, spec: Spec) -> Reply:
        """Start a phase: load models, open writers."""
        import cv2
        import ray

        self.node_id = ray.get_runtime_context().get_node_id()
        if code_version() != self.code:
            text = f"{platform.node()} has openuni {code_version()}, the driver has {self.code}"
            return self._reply()._replace(refusal=OpenUniError(f"{text}. Install the same version on all nodes."))
        cv2.setNumThreads(int(os.environ["OPENUNI_THREADS"]))  # torch and others read OMP_NUM_THREADS themselves
        try:
            worker = spec.start("cuda" if ray.get_gpu_ids() else "cpu")
        except OpenUniError as error:  # what this node lacks others may have
            return self._reply()._replace(refusal=error)
        self.loop = WorkerLoop(worker)
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
            loop.finish()
        return self._reply()

    def _reply(self, outcomes: Sequence[ItemOutcome] = ()) -> Reply:
        # exceptions of any library do not travel; their tracebacks do
        plain = tuple(
            outcome._replace(failures=tuple(one._replace(exception=None) for one in outcome.failures))
            for outcome in outcomes
        )
        return Reply(plain, self.logs.take(), self.node_id, platform.node())

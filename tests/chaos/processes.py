"""`openuni ...` in a forked process that has imported everything already: a try costs as much as its work."""

import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import NamedTuple

from tests.chaos.disturbance import Disturbance, run_child

TIMEOUT_S = 180.0
IMPORTS = [
    "openuni.api", "openuni.cli.main", "openuni.training.loop.trainer", "openuni.inference.generate", "openuni.unified",
    "openuni.training.models.unityvideo", "openuni.training.codecs.dct", "openuni.training.codecs.bytes",
    "torch._dynamo", "torch.utils.tensorboard", "diffusers", "s3fs", "duckdb", "pyarrow.dataset", "av", "cv2",
    "openuni.annotators.dis", "openuni.filters.motion", "openuni.filters.perceptual_hash", "openuni.filters.luminance",
    "openuni.dedup.deduplicators.duplicates", "openuni.manifests.modalities.skeleton", "tests.chaos.disturbance",
]  # fmt: skip


class Ended(NamedTuple):
    """How a process ended: exit code (negative: killed by this signal), what it printed, its last counted change.

    `changes`: number of changes to its files, of them `writes` writes.
    """

    code: int
    out: str
    err: str
    changes: int
    place: str
    seconds: float
    writes: int = 0


class Process:
    """A command that has been started."""

    def __init__(
        self, arguments: list[str], folders: list[Path], disturbance: Disturbance | None = None, **environment: str
    ) -> None:
        self.reports = Path(tempfile.mkdtemp(prefix="chaos-reports-"))
        self.started = time.monotonic()
        self.disturbance = disturbance or Disturbance()
        given = (
            arguments,
            [str(folder) for folder in folders],
            self.disturbance,
            str(self.reports / "report"),
            dict(os.environ) | environment,
        )
        self.process = _context().Process(target=run_child, args=given)
        self.process.start()

    @property
    def pid(self) -> int:
        """Its process number."""
        assert self.process.pid is not None
        return self.process.pid

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.is_alive()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, unless it has ended."""
        if self.process.exitcode is None:
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for the end. Raises `AssertionError` if it does not come."""
        if self.disturbance.kind.endswith("at a time"):
            self.process.join(self.disturbance.seconds)
            self.kill()
        self.process.join(TIMEOUT_S)
        if self.process.exitcode is None:
            self.kill()
            raise AssertionError(f"did not end within {TIMEOUT_S:.0f} s: {self._read('err')}")
        counts, _, place = self._read("count").partition("\n")
        changes, writes = map(int, counts.split() or (0, 0))
        ended = Ended(
            self.process.exitcode, self._read("out"), self._read("err"), changes, place.strip(),
            time.monotonic() - self.started, writes,
        )  # fmt: skip
        shutil.rmtree(self.reports)
        return ended

    def _read(self, name: str) -> str:
        path = self.reports / f"report.{name}"
        return path.read_text() if path.exists() else ""


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")  # forks a process that has imported all and has one thread
    context.set_forkserver_preload(IMPORTS)
    return context


def start_server() -> None:
    """Import everything now, not within the first try."""
    process = _context().Process(target=print, args=("",), kwargs={"end": ""})
    process.start()
    process.join(120)

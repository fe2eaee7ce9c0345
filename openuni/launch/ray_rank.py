"""The part of a training on Ray that runs in its processes: the same function as under torchrun, and a channel."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from openuni.console.logs import LEVELS, Collector, Line, openuni_logger
from openuni.manifests.errors import OpenUniError, QuietError
from openuni.manifests.graceful_shutdown import ShutdownEvent, Terminated
from openuni.pipeline.runners.node_check import code_version

POLL_S = 1.0  # how often a rank asks whether to stop
LOCK_WAIT_S = 60.0  # a process of the attempt before may still be ending


class Job(NamedTuple):
    """A training for all of its processes."""

    recipe: dict[str, Any]  # `TrainingRecipe.to_dict`
    corpus: str  # folder or URL
    out: str  # absolute
    folder: str  # current folder of the driver: relative paths in the recipe start there
    verbosity: int  # how often -v was given
    code: str  # `code_version()` of the driver
    use_gpu: bool


class Attempt(NamedTuple):
    """The processes that train together, until one of them dies."""

    number: int  # from 1
    world: int
    host: str  # of rank 0


class Outcome(NamedTuple):
    """How a training ended, other than by the death of a process."""

    error: str = ""  # message of an error that a restart would meet again
    signal: int = 0  # that has stopped it
    steps: int = 0


class News(NamedTuple):
    """What the processes have told since the driver last asked."""

    attempts: tuple[Attempt, ...]
    rows: tuple[dict[str, Any], ...]  # of the log
    lines: tuple[Line, ...]  # of the logger, from rank 0
    silent_polls: int  # calls of `take` since a process last asked


class Channel:
    """Ray actor between the driver and rank 0. It is the driver's: it ends with it."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.told_attempts = 0
        self.rows: list[dict[str, Any]] = []
        self.lines: list[Line] = []
        self.stop_signal = 0
        self.outcome: Outcome | None = None
        self.silent_polls = 0

    def begin(self, world: int, host: str) -> Outcome | None:
        """A process group has started. Returns the outcome if the training has ended before."""
        self.silent_polls = 0
        if self.stop_signal:
            self.end(Outcome(signal=self.stop_signal))
        if self.outcome is None:
            self.attempts.append(Attempt(len(self.attempts) + 1, world, host))
        return self.outcome

    def tell(self, rows: list[dict[str, Any]], lines: list[Line]) -> None:
        """Rows of the log and lines of the logger."""
        self.rows += rows
        self.lines += lines

    def asked_to_stop(self) -> int:
        """The signal that the driver got; 0: none."""
        self.silent_polls = 0
        return self.stop_signal

    def end(self, outcome: Outcome) -> None:
        """Record how the training ended; the first one counts."""
        self.outcome = self.outcome or outcome

    def ended(self) -> Outcome | None:
        """How the training ended."""
        return self.outcome

    def stop(self, number: int) -> None:
        """Ask the processes to finish the step, save and end."""
        self.stop_signal = number

    def take(self) -> News:
        """All that is new."""
        self.silent_polls += 1
        news = News(tuple(self.attempts[self.told_attempts :]), tuple(self.rows), tuple(self.lines), self.silent_polls)
        self.told_attempts, self.rows, self.lines = len(self.attempts), [], []
        return news


def train_rank(config: dict[str, Any]) -> None:
    """Train as one of the processes. Ray Train calls it in each, with the variables that torchrun sets.

    `config`: a `Job` as a dict, and the `Channel`. Returns if the training has ended, be it by an error that a restart
    would meet again, which the channel then has. Raises what a restart may get over: a lost process, an unknown error.
    """
    import ray

    channel = config["channel"]
    job = Job(**config["job"])
    is_first = os.environ["RANK"] == "0"
    if is_first:
        ended = ray.get(channel.begin.remote(int(os.environ["WORLD_SIZE"]), ray.util.get_node_ip_address()))
    else:
        ended = ray.get(channel.ended.remote())
    if ended is not None:
        return
    try:
        steps = _train(job, channel)
    except KeyboardInterrupt as stopped:
        outcome = Outcome(signal=stopped.number if isinstance(stopped, Terminated) else signal.SIGINT.value)
    except QuietError:
        return  # rank 0 tells it
    except OpenUniError as error:
        from openuni.training.loop.ranks import LostRank

        if isinstance(error, LostRank):
            raise
        outcome = Outcome(error=str(error))
    else:
        outcome = Outcome(steps=steps)
    ray.get(channel.end.remote(outcome))


def _train(job: Job, channel: Any) -> int:
    """Returns the number of finished steps."""
    if code_version() != job.code:
        raise OpenUniError(
            f"openuni is {code_version()} on node {os.uname().nodename}, but {job.code} at the driver. Install the "
            "same version on all nodes."
        )
    if Path(job.folder).is_dir():
        os.chdir(job.folder)
    from openuni.training.loop.trainer import train
    from openuni.training.recipe import TrainingRecipe

    logs = Collector(f"rank-{os.environ['RANK']}")
    stop = ShutdownEvent()

    def tell(rows: list[dict[str, Any]]) -> None:
        lines = list(logs.take())
        if rows or lines:
            channel.tell.remote(rows, lines)

    recipe = TrainingRecipe.from_dict(job.recipe, quiet=True)
    with _collected(logs, job.verbosity), _listening(channel, stop, tell):
        run = train(
            recipe,
            job.corpus,
            job.out,
            progress=lambda row: tell([row]),
            device="cuda" if job.use_gpu else "cpu",
            stop=stop,
            lock_wait_s=LOCK_WAIT_S,
        )
    return run.checkpoint.step


@contextmanager
def _collected(logs: Collector, verbosity: int) -> Iterator[None]:
    logger = openuni_logger()
    logger.addHandler(logs)
    logger.setLevel(LEVELS[min(verbosity, len(LEVELS) - 1)])
    try:
        yield
    finally:
        logger.removeHandler(logs)


@contextmanager
def _listening(channel: Any, stop: ShutdownEvent, tell: Any) -> Iterator[None]:
    """Context in which rank 0 passes the driver's signal to `stop`, and log lines to the driver."""
    import ray

    done = threading.Event()

    def listen() -> None:
        while not done.wait(POLL_S):
            try:
                number = ray.get(channel.asked_to_stop.remote())
            except ray.exceptions.RayError:  # the driver is gone, and this process soon
                return
            tell([])
            if number and not stop.is_set():
                stop.number = number
                stop.set()

    if os.environ["RANK"] != "0":
        yield
        return
    thread = threading.Thread(target=listen, name="openuni-channel", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        tell([])

"""`openuni train --ray`: a training as processes of Ray Train, restarted from its last checkpoint when one dies.

Ray places the processes, sets the variables that torchrun would set, and starts them again after a death. Everything
else is the training's own (`train/loop`): the run folder, on a file system that all nodes see, holds the only
checkpoints, and a restart finds the last one there. Ray's storage gets none.
"""

import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openuni.console.logs import verbosity
from openuni.launch.ray_rank import Channel, Job, News, Outcome, train_rank
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.manifests.graceful_shutdown import ShutdownEvent, graceful_shutdown
from openuni.pipeline.runners.capacity import Capacity, Node
from openuni.pipeline.runners.node_check import NodeReport, NodeRequest, code_version
from openuni.pipeline.runners.ray_session import RaySession
from openuni.pipeline.runners.ray_worker import uninstalled_home
from openuni.pipeline.runners.resources import Resources
from openuni.training.loop.guards import kept_text
from openuni.training.loop.ranks import TIMEOUT, LostRank
from openuni.training.loop.trainer import STOP_SIGNALS
from openuni.training.recipe import TrainingRecipe
from openuni.training.run import Run

if TYPE_CHECKING:
    from openuni.manifests.corpus.corpus import Corpus

Progress = Callable[[dict[str, Any]], None]
STATE_FOLDER = ".ray-train"  # in the run folder, while the training runs: Ray's own records, a few kB
TAKE_EVERY_S = 0.5
SILENCE_S = 120.0  # without a process that trains: then a warning
STOP_WAIT_S = 30.0  # without a process that trains, after Ctrl-C

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayOptions:
    """Where to train on Ray.

    `workers`: processes, one per GPU, or on CPUs one per core; None: all GPUs of the cluster, or one process.
    `min_workers`: with fewer nodes a restart continues with at least so many; None: as `workers`. `max_restarts`: after
    the death of a process or node. `address`: of a running cluster; None starts Ray on this machine.
    """

    workers: int | None = None
    min_workers: int | None = None
    max_restarts: int = 3
    address: str | None = None


def train_on_ray(
    recipe: TrainingRecipe,
    corpus: "Corpus",
    out: Path,
    options: RayOptions,
    progress: Progress | None = None,
) -> Run:
    """Train, or resume the run in `out`, on processes of Ray. Returns the run.

    `progress`: called in this process with the rows of the log. Ctrl-C, SIGTERM and SIGHUP finish the step, save and
    raise KeyboardInterrupt; a second Ctrl-C ends the processes at once. Raises `OpenUniError` as
    `openuni.training.loop.trainer.train` does; also if the cluster cannot be joined or is too small, and if processes
    died more than `max_restarts` times.
    """
    _check_options(options, recipe)
    _require_ray_train()
    session = RaySession(Resources(options.workers, None, options.address))
    try:
        use_gpu, workers = _placement(session.capacity(), options, recipe)
        _check_nodes(session, corpus)
        folder = out.expanduser().absolute()
        job = Job(
            recipe.to_dict(), corpus.store.url, str(folder), str(Path.cwd()), verbosity(), code_version(), use_gpu
        )
        with _state_folder(folder) as state:
            _launch(session, job, workers, options, state, progress)
    finally:
        session.close()
    return Run.open(out)


def _require_ray_train() -> None:
    try:
        import ray.train.torch  # noqa: F401  # whether it can be imported
    except ImportError as error:
        raise MissingRequirement(
            f"--ray needs Ray Train: {error}. Install it with: pip install 'openuni[cluster]'"
        ) from error


def _check_options(options: RayOptions, recipe: TrainingRecipe) -> None:
    most = recipe.optimizer.batch_size
    if options.workers is not None and options.workers > most:
        raise OpenUniError(
            f"--workers {options.workers}: optimizer.batch_size = {most} cannot be divided among {options.workers} "
            f"processes: each needs a sample in every step. Pass at most {most}, or raise the batch size."
        )
    if options.min_workers is not None and options.workers is None:
        raise OpenUniError("--min-workers needs --workers, which it must not exceed")
    if options.min_workers is not None and options.min_workers > (options.workers or 0):
        raise OpenUniError(f"--min-workers {options.min_workers}: must be at most --workers {options.workers}")
    if "://" in (options.address or ""):
        raise OpenUniError(
            f"--address {options.address}: a training cannot run through a Ray client. Run the command on a node of "
            "the cluster with --address auto, or pass HOST:PORT of its head."
        )


def _placement(capacity: Capacity, options: RayOptions, recipe: TrainingRecipe) -> tuple[bool, int]:
    """Whether every process gets a GPU, and their number. Raises `OpenUniError` if they do not fit."""
    use_gpu = capacity.gpus >= 1
    unit = "GPU" if use_gpu else "CPU"
    room = sum(int(min(node.gpus, node.cpus) if use_gpu else node.cpus) for node in capacity.nodes)
    workers = options.workers or (min(room, recipe.optimizer.batch_size) if use_gpu else 1)
    if workers > room or not room:
        raise OpenUniError(
            f"{workers} processes with a {unit}{' and a CPU' if use_gpu else ''} each do not fit: the cluster has "
            f"{capacity}. Pass --workers {max(room, 1)} or fewer, or add nodes."
        )
    return use_gpu, workers


def _check_nodes(session: RaySession, corpus: "Corpus") -> None:
    """Raise `MissingRequirement` unless all nodes of a cluster that was joined have the code and see the corpus."""
    if session.resources.address is None:
        return
    request = NodeRequest(code_version(), str(Path.cwd()), (), False, (), corpus.store.url)

    def request_of(_: Node) -> NodeRequest:
        return request

    problems = []
    for node, answer in session.check_nodes(request_of).items():
        found = answer.problems if isinstance(answer, NodeReport) else (answer,)
        problems += [f"  node {node.name}: {problem}" for problem in found]
    if problems:
        lines = "\n".join(problems)
        raise MissingRequirement(f"the Ray cluster at {session.resources.address} cannot run this training:\n{lines}")


@contextmanager
def _state_folder(out: Path) -> Iterator[Path]:
    """A folder of Ray Train's own within the run folder, which all nodes see; removed at the end."""
    state = out / STATE_FOLDER / uuid.uuid4().hex
    is_new = not out.exists()
    state.mkdir(parents=True)
    try:
        yield state
    finally:
        shutil.rmtree(state, ignore_errors=True)
        for folder in (state.parent, out) if is_new else (state.parent,):
            try:
                folder.rmdir()
            except OSError:  # there is a run in it, or another training
                break


def _launch(
    session: RaySession, job: Job, workers: int, options: RayOptions, state: Path, progress: Progress | None
) -> None:
    ray = session.ray
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    channel = ray.remote(Channel).options(num_cpus=0, scheduling_strategy=here).remote()
    trainer = _trainer(job, workers, options, state, channel)
    failure: list[BaseException] = []

    def fit() -> None:  # in a thread: the main one handles signals
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001  # raised by `_raise_failure`
            failure.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    follower = Follower(options.max_restarts, progress)
    with graceful_shutdown("this step", STOP_SIGNALS) as interrupted:
        thread.start()
        try:
            while thread.is_alive():
                thread.join(TAKE_EVERY_S)
                news = ray.get(channel.take.remote())
                follower.follow(news)
                if interrupted.is_set():
                    ray.get(channel.stop.remote(interrupted.number))
                    if news.silent_polls * TAKE_EVERY_S > STOP_WAIT_S:  # no process is there to stop
                        raise interrupted.interrupt()
            follower.follow(ray.get(channel.take.remote()))
            outcome: Outcome | None = ray.get(channel.ended.remote())
        except ray.exceptions.RayError as error:
            raise OpenUniError(
                f"the connection to Ray was lost: {error}. {kept_text(Path(job.out))} Rerun the command to resume."
            ) from error
        _raise_failure(outcome, failure, interrupted, job, options)


def _trainer(job: Job, workers: int, options: RayOptions, state: Path, channel: Any) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    configs: Any = ScalingConfig, RunConfig  # their types are those of an older version of Ray Train
    scaling, running = configs
    environment = {"OMP_WAIT_POLICY": "PASSIVE"}
    home = uninstalled_home()
    if home is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    return TorchTrainer(
        train_rank,
        train_loop_config={"job": job._asdict(), "channel": channel},
        # numbers and JSON go over gloo on the CPU, tensors of the model over NCCL (`train/loop/ranks.py`)
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if job.use_gpu else "gloo", timeout_s=int(TIMEOUT.total_seconds())
        ),
        scaling_config=scaling(
            num_workers=(options.min_workers, workers) if options.min_workers is not None else workers,
            use_gpu=job.use_gpu,
            resources_per_worker={"CPU": 1, "GPU": 1} if job.use_gpu else {"CPU": 1},
        ),
        run_config=running(
            name=state.name,
            storage_path=str(state.parent),
            failure_config=FailureConfig(max_failures=options.max_restarts),
            worker_runtime_env={"env_vars": environment},
        ),
    )


class Follower:
    """Shows in this process what the processes of a training tell."""

    def __init__(self, max_restarts: int, progress: Progress | None) -> None:
        self.max_restarts, self.progress = max_restarts, progress
        self.is_warned = False

    def follow(self, news: News) -> None:
        """Show it."""
        for line in news.lines:
            line.emit()
        for attempt in news.attempts:
            if attempt.number > 1:
                logger.warning(
                    "a process of the training has ended; started again, number of processes: %d (restart %d of %d)",
                    attempt.world,
                    attempt.number - 1,
                    self.max_restarts,
                )
        for row in news.rows:
            if self.progress:
                self.progress(row)
        is_silent = news.silent_polls * TAKE_EVERY_S > SILENCE_S
        if is_silent and not self.is_warned:
            logger.warning(
                "no process of the training has answered for %.0f s: the cluster may lack nodes for them, or they may "
                "be loading. `ray status` shows what is waiting.",
                SILENCE_S,
            )
        self.is_warned = is_silent


def _raise_failure(
    outcome: Outcome | None, failure: list[BaseException], interrupted: ShutdownEvent, job: Job, options: RayOptions
) -> None:
    """Raise how the training ended, unless it is finished."""
    if outcome is not None and outcome.signal:
        interrupted.number = outcome.signal
        raise interrupted.interrupt()
    if outcome is not None and outcome.error:
        raise OpenUniError(outcome.error)
    if outcome is not None:
        return
    causes = [_unwrapped(cause) for error in failure for cause in _causes(error)]
    kept = kept_text(Path(job.out))
    known = next((cause for cause in causes if isinstance(cause, OSError | MemoryError)), None)
    if known is not None:
        raise known
    unknown = next((cause for cause in causes if not _is_death(cause)), None)
    if unknown is not None:
        raise unknown
    reason = f": {' '.join(str(causes[0]).split())[:300]}" if causes else ""
    raise OpenUniError(
        f"processes of the training died, and {options.max_restarts} restarts did not help{reason}. {kept} Look for "
        "the reason in Ray's logs (out of memory, a lost node), then rerun the command to resume."
    )


def _causes(error: BaseException) -> list[BaseException]:
    """What went wrong by rank, as Ray Train tells it."""
    return list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "controller_failure", error)]


def _unwrapped(error: BaseException) -> BaseException:
    """The error of ours within those of Ray."""
    for name in ("_base_exc", "health_check_failure", "cause"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return _unwrapped(inner)
    return error


def _is_death(error: BaseException) -> bool:
    """Whether it says that a process or node is gone."""
    return isinstance(error, LostRank) or type(error).__module__.startswith("ray.")

"""What the driver of a run costs on a cluster of 64 nodes with 8 GPUs each, over a corpus of a million clips.

    python -m tests.benchmarks.cluster [--minutes 5] [--speeds 4,8] [--work FOLDER] [--profile FILE]

The pipeline, its plans and `RayRunner` are as they are, with real calls of real Ray actors. The cluster is simulated:
a few actor processes each host many virtual workers, which sleep as long as an operator takes, fail for one clip in a
thousand, and write rows without maps. GPU workers take 3.6 s per clip (1,000 clips per hour and GPU), CPU workers as
long as keeps up with them. Measured after a warm-up: the share of their time that workers were busy, CPU time and
resident memory of the driver. Then a resume of the same corpus, and runs at greater speeds, where the driver saturates.
"""

import argparse
import asyncio
import cProfile
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from openuni.config.recipe import CorpusRecipe
from openuni.console.progress import Reporter
from openuni.manifests.contracts.schema import producer_schema
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import operator_group
from openuni.manifests.storage.lock import lock
from openuni.pipeline.failures import Failure
from openuni.pipeline.pipeline import Pipeline
from openuni.pipeline.runners.capacity import Capacity, Node, Shape
from openuni.pipeline.runners.ray_runner import RayRunner
from openuni.pipeline.runners.ray_worker import Reply
from openuni.pipeline.runners.resources import Resources
from openuni.pipeline.worker import ItemOutcome
from tests.benchmarks import manifests

ROOT = Path(__file__).parents[2]
NODES, GPUS_PER_NODE, CPUS_PER_NODE = 64, 8, 64.0
CLIPS_PER_HOUR = 1000  # of one GPU
FAILED = 0.001
HOSTS = 2  # actor processes
WARM_UP = 1.5  # times the time that a clip takes on a CPU worker, the slowest
SAMPLE_S = 5.0
GOAL_BUSY, GOAL_CORES, GOAL_MB, GOAL_PLAN_S = 0.95, 1.0, 2000.0, 60.0
RECIPE = manifests.RECIPE | {
    "annotators": {"tests.operators.on_gpu": {}, "normals_from_depth": {"depth": "supplied.depth"}}
}
TRACEBACK = "Traceback (most recent call last):\n" + '  File "openuni/operator.py", line 1, in run\n    raise\n' * 20


# ---------------------------------------------------------------------- the cluster


@dataclasses.dataclass
class Virtual:
    """One virtual worker."""

    spec: Any = None
    seconds: float = 0.0  # that a clip takes on average
    pending: ItemOutcome | None = None  # written behind
    ready_at: float = 0.0  # when it could have begun the next clip


class Host:
    """An actor that plays many workers at once."""

    def __init__(self, seconds: dict[bool, float]) -> None:
        self.seconds = seconds  # by whether the worker has a GPU
        self.workers: dict[int, Virtual] = defaultdict(Virtual)
        self.writers: dict[str, Any] = {}
        self.clocks = {True: [0.0, 0.0, 0.0], False: [0.0, 0.0, 0.0]}  # by the same: seconds of work, of waiting, steps
        self.random = random.Random(0)

    async def call(self, method: str, number: int, *arguments: Any) -> Reply | None:
        """A method of `RayWorker`, of one of the workers."""
        worker = self.workers[number]
        outcome = None
        if method == "start":
            worker.spec = arguments[0]
            worker.seconds = self.seconds[_has_gpu(worker.spec)]
        elif method == "step":
            outcome = await self._step(worker, arguments[0])
        elif method == "flush":
            outcome, worker.pending = worker.pending, None
        elif method == "finish":
            for writer in self.writers.values():
                writer.finish()
        outcomes = () if outcome is None else (outcome,)
        return Reply(outcomes, (), f"node-{number % NODES}", f"host-{number % NODES}")

    async def take_clocks(self) -> dict[bool, list[float]]:
        """Seconds of work, of waiting for the driver, and steps since they were last asked for."""
        clocks, self.clocks = self.clocks, {True: [0.0, 0.0, 0.0], False: [0.0, 0.0, 0.0]}
        return clocks

    async def _step(self, worker: Virtual, item: Any) -> ItemOutcome | None:
        now, clock = time.perf_counter(), self.clocks[_has_gpu(worker.spec)]
        seconds = worker.seconds * self.random.uniform(0.5, 1.5)
        await asyncio.sleep(seconds)
        if worker.ready_at:
            clock[1] += now - worker.ready_at
            clock[0] += seconds
            clock[2] += 1
        failed = self.random.random() < FAILED
        for name in item.todo:
            self._write(worker.spec, name, item.clip.clip_id, failed=failed)
        outcome, worker.pending = worker.pending, _outcome(item, failed=failed)
        worker.ready_at = time.perf_counter()
        return outcome

    def _write(self, spec: Any, name: str, clip_id: str, *, failed: bool) -> None:
        if name not in self.writers:
            operator = spec.operators[name]
            group, schema = operator_group(operator.kind, name), producer_schema(type(operator))
            self.writers[name] = Corpus.open(spec.corpus_url).writer(group, schema, spec.versions[name])
        status, error = ("failed", "ClipError: simulated") if failed else ("ok", None)
        row = {"status": status, "error": error, "version": spec.versions[name], "ms": 1.0}
        self.writers[name].commit({"clip_id": clip_id, name: row})


def _has_gpu(spec: Any) -> bool:
    return any(operator.gpus for operator in spec.operators.values())


def _outcome(item: Any, *, failed: bool) -> ItemOutcome:
    if not failed:
        return ItemOutcome(item.key, "ok", "", 1)
    error = "ClipError: simulated"
    return ItemOutcome(item.key, "failed", error, 1, failures=(Failure(item.key, item.todo[0], error, TRACEBACK),))


class Method(NamedTuple):
    """A method of a virtual worker, as the runner calls it."""

    host: Any
    name: str
    number: int

    def remote(self, *arguments: Any) -> Any:
        """See `ray.remote`."""
        return self.host.call.remote(self.name, self.number, *arguments)


class Handle(NamedTuple):
    """A virtual worker, as the runner holds it."""

    host: Any
    number: int

    def __getattr__(self, name: str) -> Method:
        return Method(self.host, name, self.number)


class SimulatedCluster(RayRunner):
    """The runner, on a cluster whose workers are virtual."""

    def __init__(self, seconds: dict[bool, float]) -> None:
        super().__init__(Resources(workers=None, gpus=None))
        self.seconds, self.hosts, self.made = seconds, list[Any](), 0

    def capacity(self) -> Capacity:
        """Of the cluster that is simulated."""
        return Capacity(tuple(Node(f"node-{n}", CPUS_PER_NODE, GPUS_PER_NODE, f"node-{n}") for n in range(NODES)))

    def new_actor(self, shape: Shape) -> Any:
        """A virtual worker on one of the hosts."""
        while len(self.hosts) < HOSTS:
            environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
            options = {"num_cpus": 1, "max_concurrency": 10_000, "runtime_env": environment}
            self.hosts.append(self.ray.remote(Host).options(**options).remote(self.seconds))
        self.made += 1
        return Handle(self.hosts[self.made % HOSTS], self.made)

    def kill_actor(self, actor: Any) -> None:
        """A virtual worker needs no end."""


# ---------------------------------------------------------------------- the driver


class Enough(Exception):
    """Ends a run that has been measured."""


class Watch(Reporter):
    """Samples the driver, and ends the run after a while."""

    def __init__(self, runner: SimulatedCluster, warm_up_s: float, seconds: float) -> None:
        super().__init__(quiet=True)
        self.runner, self.warm_up_s, self.seconds = runner, warm_up_s, seconds
        self.began = time.perf_counter()
        self.first_item_s = 0.0
        self.samples: list[tuple[float, float, int, float]] = []  # wall s, CPU s, outcomes, resident MB
        self.clocks: list[Any] = []

    def outcomes(self) -> int:
        """Items done so far."""
        return sum(phase.done for phase in self.phases)

    def sample(self) -> None:
        """Until the run is to end."""
        while not self.outcomes():
            time.sleep(0.1)
        self.first_item_s = time.perf_counter() - self.began
        time.sleep(self.warm_up_s)
        ray = self.runner.ray
        ray.get([host.take_clocks.remote() for host in self.runner.hosts])
        started = time.perf_counter()
        while True:
            now = time.perf_counter()
            self.samples.append((now - started, time.process_time(), self.outcomes(), _resident_mb()))
            if now - started >= self.seconds:
                break
            time.sleep(SAMPLE_S)
        self.clocks = ray.get([host.take_clocks.remote() for host in self.runner.hosts])


def _resident_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1000


def steady(folder: str, speed: float, seconds: float, profile: str) -> dict[str, Any]:
    """Run until there is enough to tell; what it cost."""
    gpu_s = 3600 / CLIPS_PER_HOUR / speed
    runner = SimulatedCluster({True: gpu_s, False: gpu_s})
    workers = {True: NODES * GPUS_PER_NODE, False: 0}
    small = runner.capacity().without(Shape(4.0, 1.0), workers[True])
    workers[False] = small.fits(Shape())
    runner.seconds[False] = gpu_s * workers[False] / workers[True]  # as many clips in all
    watch = Watch(runner, WARM_UP * runner.seconds[False], seconds)
    pipeline = Pipeline(CorpusRecipe.parse(RECIPE), Corpus.open(folder), runner, watch)
    sampler = threading.Thread(target=watch.sample, daemon=True)
    report = pipeline._reporting

    def reporting(*given: Any) -> Any:
        inner = report(*given)

        def end(outcome: ItemOutcome) -> None:
            inner(outcome)
            if watch.clocks:
                raise Enough

        return end

    pipeline._reporting = reporting  # type: ignore[method-assign, assignment]
    sampler.start()
    profiler = cProfile.Profile()
    try:
        with lock(pipeline.corpus.store):
            if profile:
                profiler.enable()
            pipeline.run([])
    except Enough:
        pass
    finally:
        profiler.disable()
        runner.close()
    if profile:
        profiler.dump_stats(profile)
    totals = {gpu: [sum(clock[gpu][n] for clock in watch.clocks) for n in range(3)] for gpu in (True, False)}
    (began_s, cpu_0, done_0, mb_0), (ended_s, cpu_1, done_1, mb_1) = watch.samples[0], watch.samples[-1]
    wall = ended_s - began_s
    return {
        "plan_s": watch.first_item_s,
        "workers": workers,
        "clips_per_s": (done_1 - done_0) / wall,
        "wanted_per_s": sum(workers[gpu] / runner.seconds[gpu] for gpu in workers),
        "busy": [totals[gpu][0] / (totals[gpu][0] + totals[gpu][1]) for gpu in (True, False)],
        "waited_ms": [1000 * totals[gpu][1] / totals[gpu][2] for gpu in (True, False)],
        "cores": (cpu_1 - cpu_0) / wall,
        "resident_mb": [mb_0, watch.samples[len(watch.samples) // 2][3], mb_1],
        "peak_mb": max(sample[3] for sample in watch.samples),
        "done": watch.outcomes(),
    }


def resume(folder: str) -> dict[str, Any]:
    """From the start of a run to its first items."""
    from openuni.pipeline.runners.resources import Runner

    runner = SimulatedCluster({True: 1.0, False: 1.0})

    class Planner(Runner):
        """Draws the first items."""

        resources = runner.resources

        def capacity(self) -> Capacity:
            """See `Runner.capacity`."""
            return runner.capacity()

        def run_pools(self, pools: Any) -> None:
            """See `Runner.run_pools`."""
            for pool in pools:
                assert next(iter(pool.items)) is not None
            raise Enough

    reporter, started, cpu = Reporter(quiet=True), time.perf_counter(), time.process_time()
    corpus = Corpus.open(folder)
    try:
        with lock(corpus.store):
            Pipeline(CorpusRecipe.parse(RECIPE), corpus, Planner(), reporter).run([])
    except Enough:
        pass
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu_s": cpu_s, "planned": {phase.name: phase.total for phase in reporter.phases}}


# ---------------------------------------------------------------------- the measurement


def view(corpus: Path, folder: Path) -> Path:
    """A corpus of links to the files of another one: what a run writes or moves stays here."""
    out = folder / "corpus"
    for path in corpus.rglob("*"):
        target = out / path.relative_to(corpus)
        if path.suffix in (".parquet", ".tar"):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    (out / "corpus.json").write_bytes((corpus / "corpus.json").read_bytes())
    return out


def child(*arguments: str) -> dict[str, Any]:
    """The result of a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.cluster", "--child", *arguments]
    environment = os.environ | {"OPENUNI_FOLLOW_LINKS": "1"}  # see `view`
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stdout}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def show(what: str, found: dict[str, Any]) -> None:
    """One line of the table, and whether the goals are reached."""
    busy, waited = found["busy"], found["waited_ms"]
    rate = f"{found['clips_per_s']:.0f} of {found['wanted_per_s']:.0f} items/s"
    busy_text = f"GPU workers busy {busy[0]:.1%} (waited {waited[0]:.0f} ms), CPU workers {busy[1]:.1%}"
    memory = ", ".join(f"{mb:.0f}" for mb in found["resident_mb"])
    goals = {
        "busy": min(busy) >= GOAL_BUSY,
        "cores": found["cores"] < GOAL_CORES,
        "memory": found["peak_mb"] < GOAL_MB,
        "plan": found["plan_s"] < GOAL_PLAN_S,
    }
    failed = [name for name, reached in goals.items() if not reached]
    verdict = f"NOT REACHED: {', '.join(failed)}" if failed else "reached"
    costs = f"driver {found['cores']:.2f} cores, {memory} MB; first reply after {found['plan_s']:.0f} s"
    print(f"{what}: {rate}; {busy_text}; {costs}  {verdict}", flush=True)


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of steady state at real speed")
    parser.add_argument("--speeds", default="4,8,16", help="times the real speed, for a minute each; empty: none")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, help="the corpus of `tests.benchmarks.manifests` is built or found here")
    parser.add_argument("--profile", default="", help="file for cProfile's figures of the first run's driver")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        what, folder, *rest = given.child
        speed, seconds, *file = rest or ["0", "0"]
        found = resume(folder) if what == "resume" else steady(folder, float(speed), float(seconds), "".join(file))
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as scratch:
        corpus = (given.work or Path(scratch)) / "corpus"
        if not corpus.exists():
            manifests.build(str(corpus), given.rows, 20_000)
        runs = [(1.0, given.minutes * 60, given.profile)] if given.minutes else []
        runs += [(float(speed), 60.0, "") for speed in given.speeds.split(",") if speed]
        for speed, seconds, profile in runs:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                seen = view(corpus, Path(folder))
                found = child("steady", str(seen), str(speed), str(seconds), *([profile] if profile else []))
                show(f"{speed:g} x", found)
                if speed == 1.0:
                    again = child("resume", str(seen))
                    print(f"resume: {again['seconds']:.1f} s, {again['cpu_s']:.1f} s of CPU; {again['planned']}")


if __name__ == "__main__":
    main()

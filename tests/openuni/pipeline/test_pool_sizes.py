"""How many workers of which shape, which operators together, in which order: planned without any cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import ClassVar

import pytest
from rich.console import Console

import openuni
from openuni.config.recipe import CorpusRecipe
from openuni.console.progress import Reporter
from openuni.console.usage import GpuShare, ItemUsage
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.pipeline import Pipeline
from openuni.pipeline.planning.map_sources import MapSource
from openuni.pipeline.planning.passes import plan_passes
from openuni.pipeline.runners.capacity import Capacity, Node, Shape
from openuni.pipeline.runners.gpu_usage import GpuBusy
from openuni.pipeline.runners.in_process_runner import InProcessRunner
from openuni.pipeline.runners.pool_sizes import both_pools, cpu_pool, gpu_pool, workers_sharing_gpu
from openuni.pipeline.runners.resources import Pool, PoolSize, Resources, Runner
from openuni.pipeline.scope import RunScope
from openuni.pipeline.worker import ItemOutcome
from tests.operators.logged import Logged
from tests.raw_clips import write_clips

CPU_NODE, GPU_NODE = Node("c", 4.0), Node("g", 8.0, 2.0)
CLUSTER = Capacity((CPU_NODE, GPU_NODE, GPU_NODE))
EVERYTHING = Resources(None, None, "a")


@dataclass(frozen=True)
class OnGpu(Logged):
    """As the one it is made of, with a GPU."""

    gpus: ClassVar[float] = 0.5


@pytest.mark.parametrize(
    ("node", "shape", "workers"),
    [
        (CPU_NODE, Shape(), 4),
        (CPU_NODE, Shape(3.0), 1),
        (CPU_NODE, Shape(5.0), 0),
        (CPU_NODE, Shape(0.5), 8),
        (CPU_NODE, Shape(1.0, 0.25), 0),
        (GPU_NODE, Shape(1.0, 1.0), 2),
        (GPU_NODE, Shape(1.0, 0.5), 4),
        (GPU_NODE, Shape(1.0, 0.4), 4),  # two per GPU: a share does not span two
        (GPU_NODE, Shape(1.0, 1 / 3), 6),
        (GPU_NODE, Shape(4.0, 0.25), 2),  # bound by CPUs
        (Node("half", 4.0, 0.5), Shape(1.0, 0.25), 2),
        (GPU_NODE, Shape(1.0, 2.0), 1),  # all GPUs of a worker are of one node
        (GPU_NODE, Shape(1.0, 4.0), 0),
        (Node("eight", 16.0, 8.0), Shape(1.0, 3.0), 2),
    ],
)
def test_workers_of_a_shape_that_fit_on_a_node(node: Node, shape: Shape, workers: int):
    assert node.fits(shape) == workers


def test_what_is_left_beside_workers_is_spread_over_the_nodes():
    left = CLUSTER.without(Shape(4.0, 1.0), 3)
    assert [(node.cpus, node.gpus) for node in left.nodes] == [(4.0, 0.0), (0.0, 0.0), (4.0, 1.0)]
    assert CLUSTER.without(Shape(100.0), 3) == CLUSTER


def test_cpu_workers_share_the_cores():
    assert cpu_pool(Resources(None, 0.0, "a"), CLUSTER) == PoolSize(20, Shape(1.0))
    assert cpu_pool(Resources(5, 0.0, "a"), CLUSTER) == PoolSize(5, Shape(4.0))
    assert cpu_pool(Resources(4, 0.0, "a"), CLUSTER) == PoolSize(4, Shape(4.0))  # 5 would fit on one GPU node alone
    assert cpu_pool(Resources(30, 0.0, "a"), CLUSTER) == PoolSize(30, Shape(0.5))
    assert cpu_pool(Resources(0), None).workers == 1


def test_gpu_workers_take_all_gpus_and_leave_cores_to_cpu_workers():
    assert gpu_pool(Resources(None, None, "a"), CLUSTER) == PoolSize(4, Shape(4.0, 1.0))
    assert gpu_pool(Resources(None, None, "a", workers_per_gpu=2), CLUSTER) == PoolSize(8, Shape(2.0, 0.5))
    assert gpu_pool(Resources(None, 0.0, "a"), CLUSTER) == PoolSize(20, Shape(1.0))
    assert both_pools(Resources(None, None, "a"), CLUSTER) == (PoolSize(4, Shape(4.0, 1.0)), PoolSize(4, Shape()))
    assert both_pools(Resources(6, None, "a"), CLUSTER) == (PoolSize(4, Shape(4.0, 1.0)), PoolSize(2, Shape()))
    assert both_pools(Resources(4, None, "a"), CLUSTER) == (PoolSize(4, Shape(4.0, 1.0)), None)
    one = Capacity((Node("m", 16.0, 1.0),))
    assert both_pools(Resources(16, 1.0), one) == (PoolSize(1, Shape(4.0, 1.0)), PoolSize(12, Shape()))


@pytest.mark.parametrize(
    ("resources", "text"),
    [
        (
            Resources(81, 0.0, "a"),
            r"81 workers do not fit: the cluster has 3 nodes with 20 CPUs and 4 GPUs .*c: 4 CPUs",
        ),
        (Resources(None, 5.0, "a"), r"--gpus 5: the cluster has 3 nodes with 20 CPUs and 4 GPUs.*at most --gpus 4"),
        (Resources(None, None, "a", workers_per_gpu=40), r"160 workers of 1 CPU and 0\.025 GPUs each do not fit"),
    ],
)
def test_more_than_there_is_says_what_there_is(resources: Resources, text: str):
    with pytest.raises(OpenUniError, match=text):
        (cpu_pool if resources.gpus == 0.0 else gpu_pool)(resources, CLUSTER)


def test_with_a_placement_timeout_nodes_may_be_yet_to_come():
    waiting = Resources(81, 64.0, "a", placement_timeout_s=60)
    assert cpu_pool(waiting, CLUSTER) == PoolSize(81, Shape(1.0))
    assert gpu_pool(waiting, CLUSTER) == PoolSize(64, Shape(1.0, 1.0))


def planned(
    kinds: dict[str, bool],
    requires: dict[str, tuple[str, ...]],
    shares: dict[str, float],
    resources: Resources = EVERYTHING,
    capacity: Capacity | None = CLUSTER,
) -> list[list[str]]:
    operators = {name: (OnGpu if gpu else Logged)("log") for name, gpu in kinds.items()}
    required = {name: {f"m{n}": MapSource(one, "m") for n, one in enumerate(requires.get(name, ()))} for name in kinds}
    passes = plan_passes(operators, required, resources, capacity, shares)
    return [[" ".join(pool.operators) for pool in pools] for pools in passes]


def test_operators_without_a_gpu_get_workers_of_their_own():
    kinds = {"dis": False, "raft": True, "still": False}
    assert planned(kinds, {}, {}) == [["raft", "dis still"]]
    assert planned(kinds, {}, {}, Resources(None, 0.0, "a")) == [["dis raft still"]]
    assert planned(kinds, {}, {}, Resources(0), None) == [["dis raft still"]]
    assert planned(kinds, {}, {}, Resources(4, None, "a")) == [["dis raft still"]]  # no worker is left for them


def test_operators_that_start_from_maps_stay_with_those_that_make_them():
    kinds = {"depth": True, "normals": False, "dis": False, "smooth": True}
    requires = {"normals": ("depth",), "smooth": ("dis",)}
    assert planned(kinds, requires, {"depth": 0.6}) == [["depth normals dis"], ["smooth"]]
    assert planned(kinds, requires, {}) == [["depth normals dis smooth"]]
    assert planned({"stored": False}, {"stored": ("elsewhere",)}, {}) == [["stored"]]


def test_models_that_do_not_fit_together_follow_each_other():
    kinds = dict.fromkeys(("a", "b", "c", "d"), True)
    shares = {"a": 0.6, "b": 0.6, "c": 0.4, "d": 2.0}
    assert planned(kinds, {}, shares) == [["a c"], ["b"], ["d"]]
    # a map must be there before what starts from it, even where there would be room earlier
    assert planned(kinds, {"c": ("b",)}, shares) == [["a"], ["b c"], ["d"]]
    assert planned(kinds, {}, dict.fromkeys(kinds, 0.25)) == [["a b c d"]]
    halves = Resources(None, None, "a", workers_per_gpu=2)
    assert planned(kinds, {}, dict.fromkeys(kinds, 0.25), halves) == [["a b"], ["c d"]]


@dataclass(frozen=True)
class Spread(Logged):
    """A model that is spread over GPUs."""

    gpus: ClassVar[float] = 1.0
    over: int = 2

    def gpus_per_worker(self) -> float:
        return float(self.over)


def test_a_model_that_is_spread_over_gpus_has_workers_of_its_own():
    operators = {"small": OnGpu(), "large": Spread(), "cpu": Logged()}
    passes = plan_passes(operators, {name: {} for name in operators}, EVERYTHING, CLUSTER, {"small": 0.2, "large": 0.1})
    assert [[(plan.operators, plan.size.workers, plan.size.shape.gpus) for plan in pools] for pools in passes] == [
        [(("small",), 4, 1.0), (("cpu",), 4, 0.0)],
        [(("large",), 2, 2.0)],
    ]
    first = plan_passes({"large": Spread(), "cpu": Logged()}, {"large": {}, "cpu": {}}, EVERYTHING, CLUSTER, {})
    assert [(plan.operators, plan.size.shape.gpus) for plan in first[0]] == [(("large",), 2.0), (("cpu",), 0.0)]


def test_gpus_that_no_node_has_together_are_refused():
    odd = Capacity((Node("a", 8.0, 3.0), Node("b", 8.0, 3.0)))
    assert gpu_pool(EVERYTHING, odd, gpus_per_worker=2.0).workers == 2  # one GPU of each node is left
    with pytest.raises(OpenUniError, match="do not fit"):
        gpu_pool(EVERYTHING, odd, gpus_per_worker=4.0)
    with pytest.raises(OpenUniError, match="spread over 2 GPUs, and the run may use 1"):
        gpu_pool(Resources(None, 1.0, "a"), odd, gpus_per_worker=2.0)


@pytest.mark.parametrize(
    ("busy", "memory_share", "workers"),
    [
        (None, 0.1, 1),  # nothing measured
        (GpuBusy(0.2, 1, 600), None, 1),  # nobody knows whether two fit
        (GpuBusy(0.2, 1, 30), 0.1, 1),  # of half a minute only
        (GpuBusy(0.65, 1, 600), 0.1, 1),  # busy enough
        (GpuBusy(0.55, 1, 600), 0.1, 2),
        (GpuBusy(0.3, 1, 600), 0.1, 3),
        (GpuBusy(0.0, 1, 600), 0.1, 4),  # at most four
        (GpuBusy(0.2, 1, 600), 0.45, 2),  # more do not fit
        (GpuBusy(0.2, 1, 600), 0.6, 1),
        (GpuBusy(0.8, 3, 600), 0.1, 3),  # three keep it busy: it stays at that
        (GpuBusy(0.5, 2, 600), 0.1, 3),
        (GpuBusy(0.8, 3, 600), 0.4, 2),  # on smaller GPUs than those that were measured
        (GpuBusy(0.3, 4, 600), 0.1, 4),
    ],
)
def test_workers_share_a_gpu_that_they_leave_idle_as_far_as_they_fit(busy, memory_share, workers):
    assert workers_sharing_gpu(busy, memory_share) == workers


def test_each_pass_shares_gpus_by_its_own_measurement():
    operators = {name: OnGpu("log") for name in ("a", "b")}
    required = {name: dict[str, MapSource]() for name in operators}
    of = {("a",): 3, ("b",): 1}.get
    shares = {"a": 0.3, "b": 0.9}
    passes = plan_passes(operators, required, EVERYTHING, CLUSTER, shares, lambda names: of(tuple(names)) or 9)
    assert [(pool.operators, pool.size.per_gpu, pool.size.workers) for (pool,) in passes] == [
        (("a",), 3, 12),
        (("b",), 1, 4),
    ]
    given = Resources(None, None, "a", workers_per_gpu=2)  # the user's number stands
    passes = plan_passes({"a": OnGpu("log")}, required, given, CLUSTER, shares, lambda names: 4)
    assert passes[0][0].size.per_gpu == 2


def test_a_run_shows_and_uses_how_many_workers_share_a_gpu(tmp_path):
    """The measurements are given; the cluster is only planned for."""
    (tmp_path / "corpus.toml").write_text('[annotators."tests.operators.on_gpu"]\n')
    corpus = Corpus.create(str(tmp_path / "corpus"))
    shown = StringIO()
    recipe = CorpusRecipe.load(tmp_path / "corpus.toml")

    class OnCluster(InProcessRunner):
        def gpu_memory_gb(self) -> float | None:
            return 80.0

    pipeline = Pipeline(recipe, corpus, OnCluster(), Reporter(Console(file=shown, width=200)))
    version = pipeline.planner.version("tests.operators.on_gpu", recipe.annotators["tests.operators.on_gpu"])
    assert pipeline._sharing("annotator")(["tests.operators.on_gpu"]) == 1
    assert shown.getvalue() == ""
    busy = {"busy": 0.3, "workers_per_gpu": 1, "samples": 600}
    corpus.save_record(gpu_busy={version: busy}, gpu_memory_mb={version: 12_000.0})
    assert pipeline._sharing("annotator")(["tests.operators.on_gpu"]) == 3
    assert "tests.operators.on_gpu: 3 workers per GPU (1 kept it busy for 30% of the time" in shown.getvalue()
    corpus.save_record(gpu_memory_mb={version: 30_000.0})
    assert pipeline._sharing("annotator")(["tests.operators.on_gpu"]) == 2


class MeasuredCluster(Runner):
    """Does nothing, and says that it kept GPUs of 80 GB busy for a third of the time, with 12 GB."""

    resources = EVERYTHING

    def __init__(self) -> None:
        self.sizes: list[PoolSize] = []

    def capacity(self) -> Capacity | None:
        return CLUSTER

    def gpu_memory_gb(self) -> float | None:
        return 80.0

    def run_pools(self, pools: Sequence[Pool]) -> None:
        for pool in pools:
            self.sizes.append(pool.size)
            for item in pool.items:
                usage = ItemUsage("g", "1", operators_s={NAME: 1.0}, gpus={"g": GpuShare(0.3, 100)})
                pool.report(ItemOutcome(item.key, "ok", vram_mb={NAME: 12_000.0}, usage=usage))


NAME = "tests.operators.on_gpu"


def test_what_one_run_measures_the_next_one_uses(tmp_path):
    write_clips(tmp_path / "raw", 2)
    recipe = CorpusRecipe.parse({"annotators": {NAME: {}}})
    corpus = openuni.run(recipe, tmp_path / "raw", out=tmp_path / "out", scope=RunScope(only=("ingest",)))
    runner = MeasuredCluster()
    for _ in range(2):
        with pytest.raises(OpenUniError, match="2 of 2 clips have no row"):
            Pipeline(recipe, corpus, runner, Reporter(quiet=True)).run([])
    assert [(size.workers, size.per_gpu) for size in runner.sizes] == [(4, 1), (12, 3)]
    (measured,) = corpus.record["gpu_busy"].values()
    assert measured["workers_per_gpu"] == 3  # of the second run

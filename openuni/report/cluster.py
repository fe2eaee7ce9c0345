"""Preflight checks of a Ray cluster: what each node lacks for a recipe, and whether the workers fit."""

from collections.abc import Iterator, Sequence

from openuni.config.recipe import CorpusRecipe
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.pipeline.runners.capacity import Capacity, Node
from openuni.pipeline.runners.node_check import NodeReport, NodeRequest, checkpoints_of, node_request
from openuni.pipeline.runners.pool_sizes import cpu_pool, gpu_pool
from openuni.pipeline.runners.ray_runner import RayRunner
from openuni.pipeline.runners.resources import Resources
from openuni.report.doctor import CheckResult


def cluster_checks(
    recipe: CorpusRecipe, runner: RayRunner, sources: Sequence[str] = (), corpus: str = ""
) -> list[CheckResult]:
    """The results of all checks: one per node, and one of the cluster as a whole.

    `sources`: names of videos, of which every node must see the first and the last. `corpus`: URL of the corpus, if it
    exists. Raises `OpenUniError` if the cluster cannot be joined.
    """
    capacity = runner.capacity()
    on_gpus = uses_gpus(recipe, runner.resources, capacity)
    return [*_size(recipe, runner.resources, capacity), *_nodes(recipe, runner, sources, corpus, on_gpus=on_gpus)]


def check_cluster(recipe: CorpusRecipe, address: str, gpus: float | None, corpus: str) -> list[CheckResult]:
    """`cluster_checks` of a cluster that is joined for it. `corpus`: URL or folder, which may not exist yet."""
    runner = RayRunner(Resources(None, gpus, address))
    try:
        return cluster_checks(recipe, runner, (), corpus)
    finally:
        runner.close()


def require_cluster(recipe: CorpusRecipe, runner: RayRunner, sources: Sequence[str], corpus: str) -> None:
    """Raise `MissingRequirement` with all failed checks, if there are any."""
    failed = [result for result in cluster_checks(recipe, runner, sources, corpus) if result.is_blocking]
    if failed:
        raise MissingRequirement(
            "\n".join(
                [
                    f"the Ray cluster at {runner.resources.address} cannot run this recipe:",
                    *(f"  {result.what}: {result.text}" for result in failed),
                ]
            )
        )


def uses_gpus(recipe: CorpusRecipe, resources: Resources, capacity: Capacity) -> bool:
    """Whether parts of the recipe run on GPUs there."""
    wanted = capacity.gpus if resources.gpus is None else resources.gpus
    return bool(wanted) and any(component.gpus for component in recipe.components())


def _size(recipe: CorpusRecipe, resources: Resources, capacity: Capacity) -> Iterator[CheckResult]:
    designed = sorted(component.name() for component in recipe.components() if component.gpus)
    if designed and not capacity.gpus and resources.gpus is None and resources.placement_timeout_s is None:
        text = f"{', '.join(designed)}: designed for a GPU, and the cluster has {capacity}"
        yield CheckResult("missing", "GPU", f"{text}. Add GPU nodes, or pass --gpus 0 to run on CPUs, slowly")
        return
    try:
        size = gpu_pool(resources, capacity) if designed else cpu_pool(resources, capacity)
    except OpenUniError as error:
        yield CheckResult("missing", "workers", str(error))
    else:
        yield CheckResult("ok", "cluster", f"{capacity}; {size.workers} workers of {size.shape} each")


def _nodes(
    recipe: CorpusRecipe, runner: RayRunner, sources: Sequence[str], corpus: str, *, on_gpus: bool
) -> Iterator[CheckResult]:
    components = list(recipe.components())
    everything = node_request(components, sources, corpus)
    light = checkpoints_of([component for component in components if not component.gpus])

    def request_of(node: Node) -> NodeRequest:
        if on_gpus and not node.gpus:  # it gets no GPU worker
            return everything._replace(checkpoints=light, gpu_memory=False)
        return everything._replace(gpu_memory=bool(node.gpus))

    for node, answer in runner.check_nodes(request_of).items():
        if not isinstance(answer, NodeReport):
            yield CheckResult("unavailable", f"node {node.name}", answer)
            continue
        for problem in answer.problems:
            yield CheckResult("unavailable", f"node {node.name}", problem)
        if not answer.problems:
            memory = f", {min(answer.gpu_memory_gb):g} GB per GPU" if answer.gpu_memory_gb else ""
            text = f"{node.cpus:g} CPUs, {node.gpus:g} GPUs{memory}, Python {answer.python}, openuni {answer.version}"
            yield CheckResult("ok", f"node {node.name}", text)

"""Preflight checks of a Ray cluster: what each node has and lacks for a recipe, and whether the workers fit."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from openuni.config.recipe import CorpusRecipe
from openuni.console.text_table import format_columns
from openuni.manifests.errors import MissingRequirement, OpenUniError
from openuni.pipeline.planning.environments import found_environments
from openuni.pipeline.runners.capacity import Capacity, Node
from openuni.pipeline.runners.node_check import (
    NodeReport,
    NodeRequest,
    checkpoints_of,
    differences,
    installed_versions,
    node_request,
)
from openuni.pipeline.runners.pool_sizes import cpu_pool, gpu_pool
from openuni.pipeline.runners.ray_runner import RayRunner
from openuni.pipeline.runners.resources import Resources
from openuni.report.doctor import CheckResult

COLUMNS = ("node", "CPUs", "GPUs", "corpus free", "spool free", "Python", "openuni", "PyAV", "FFmpeg", "clock")


class ClusterReport(NamedTuple):
    """The results of all checks, and what every node answered."""

    checks: list[CheckResult]
    answers: Mapping[Node, NodeReport | str]

    def table(self) -> str:
        """One line per node."""
        return "\n".join(format_columns([COLUMNS, *(_cells(node, answer) for node, answer in self.answers.items())]))

    def nodes_record(self) -> list[dict[str, Any]]:
        """JSON-able facts of every node."""
        return [
            {"node": node.name, "node_id": node.node_id, "cpus": node.cpus, "gpus": node.gpus}
            | ({"error": answer} if isinstance(answer, str) else _facts(answer))
            for node, answer in self.answers.items()
        ]


def survey_cluster(
    recipe: CorpusRecipe, runner: RayRunner, sources: Sequence[str] = (), corpus: str = ""
) -> ClusterReport:
    """Ask all nodes. The checks are one or more per node, and one of the cluster as a whole.

    `sources`: names of videos, of which every node must see the first and the last. `corpus`: URL or folder of the
    corpus, which may not exist yet. Raises `OpenUniError` if the cluster cannot be joined.
    """
    capacity = runner.capacity()
    on_gpus = uses_gpus(recipe, runner.resources, capacity)
    answers = _answers(recipe, runner, sources, corpus, on_gpus=on_gpus)
    return ClusterReport([*_size(recipe, runner.resources, capacity), *_node_checks(answers)], answers)


def check_cluster(recipe: CorpusRecipe, address: str, gpus: float | None, corpus: str) -> ClusterReport:
    """`survey_cluster` of a cluster that is joined for it. `corpus`: URL or folder, which may not exist yet."""
    runner = RayRunner(Resources(None, gpus, address))
    try:
        return survey_cluster(recipe, runner, (), corpus)
    finally:
        runner.close()


def require_cluster(recipe: CorpusRecipe, runner: RayRunner, sources: Sequence[str], corpus: str) -> None:
    """Raise `MissingRequirement` with all failed checks, if there are any."""
    failed = [result for result in survey_cluster(recipe, runner, sources, corpus).checks if result.is_blocking]
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
    if recipe.work.reader == "nvdec" and not capacity.gpus:
        text = f'reader = "nvdec" requires a GPU, and the cluster has {capacity}'
        yield CheckResult("missing", "[work]", f'{text}. Add GPU nodes, or set reader = "pyav"')
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


def _answers(
    recipe: CorpusRecipe, runner: RayRunner, sources: Sequence[str], corpus: str, *, on_gpus: bool
) -> dict[Node, NodeReport | str]:
    components = list(recipe.components())
    environments = found_environments(recipe)
    everything = node_request(components, sources, corpus)._replace(environments=environments)
    on_cpus = [component for component in components if not component.gpus]
    names = {component.name() for component in on_cpus}
    light = everything._replace(
        checkpoints=checkpoints_of(on_cpus),
        environments=tuple(one for one in environments if one[0] in names),
        gpu_memory=False,
    )

    def request_of(node: Node) -> NodeRequest:
        if on_gpus and not node.gpus:  # it gets no GPU worker
            return light
        return everything._replace(gpu_memory=bool(node.gpus))

    return runner.check_nodes(request_of)


def _node_checks(answers: Mapping[Node, NodeReport | str]) -> Iterator[CheckResult]:
    python, versions = platform.python_version(), installed_versions()
    for node, answer in answers.items():
        what = f"node {node.name}"
        if not isinstance(answer, NodeReport):
            yield CheckResult("unavailable", what, answer)
            continue
        for problem in answer.problems:
            yield CheckResult("unavailable", what, problem)
        for difference in differences(answer, python, versions):
            yield CheckResult("note", what, difference)
        if not answer.problems:
            memory = f", {min(answer.gpu_memory_gb):g} GB per GPU" if answer.gpu_memory_gb else ""
            text = f"{node.cpus:g} CPUs, {node.gpus:g} GPUs{memory}, Python {answer.python}, openuni {answer.version}"
            yield CheckResult("ok", what, text)


def _cells(node: Node, answer: NodeReport | str) -> list[str]:
    if isinstance(answer, str):
        return [node.name, f"{node.cpus:g}", f"{node.gpus:g}", *["?"] * (len(COLUMNS) - 3)]
    counts: dict[str, int] = {}
    for name, memory_gb in zip(answer.gpu_names, answer.gpu_memory_gb, strict=True):
        counts[f"{name} {memory_gb:g} GB"] = counts.get(f"{name} {memory_gb:g} GB", 0) + 1
    gpus = ", ".join(f"{count} x {name}" for name, count in counts.items())
    return [
        node.name,
        f"{node.cpus:g}",
        gpus or f"{node.gpus:g}",
        _gib(answer.corpus_free_bytes),
        _gib(answer.spool_free_bytes),
        answer.python,
        answer.version.split(" ")[0],
        answer.versions.get("av", "?"),
        answer.versions.get("ffmpeg", "?"),
        "?" if answer.clock_s is None else f"{answer.clock_s:+.1f} s" if answer.clock_s else "ok",
    ]


def _gib(free_bytes: int | None) -> str:
    return "-" if free_bytes is None else f"{free_bytes / 1024**3:.1f} GiB"


def _facts(report: NodeReport) -> dict[str, Any]:
    """All but the name, which the node has already."""
    return {key: value for key, value in report._asdict().items() if key != "name"}

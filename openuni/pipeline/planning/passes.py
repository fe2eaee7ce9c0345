"""Which operators of a phase share a worker: pools that work at the same time, and passes that follow each other.

Operators that start from one another's maps stay on one worker, so that each clip is decoded once for all of them.
Operators without a GPU get CPU workers of their own where the nodes have room for them; operators whose models do not
fit on one GPU together are spread over passes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from openuni.manifests.contracts.operator import Operator
from openuni.pipeline.planning.map_sources import MapSource
from openuni.pipeline.runners.capacity import Capacity
from openuni.pipeline.runners.pool_sizes import both_pools, cpu_pool, gpu_pool, usable_gpus
from openuni.pipeline.runners.resources import PoolSize, Resources

EPSILON = 1e-6


class PoolPlan(NamedTuple):
    """Operators that run on the same workers, and these workers."""

    operators: tuple[str, ...]
    size: PoolSize


def plan_passes(
    operators: Mapping[str, Operator],
    required: Mapping[str, Mapping[str, MapSource]],
    resources: Resources,
    capacity: Capacity | None,
    gpu_shares: Mapping[str, float],
    sharing: Callable[[Sequence[str]], int] = lambda names: 1,
) -> list[list[PoolPlan]]:
    """The passes of a phase, each a list of pools.

    `operators`: in an order in which they can be made. `required`: the maps that each starts from. `gpu_shares`: by
    operator, the share of one GPU's memory that it takes, where measured; else its `gpus`. `sharing`: how many workers
    of these operators may share a GPU, if `resources` leave it open. Raises `OpenUniError` if the workers that
    `resources` asks for do not fit.
    """
    names = tuple(operators)
    uses_gpu = {name: bool(operators[name].gpus) for name in names}
    if not any(uses_gpu.values()) or capacity is None or not usable_gpus(resources, capacity):
        size = gpu_pool if any(uses_gpu.values()) else cpu_pool
        return [[PoolPlan(names, size(resources, capacity))]]
    on_gpu, on_cpu = _by_kind(names, required, uses_gpu)
    needed = {name: operators[name].gpus_per_worker() for name in on_gpu}
    shares = {name: gpu_shares.get(name, needed[name]) if needed[name] <= 1 else needed[name] for name in on_gpu}
    gpu_passes = _spread(on_gpu, required, shares, 1.0 / resources.per_gpu)

    def sized(members: Sequence[str]) -> Resources:
        return resources if resources.workers_per_gpu else replace(resources, workers_per_gpu=sharing(members))

    def alone(members: tuple[str, ...]) -> PoolSize:
        """The workers of a pass that has the cores to itself."""
        return gpu_pool(sized(members), capacity, gpus_per_worker=_most(needed, members))

    both = both_pools(sized(gpu_passes[0]), capacity, _most(needed, gpu_passes[0])) if on_cpu else None
    if both is not None and both[1] is not None:
        together = [PoolPlan(gpu_passes[0], both[0]), PoolPlan(on_cpu, both[1])]
    else:  # nothing, or no room, beside the GPU workers
        first = tuple(name for name in names if name in gpu_passes[0] or name in on_cpu)
        together = [PoolPlan(first, alone(first))]
    return [together, *([PoolPlan(members, alone(members))] for members in gpu_passes[1:])]


def _most(needed: Mapping[str, float], members: tuple[str, ...]) -> float:
    """GPUs of a worker with these operators."""
    return max(1.0, *(needed.get(name, 0.0) for name in members))


def _by_kind(
    names: tuple[str, ...], required: Mapping[str, Mapping[str, MapSource]], uses_gpu: Mapping[str, bool]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The operators for GPU workers and those for CPU workers; what starts from another's map is of its kind."""
    leader = {name: name for name in names}

    def group(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for name in names:
        for source in required.get(name, {}).values():
            if source.annotator in leader:
                leader[group(name)] = group(source.annotator)
    gpu_groups = {group(name) for name in names if uses_gpu[name]}
    on_gpu = tuple(name for name in names if group(name) in gpu_groups)
    return on_gpu, tuple(name for name in names if name not in on_gpu)


def _spread(
    names: tuple[str, ...], required: Mapping[str, Mapping[str, MapSource]], shares: Mapping[str, float], limit: float
) -> list[tuple[str, ...]]:
    """Passes whose models fit on a GPU together; none before the passes of the maps that it starts from.

    What takes more than a whole GPU gets a pass of its own.
    """
    passes: list[list[str]] = []
    place: dict[str, int] = {}
    for name in names:
        first = max(
            (place[source.annotator] for source in required[name].values() if source.annotator in place), default=0
        )
        room = (
            index
            for index in range(first, len(passes))
            if sum(shares[other] for other in passes[index]) + shares[name] <= limit + EPSILON
        )
        index = next(room, len(passes))
        if index == len(passes):
            passes.append([])
        passes[index].append(name)
        place[name] = index
    return [tuple(members) for members in passes]

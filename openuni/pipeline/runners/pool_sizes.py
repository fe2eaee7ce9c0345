"""How many workers of which shape the pools of a phase get."""

import math

from openuni.manifests.errors import OpenUniError
from openuni.pipeline.runners.capacity import Capacity, Shape
from openuni.pipeline.runners.resources import PoolSize, Resources

IN_PROCESS = PoolSize(1, Shape())
MAX_GPU_WORKER_CPUS = 4.0  # beside a pool of CPU workers, which need cores too


def cpu_pool(resources: Resources, capacity: Capacity | None) -> PoolSize:
    """The pool of a phase that uses no GPU. Raises `OpenUniError` if `workers` do not fit."""
    if capacity is None:
        return IN_PROCESS
    workers = capacity.fits(Shape()) if resources.workers is None else resources.workers
    return _fitting(max(1, workers), 0.0, resources, capacity)


def gpu_pool(
    resources: Resources, capacity: Capacity | None, most_cpus: float = math.inf, gpus_per_worker: float = 1.0
) -> PoolSize:
    """The pool of a phase that uses GPUs, of at most `most_cpus` cores per worker; CPU workers if there is no GPU.

    `gpus_per_worker`: what the largest model needs; above 1, workers do not share GPUs. Raises `OpenUniError` if the
    GPUs asked for are not there, or the workers do not fit.
    """
    gpus = usable_gpus(resources, capacity)
    if capacity is None or not gpus:
        return cpu_pool(resources, capacity)
    if gpus_per_worker > 1 and gpus < gpus_per_worker:
        raise OpenUniError(
            f"a model is spread over {gpus_per_worker:g} GPUs, and the run may use {gpus:g}: "
            f"{_there(resources, capacity)}. Use a smaller tensor_parallel_size, or --gpus {gpus_per_worker:g}."
        )
    if gpus_per_worker > 1:  # all of one node: of a node with fewer, or of a remainder, none are used
        each, workers = gpus_per_worker, int(gpus / gpus_per_worker)
        workers = max(1, min(workers, capacity.fits(Shape(1.0, each)))) if resources.address else workers
    else:
        each = min(1.0, gpus) / resources.workers_per_gpu
        workers = max(1, int(gpus * resources.workers_per_gpu))
    if resources.workers is not None:
        workers = min(workers, resources.workers)
    return _fitting(workers, each, resources, capacity, most_cpus)


def both_pools(
    resources: Resources, capacity: Capacity | None, gpus_per_worker: float = 1.0
) -> tuple[PoolSize, PoolSize | None]:
    """The pools of a phase with operators of both kinds: of GPU workers, and of CPU workers beside them.

    `gpus_per_worker` as in `gpu_pool`. The second is None where nothing is left for it: no core, or no further worker.
    """
    if capacity is None or not usable_gpus(resources, capacity):
        return cpu_pool(resources, capacity), None
    small = gpu_pool(resources, capacity, MAX_GPU_WORKER_CPUS, gpus_per_worker)
    beside = capacity.without(small.shape, small.workers).fits(Shape())
    if resources.workers is not None:
        beside = min(beside, resources.workers - small.workers)
    if beside < 1:
        return gpu_pool(resources, capacity, gpus_per_worker=gpus_per_worker), None
    return small, PoolSize(beside, Shape())


def usable_gpus(resources: Resources, capacity: Capacity | None) -> float:
    """The GPUs that the run uses. Raises `OpenUniError` if fewer are there than `gpus`."""
    if capacity is None or resources.gpus is None:
        return capacity.gpus if capacity else 0.0
    if resources.gpus > capacity.gpus and resources.placement_timeout_s is None:
        raise OpenUniError(
            f"--gpus {resources.gpus:g}: {_there(resources, capacity)}. Use at most --gpus {capacity.gpus:g}, or "
            "--placement-timeout SECONDS to wait for nodes that an autoscaler starts."
        )
    return resources.gpus


def _fitting(
    workers: int, gpus: float, resources: Resources, capacity: Capacity, most_cpus: float = math.inf
) -> PoolSize:
    cpus = capacity.largest_cpus(workers, gpus, most_cpus)
    if cpus:
        return PoolSize(workers, Shape(cpus, gpus))
    if resources.placement_timeout_s is not None:
        return PoolSize(workers, Shape(1.0, gpus))
    fitting = capacity.fits(Shape(1.0, gpus))
    each = f" of {Shape(1.0, gpus)} each" if gpus else ""
    raise OpenUniError(
        f"{workers} workers{each} do not fit: {_there(resources, capacity)}. Use at most --workers {max(1, fitting)}, "
        "or --placement-timeout SECONDS to wait for nodes that an autoscaler starts."
    )


def _there(resources: Resources, capacity: Capacity) -> str:
    return f"the {'cluster' if resources.address else 'machine'} has {capacity}"

"""How many workers of which shape the pools of a phase get."""

import math

from openuni.manifests.errors import OpenUniError
from openuni.pipeline.runners.capacity import Capacity, Shape
from openuni.pipeline.runners.gpu_usage import GpuBusy
from openuni.pipeline.runners.resources import PoolSize, Resources

IN_PROCESS = PoolSize(1, Shape())
OVERLAP_CPU_SHARE = 0.25  # of the cores, for GPU workers whose clips come from a phase that still runs
BUSY_ENOUGH, FULLY_BUSY = 0.6, 0.9  # shares of time in which a GPU runs kernels
MIN_BUSY_SAMPLES = 60  # seconds of measurement
MAX_PER_GPU = 4
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
        each = min(1.0, gpus) / resources.per_gpu
        workers = max(1, int(gpus * resources.per_gpu))
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
    beside = _cpu_pool_beside(small, resources, capacity)
    if beside is None:
        return gpu_pool(resources, capacity, gpus_per_worker=gpus_per_worker), None
    return small, beside


def overlapping_pools(
    resources: Resources, capacity: Capacity, gpus_per_worker: float = 1.0
) -> tuple[PoolSize, PoolSize] | None:
    """The pools of phases that overlap: the GPU workers of the later one and the CPU workers of the earlier one.

    GPU workers get at most a quarter of the cores, or one core each: most of them are idle until the first clips are
    ready. None where nothing is left for the CPU workers.
    """
    workers = gpu_pool(resources, capacity, 1.0, gpus_per_worker).workers
    most_cpus = min(MAX_GPU_WORKER_CPUS, max(1.0, OVERLAP_CPU_SHARE * capacity.cpus / workers))
    small = gpu_pool(resources, capacity, most_cpus, gpus_per_worker)
    beside = _cpu_pool_beside(small, resources, capacity)
    return None if beside is None else (small, beside)


def _cpu_pool_beside(small: PoolSize, resources: Resources, capacity: Capacity) -> PoolSize | None:
    workers = capacity.without(small.shape, small.workers).fits(Shape())
    if resources.workers is not None:
        workers = min(workers, resources.workers - small.workers)
    return PoolSize(workers, Shape()) if workers >= 1 else None


def workers_sharing_gpu(busy: GpuBusy | None, memory_share: float | None) -> int:
    """How many workers share one GPU, from what earlier phases of the same operators measured.

    `memory_share`: of the GPU's memory that one worker takes; None: not measured. With a busy share of at least
    `BUSY_ENOUGH` the number stays as it was measured with; below, so many more as would make the GPU busy if each
    added as much, at most `MAX_PER_GPU`, and never more than fit into the memory. 1 as long as either is unknown.
    """
    if busy is None or busy.samples < MIN_BUSY_SAMPLES or not memory_share:
        return 1
    wanted = busy.workers_per_gpu
    if busy.busy < BUSY_ENOUGH:
        wanted = max(wanted + 1, int(wanted * FULLY_BUSY / max(busy.busy, 0.01)))
    return max(1, min(wanted, MAX_PER_GPU, int(1 / memory_share)))


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

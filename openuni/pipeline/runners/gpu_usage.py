"""How busy the GPU of a worker is: sampled every second, averaged between the worker's replies, kept in the corpus.

NVML (package nvidia-ml-py, of the extra `cluster`) counts the share of time in which at least one kernel was running on
the physical GPU, by whichever process: workers that share a GPU measure the same. Without NVML nothing is measured.
"""

import contextlib
import logging
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from openuni.console.progress import Phase
from openuni.console.usage import GpuShare
from openuni.manifests.corpus.corpus import Corpus

INTERVAL_S = 1.0
GPU_BUSY_RECORD = "gpu_busy"  # in the corpus's record: by the versions of the operators that shared a worker
MIN_SAMPLES = 10  # seconds; fewer say little

logger = logging.getLogger(__name__)

GpuReader = Callable[[], tuple[str, float] | None]  # name of the physical GPU, and its busy share, 0..1


class GpuSampler:
    """Samples one GPU in a thread until it is closed, or the GPU cannot be read."""

    def __init__(self, read: GpuReader, interval_s: float = INTERVAL_S) -> None:
        self.read, self.interval_s = read, interval_s
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self.sums: dict[str, GpuShare] = {}
        self.thread = threading.Thread(target=self._sample, name="gpu-usage", daemon=True)
        self.thread.start()

    def take(self) -> dict[str, GpuShare]:
        """Mean busy share by physical GPU since the last call; empty if there was no sample."""
        with self.lock:
            taken, self.sums = self.sums, {}
        return {gpu: GpuShare(round(total / samples, 4), samples) for gpu, (total, samples) in taken.items()}

    def close(self) -> None:
        """End the thread."""
        self.stopped.set()
        self.thread.join()

    def _sample(self) -> None:
        while not self.stopped.wait(self.interval_s):
            found = self.read()
            if found is None:
                return
            gpu, busy = found
            with self.lock:
                total, samples = self.sums.get(gpu, GpuShare(0.0, 0))
                self.sums[gpu] = GpuShare(total + busy, samples + 1)


@contextlib.contextmanager
def gpu_sampler(device: str) -> Iterator[Callable[[], dict[str, GpuShare]]]:
    """`GpuSampler.take` of the worker's GPU; of a CPU, and without NVML, one that returns nothing."""
    read = nvml_reader() if device.startswith("cuda") else None
    if read is None:
        yield dict
        return
    sampler = GpuSampler(read)
    try:
        yield sampler.take
    finally:
        sampler.close()


def nvml_reader() -> GpuReader | None:
    """Reads the first GPU that this process sees; None without NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        logger.info("the busy share of GPUs is not measured: install nvidia-ml-py (pip install 'openuni[cluster]')")
        return None
    except pynvml.NVMLError as error:
        logger.info("the busy share of GPUs is not measured: %s", error)
        return None

    def read() -> tuple[str, float] | None:
        try:
            handle = _handle(pynvml, _first_visible())
            uuid = pynvml.nvmlDeviceGetUUID(handle)
            return f"{platform.node()} {uuid}", pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        except (pynvml.NVMLError, LookupError) as error:  # such as a part of a GPU (MIG), which has no counter
            logger.info("the busy share of the GPU is not measured: %s", error)
            return None

    return read


def _first_visible() -> str:
    """UUID or index of the first GPU that this process sees. Indices of CUDA and NVML may differ, UUIDs do not."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"


def _handle(pynvml: Any, name: str) -> Any:
    if name.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        if pynvml.nvmlDeviceGetUUID(handle).startswith(name):  # CUDA allows the first digits alone
            return handle
    raise LookupError(f"NVML knows no GPU {name}")


class GpuBusy(NamedTuple):
    """How busy the GPUs were on which a set of operators ran."""

    busy: float  # mean over time and GPUs, 0..1
    workers_per_gpu: int  # that shared a GPU
    samples: int  # one per second


def measured_gpu_busy(corpus: Corpus, versions: Sequence[str]) -> GpuBusy | None:
    """The newest measurement of workers with exactly these operators or codecs; None if there is none.

    `versions`: of the operators, in any order.
    """
    try:
        found = corpus.record[GPU_BUSY_RECORD][_key(versions)]
        return GpuBusy(float(found["busy"]), int(found["workers_per_gpu"]), int(found["samples"]))
    except (LookupError, TypeError, ValueError):  # no record, or not one of ours
        return None


def record_gpu_busy(corpus: Corpus, versions: Mapping[str, str], phase: Phase, workers_per_gpu: int) -> None:
    """Keep how busy GPUs were in a phase. `versions`: by name of the operators or codecs, of which some ran in it."""
    names = [name for name in phase.usage.operators if name in versions]
    busy, samples = phase.usage.gpu_busy, phase.usage.gpu_samples
    if names and busy is not None and samples >= MIN_SAMPLES:
        measured = GpuBusy(round(busy, 4), workers_per_gpu, samples)._asdict()
        known = dict(corpus.record.get(GPU_BUSY_RECORD, {}))
        corpus.save_record(**{GPU_BUSY_RECORD: known | {_key([versions[name] for name in names]): measured}})


def _key(versions: Sequence[str]) -> str:
    return "+".join(sorted(versions))

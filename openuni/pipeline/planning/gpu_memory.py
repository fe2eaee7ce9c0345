"""How much GPU memory each operator really needs: its weights, and what it takes at most while it runs.

Measured in every run and kept in the corpus's record, so that later phases know which models fit on a GPU together.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from openuni.console.progress import Phase
from openuni.manifests.corpus.corpus import Corpus

BYTES_PER_MB = 1e6
GPU_MEMORY_RECORD = "gpu_memory_mb"  # in the corpus's record: by version of an operator
HEADROOM = 1.15  # of what was measured: the allocator keeps blocks, and larger clips may come


class VramMeter:
    """Reads PyTorch's allocator on one device; sees nothing on a CPU, nor of libraries with their own allocator."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device.startswith("cuda")
        self.weights: dict[str, int] = {}
        self.working: dict[str, int] = {}

    @contextmanager
    def loading(self, name: str) -> Iterator[None]:
        """Around the load of an operator's model."""
        before = self._allocated()
        yield
        self.weights[name] = self._allocated() - before

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Around a run of the operator."""
        if not self._has_counters():
            yield
            return
        import torch

        before = self._allocated()
        torch.cuda.reset_peak_memory_stats()
        try:
            yield
        finally:
            taken = torch.cuda.max_memory_allocated() - before
            self.working[name] = max(self.working.get(name, 0), taken)

    def peaks_mb(self) -> dict[str, float]:
        """Per operator that has run, 10^6 bytes: weights and the most it took while running."""
        return {
            name: round((self.weights.get(name, 0) + used) / BYTES_PER_MB, 1) for name, used in self.working.items()
        }

    def _has_counters(self) -> bool:
        """Whether PyTorch uses the GPU; its counters are there from then on."""
        if not self.on_gpu:
            return False
        import torch

        return bool(torch.cuda.is_initialized())

    def _allocated(self) -> int:
        if not self._has_counters():
            return 0
        import torch

        return int(torch.cuda.memory_allocated())


def gpu_shares(corpus: Corpus, versions: Mapping[str, str], gpu_memory_gb: float | None) -> dict[str, float]:
    """By operator, the share of one GPU's memory that it takes, for those that have run before.

    Not for those of which 0 was measured: their libraries have an allocator of their own (vLLM, onnxruntime).

    `versions`: of the operators. `gpu_memory_gb`: of the smallest GPU, 10^9 bytes; None: unknown.
    """
    measured = corpus.record.get(GPU_MEMORY_RECORD, {})
    if not gpu_memory_gb:
        return {}
    gpu_mb = gpu_memory_gb * 1000
    return {name: measured[version] * HEADROOM / gpu_mb for name, version in versions.items() if measured.get(version)}


def record_gpu_memory(corpus: Corpus, versions: Mapping[str, str], phases: Sequence[Phase]) -> None:
    """Keep what the operators took in these phases."""
    known = dict(corpus.record.get(GPU_MEMORY_RECORD, {}))
    found = dict(known)
    for phase in phases:
        for name, used_mb in phase.vram_mb.items():
            found[versions[name]] = max(used_mb, found.get(versions[name], 0.0))
    if found != known:
        corpus.save_record(**{GPU_MEMORY_RECORD: found})

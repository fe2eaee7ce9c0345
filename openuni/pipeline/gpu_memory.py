"""How much GPU memory each operator really needs: its weights, and what it takes at most while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager

BYTES_PER_MB = 1e6


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
        if not self.on_gpu:
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

    def _allocated(self) -> int:
        if not self.on_gpu:
            return 0
        import torch

        return int(torch.cuda.memory_allocated())

"""Batches of a clip through a network on a device: copies in both directions overlap with the computation.

On a GPU, kernels are queued and run behind the Python code. A copy from or to ordinary ("pageable") memory waits for
all of them, as do `.cpu()`, `.item()` and `.to(device)` of a host tensor: a loop with one of these per frame leaves
the GPU idle while the host prepares the next frame. `each_batch` has one wait per batch, one batch late.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

# tensors of a batch on the device -> its result, one tensor or several
Compute = Callable[..., Any]


def each_batch(device: Any, batches: Iterable[tuple[np.ndarray, ...]], compute: Compute) -> Iterator[Any]:
    """For every batch the result of `compute`, as arrays in host memory, in order.

    `batches`: per batch its arrays (numeric, any shape); `compute` gets them as tensors on `device`, in order, and
    returns a tensor or a tuple of tensors. Arrays come back as they were returned, one array or a tuple.

    A batch is copied to the device while the one before is computed, and its result is awaited only after the next
    batch has been queued. So the caller's work on a result, and the code that makes `batches`, run while the device is
    busy. Two batches are on the device at a time. Raises what `batches` and `compute` raise, such as out of memory.
    """
    import torch

    copies = transfers(torch.device(device))
    waiting: Callable[[], Any] | None = None
    for arrays in batches:
        # the copy protects the caller's arrays, which may be read-only, and on a GPU is pinned memory
        result = copies.down(compute(*(copies.up(array) for array in arrays)))
        if waiting is not None:
            yield waiting()
        waiting = result
    if waiting is not None:
        yield waiting()


def transfers(device: Any) -> "HostCopies | CudaCopies":
    """Transfers to a device (a `torch.device`) and back, for loops of another form than `each_batch`."""
    return CudaCopies(device) if device.type == "cuda" else HostCopies(device)


def on_device(network: Any, device: str) -> Any:
    """The network (a `torch.nn.Module`), in evaluation mode, on `device`; unless that is the CPU, in channels_last.

    cuDNN computes convolutions in that format as matrix products. In the default one, in float32 without TF32, it was
    seen to choose Fourier transforms, of many small kernels and a large workspace. Results differ by rounding. How much
    time this saves has not been measured.
    """
    import torch

    placed = network.eval().to(device)
    return placed if torch.device(device).type == "cpu" else placed.to(memory_format=torch.channels_last)


class HostCopies:
    """Transfers without streams: on the CPU there is nothing to overlap, and results are views."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def up(self, array: np.ndarray) -> Any:
        """A tensor with the values of the array, on the device."""
        import torch

        return torch.from_numpy(np.array(array)).to(self.device)

    def down(self, result: Any) -> Callable[[], Any]:
        """A function that returns the result as arrays."""
        return lambda: _each(result, lambda tensor: tensor.cpu().numpy())


class CudaCopies:
    """Transfers through pinned memory on streams of their own, one per direction.

    PyTorch's allocators reuse a block, pinned or on the device, only when the streams that `record_stream` and the
    copies name have passed it.
    """

    def __init__(self, device: Any) -> None:
        import torch

        self.device = device
        self.up_stream, self.down_stream = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def up(self, array: np.ndarray) -> Any:
        """A tensor on the device; the kernels that follow wait for the copy, the host does not."""
        import torch

        computing = torch.cuda.current_stream(self.device)
        given = np.ascontiguousarray(array)
        pinned = torch.empty(given.shape, dtype=_torch_dtype(given.dtype), pin_memory=True)
        pinned.numpy()[...] = given
        with torch.cuda.stream(self.up_stream):
            tensor = pinned.to(self.device, non_blocking=True)
        computing.wait_stream(self.up_stream)
        tensor.record_stream(computing)
        return tensor

    def down(self, result: Any) -> Callable[[], Any]:
        """A function that waits for the copy of the result, and for nothing that is queued after it."""
        import torch

        self.down_stream.wait_stream(torch.cuda.current_stream(self.device))

        def to_pinned(tensor: Any) -> Any:
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            pinned.copy_(tensor, non_blocking=True)
            tensor.record_stream(self.down_stream)
            return pinned

        with torch.cuda.stream(self.down_stream):
            copied = _each(result, to_pinned)
            done = self.down_stream.record_event(torch.cuda.Event(blocking=True))  # waiting leaves the core to others

        def arrays() -> Any:
            done.synchronize()
            return _each(copied, lambda pinned: pinned.numpy())

        return arrays


def _each(result: Any, change: Callable[[Any], Any]) -> Any:
    return tuple(map(change, result)) if isinstance(result, tuple) else change(result)


def _torch_dtype(dtype: Any) -> Any:
    import torch

    return torch.from_numpy(np.empty(0, dtype)).dtype

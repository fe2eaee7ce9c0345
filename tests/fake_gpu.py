"""What PyTorch would do on a GPU, counted without one: tensors that have a device and a shape, but no values.

    with fake_gpu() as ops:
        network(torch.empty(2, 3, 64, 64, device="cuda"))
    assert not ops.transfers

Networks are built inside, `with torch.device("cuda")`. Reading a value (`.item()`, `bool(tensor)`), for which the host
would wait, raises an error.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class DeviceOps(TorchDispatchMode):
    """Counts operators by name (`names`), and copies between devices by direction (`transfers`)."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.transfers: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.names[name] += 1
        if name in ("_to_copy", "copy_"):
            before, after = args[name == "copy_"].device.type, result.device.type
            if before != after:
                self.transfers[f"{before} to {after}"] += 1
        return result


@contextmanager
def fake_gpu() -> Iterator[DeviceOps]:
    """See the module. cuDNN is off: PyTorch has no shapes for its grid sampler."""
    with FakeTensorMode(), torch.backends.cudnn.flags(enabled=False), torch.no_grad(), DeviceOps() as ops:
        yield ops

"""Counts where code would wait for a GPU: copies to the host, values read from tensors, sizes that depend on data.

On a CPU nothing waits, so the operations are counted that do on a GPU: a test of a loop over frames or instances fails
when one of them returns to it. Copies to the device count too, where arrays become tensors: from ordinary memory they
wait for all queued work.
"""

from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# functions of tensors that bring values to the host
TO_HOST = ("cpu", "numpy", "tolist", "__array__", "pin_memory")
FROM_HOST = ("as_tensor", "tensor")
# operators whose result, or its size, the host has to know; `_local_scalar_dense` is item(), bool(), int(), float()
READS = ("_local_scalar_dense", "nonzero", "masked_select", "nms", "_unique2", "unique_dim", "unique_consecutive")


class Waits(TorchFunctionMode):
    """Context that counts waits by the name of the operation: `waits.counts`, `waits.total`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.operators = _Operators(self.counts)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __enter__(self) -> "Waits":
        super().__enter__()
        self.operators.__enter__()
        self.from_numpy = torch.from_numpy

        def counted(array: Any) -> torch.Tensor:
            self.counts["from_numpy"] += 1
            return self.from_numpy(array)

        torch.from_numpy = counted  # the one function that modes do not get
        return self

    def __exit__(self, *error: Any) -> None:
        torch.from_numpy = self.from_numpy
        self.operators.__exit__(*error)
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        is_upload = name in FROM_HOST and not isinstance(args[0], torch.Tensor)
        if name in TO_HOST or is_upload or (name == "to" and "cpu" in [arg for arg in args if isinstance(arg, str)]):
            # `.cpu().numpy()` is one wait
            self.counts[name if name != "numpy" else "cpu"] += name != "numpy"
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    """Counts operators, those inside of libraries too."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        repeats = (
            name == "repeat_interleave" and func._overloadname == "Tensor" and not (kwargs or {}).get("output_size")
        )
        if name in READS or by_mask or repeats:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

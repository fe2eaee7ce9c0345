"""How operators with a network run it: no gradients, repeatable, and in the precision that was asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Precision = Literal["fp32", "bf16"]


@contextmanager
def inference(device: str, precision: Precision) -> Iterator[None]:
    """Inside, networks run without gradients and with repeatable kernels.

    `fp32` means 32 bits: the shortened multiplication of tensor cores (TF32), on by default in PyTorch for
    convolutions, is off.
    `bf16` is autocast: matrix products and convolutions in bfloat16, the rest in float32.
    """
    import torch

    repeatable = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
    with torch.inference_mode(), repeatable, autocast:
        yield

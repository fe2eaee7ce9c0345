"""Inference mode of operators with a network: no gradients, deterministic kernels, explicit precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Precision = Literal["fp32", "bf16"]


@contextmanager
def inference(device: str, precision: Precision) -> Iterator[None]:
    """Context in which networks run without gradients and with deterministic kernels.

    `fp32`: full 32-bit precision; TF32, which PyTorch enables by default for convolutions, is disabled.
    `bf16`: autocast; matrix products and convolutions in bfloat16, the rest in float32.
    """
    import torch

    deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
    with torch.inference_mode(), deterministic, autocast:
        yield


def decoder_precision(precision: Precision) -> Precision:
    """Precision of a part whose numbers are compared with thresholds: that of the option, but never 16 bits."""
    return "fp32" if precision.endswith("16") else precision

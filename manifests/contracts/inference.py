"""Numerical precision of networks at inference: what each name means, on every device, whatever the process has set."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Float32 = Literal["ieee", "tf32"]  # arithmetic of float32 operations, in PyTorch's words

# PyTorch's switches of float32 arithmetic that hold more than one value; those of oneDNN are for CPUs
_SWITCHES = (
    ("cudnn", "conv"),
    ("cudnn", "rnn"),
    ("cuda", "matmul"),
    ("mkldnn", "conv"),
    ("mkldnn", "rnn"),
    ("mkldnn", "matmul"),
)


@contextmanager
def inference(device: str, precision: Precision) -> Iterator[None]:
    """Context in which networks run on `device` without gradients, in one precision.

    `fp32`: 32-bit arithmetic throughout. `tf32`: on GPUs the operands of matrix products and convolutions are rounded
    to 10 bits of mantissa and sums are 32-bit; on a CPU, and on GPUs before Ampere, the same as `fp32`. `bf16`, `fp16`:
    autocast; matrix products and convolutions in 16 bits, the rest as in `fp32`. Values of float16 end at 65,504: a
    network may exceed it, and then returns infinities.

    The settings are PyTorch's and hold for the process; they are restored at the end, also after an error and for
    contexts within contexts. Gradients and autocast are those of the thread. Two threads must not overlap contexts.
    """
    import torch

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    float32: Float32 = "tf32" if precision == "tf32" else "ieee"
    autocast = torch.autocast(torch.device(device).type, half or torch.bfloat16, enabled=half is not None)
    with torch.inference_mode(), float32_arithmetic(float32, float32), autocast:
        yield


@contextmanager
def float32_arithmetic(convolutions: Float32, matrix_products: Float32) -> Iterator[None]:
    """Context with one arithmetic for float32 convolutions and matrix products on GPUs; on CPUs always 32-bit.

    PyTorch's default is TF32 for convolutions only, and a process may have set anything else.
    """
    import torch

    # With deterministic=True a key frame of SAM took 1.40 s instead of 0.42 s on an H200 (a slow kernel for transposed
    # convolutions), and two runs were equal to the bit without it, too. benchmark=True picks kernels by the time they
    # take, so runs could differ: it stays off.
    cudnn = {"enabled": True, "benchmark": False, "deterministic": False}
    found = {name: getattr(torch.backends.cudnn, name) for name in cudnn}
    saved = _float32_settings()
    try:
        for name, value in cudnn.items():
            setattr(torch.backends.cudnn, name, value)
        # Both of PyTorch's interfaces are set alike: code that asks the older one gets an error if they disagree
        if saved["allow_tf32"] is not None:
            torch.backends.cudnn.allow_tf32 = convolutions == "tf32"
        if saved["matmul"] is not None:
            torch.set_float32_matmul_precision("high" if matrix_products == "tf32" else "highest")
        gpu = {"conv": convolutions, "rnn": convolutions, "matmul": matrix_products}
        for backend, operation in _SWITCHES:
            _switch(backend, operation).fp32_precision = "ieee" if backend == "mkldnn" else gpu[operation]
        yield
    finally:
        if saved["allow_tf32"] is not None:
            torch.backends.cudnn.allow_tf32 = saved["allow_tf32"]
        if saved["matmul"] is not None:
            torch.set_float32_matmul_precision(saved["matmul"])
        for (backend, operation), value in saved["switches"].items():
            _switch(backend, operation).fp32_precision = value
        for name, value in found.items():
            setattr(torch.backends.cudnn, name, value)


def _float32_settings() -> dict[str, Any]:
    """The settings as they are. Those of the older interface are None where the process has mixed both."""
    import torch

    older: dict[str, Any] = {"allow_tf32": None, "matmul": None}
    for name, read in (
        ("allow_tf32", lambda: torch.backends.cudnn.allow_tf32),
        ("matmul", torch.get_float32_matmul_precision),
    ):
        try:
            older[name] = read()
        except RuntimeError:  # so PyTorch says that they disagree
            continue
    return older | {"switches": {place: _switch(*place).fp32_precision for place in _SWITCHES}}


def _switch(backend: str, operation: str) -> Any:
    import torch

    return getattr(getattr(torch.backends, backend), operation)

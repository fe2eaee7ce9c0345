"""AdamW with less memory on the device: moments in 8 bits, in the memory of the host, or both.

Moments are brought to the device in float32 one parameter at a time, updated by PyTorch's own AdamW, and stored again.
Scales of 8-bit moments belong to blocks within a row, so rows and their scales are divided among ranks as parameters
are, and a checkpoint is exact with any number of ranks.
"""

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch.optim.adamw import adamw

BLOCK = 256  # values per scale


@cache
def _levels(signed: bool) -> torch.Tensor:
    """The 255 or 256 values of a code, ascending, float32: 0, and seven decades with twice as many levels each.

    "Dynamic tree quantization" of Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (2022); here with -1
    as well as 1, so that the largest value of a block is exact with either sign.
    """
    positive = []
    for decade in range(7):
        borders = torch.linspace(0.1, 1.0, 2 ** (decade + (not signed)) + 1, dtype=torch.float64)
        positive.append((borders[:-1] + borders[1:]) / 2 * 10.0 ** (decade - 6))
    above = torch.cat(positive)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    if not signed:
        return torch.cat([zero, above, one]).float()
    above = torch.cat([above[:-1], one])
    return torch.cat([-above.flip(0), zero, above]).float()


@cache
def _tables(signed: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels of a code, and the borders between them."""
    levels = _levels(signed)
    return levels.to(device), ((levels[:-1] + levels[1:]) / 2).to(device)


def _blocks(values: torch.Tensor) -> torch.Tensor:
    """[R, ...] -> [R, blocks, at most 256], zero-padded."""
    rows = values.reshape(len(values), math.prod(values.shape[1:]))  # a rank may have none
    width = min(BLOCK, rows.shape[1])
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % width)).unflatten(1, (-1, width))


def quantized(values: torch.Tensor, *, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [R, ...] -> codes uint8 of the same shape, and scales float32 [R, blocks], the maxima of the blocks."""
    _, borders = _tables(signed, values.device)
    blocks = _blocks(values)
    scales = blocks.abs().amax(dim=2)
    shares = blocks / torch.where(scales == 0, 1.0, scales)[:, :, None]
    codes = torch.bucketize(shares, borders, out_int32=True).to(torch.uint8)
    return _unblocked(codes, values.shape), scales


def dequantized(codes: torch.Tensor, scales: torch.Tensor, *, signed: bool) -> torch.Tensor:
    """The inverse of `quantized`, up to rounding: float32 of the shape of the codes."""
    levels, _ = _tables(signed, codes.device)
    blocks = levels[_blocks(codes).int()] * scales[:, :, None]
    return _unblocked(blocks, codes.shape)


def _unblocked(blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The inverse of `_blocks`."""
    return blocks.flatten(1)[:, : math.prod(shape[1:])].reshape(shape)


class LowMemoryAdamW(torch.optim.AdamW):
    """AdamW whose moments are `quantize`d in groups with `is_matrix`, and stored on the CPU with `offload`.

    With `offload` alone the results are those of AdamW bit for bit.
    """

    def __init__(self, groups: Iterable[Any], *, quantize: bool, offload: bool, **options: Any) -> None:
        super().__init__(groups, **options)
        self.quantize, self.offload = quantize, offload
        self.defaults["offload"] = offload  # where `load_optimizer` puts moments
        # of the last step, by parameter: sums of the moments, which are NaN or infinite if a value is
        self.sums: dict[torch.Tensor, torch.Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """See `torch.optim.AdamW.step`; without a closure."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        if self.offload and any(parameter.is_cuda for parameter in self.state):
            torch.cuda.synchronize()  # copies to the host are asynchronous, and it may read them now

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state, fused = self.state[parameter], bool(group["fused"])
        is_low = self.quantize and bool(group["is_matrix"])
        if not state:
            state["step"] = torch.zeros((), device=parameter.device if fused else "cpu")
        moments = {name: self._loaded(state, name, parameter, is_low) for name in ("exp_avg", "exp_avg_sq")}
        beta1, beta2 = group["betas"]
        adamw(
            [parameter], [gradient], [moments["exp_avg"]], [moments["exp_avg_sq"]], [], [state["step"]],
            foreach=False, fused=fused, amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
        for name, values in moments.items():
            self._store(state, name, values, is_low)
        if self.offload:
            self.sums[parameter] = torch.stack([values.sum() for values in moments.values()])

    def _loaded(self, state: dict[str, Any], name: str, parameter: torch.Tensor, is_low: bool) -> torch.Tensor:
        """A moment in float32 on the device of its parameter; zeros at first."""
        if name not in state:
            return torch.zeros_like(parameter, memory_format=torch.preserve_format)
        values = state[name].to(parameter.device, non_blocking=True)
        if not is_low:
            return values
        scales = state[f"{name}_scale"].to(parameter.device, non_blocking=True)
        return dequantized(values, scales, signed=name == "exp_avg")

    def _store(self, state: dict[str, Any], name: str, values: torch.Tensor, is_low: bool) -> None:
        parts = {name: values}
        if is_low:
            parts[name], parts[f"{name}_scale"] = quantized(values, signed=name == "exp_avg")
        for key, part in parts.items():
            if not self.offload or part.is_cpu:
                state[key] = part
                continue
            if key not in state or not state[key].is_pinned():  # at first, and after a resume
                state[key] = torch.empty_like(part, device="cpu", pin_memory=True)
            state[key].copy_(part, non_blocking=True)


def state_bytes(quantize: bool, offload: bool) -> float:
    """Bytes of moments per parameter on the device, between steps."""
    if offload:
        return 0.0
    return 2 * (1 + 4 / BLOCK) if quantize else 8.0

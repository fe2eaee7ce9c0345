"""The optimizer: AdamW over groups of parameters, and the schedule of the learning rate."""

import math
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from openuni.training.loop.training_checkpoint import optimizer_tensors
from openuni.training.optimizers.low_memory_adamw import LowMemoryAdamW
from openuni.training.recipe import OptimizerOptions


def build_optimizer(
    parameters: Mapping[str, torch.Tensor], added: set[str], options: OptimizerOptions
) -> torch.optim.AdamW:
    """AdamW over the trained parameters in four groups: base or added, with weight decay (matrices) or without.

    `parameters`: by name. `added`: names of newly added ones. Uses PyTorch's fused kernel on CUDA. With
    `optimizer.kind = "adamw_8bit"` the moments of matrices are stored in 8 bits, with `offload_state` on the CPU.
    """
    groups: dict[tuple[bool, bool], list[torch.Tensor]] = defaultdict(list)
    for name, parameter in parameters.items():
        groups[name in added, parameter.ndim >= 2 and "table" not in name].append(parameter)
    on_cuda = all(parameter.is_cuda for parameter in parameters.values())
    quantize, offload = options.kind == "adamw_8bit", options.offload_state
    kind: Any = torch.optim.AdamW
    if quantize or offload:
        kind = partial(LowMemoryAdamW, quantize=quantize, offload=offload)
    optimizer: torch.optim.AdamW = kind(
        [
            {
                "params": group,
                "is_matrix": is_matrix,
                "full_rate": options.learning_rate * (options.new_parameter_lr_scale if is_added else 1.0),
                "weight_decay": options.weight_decay if is_matrix else 0.0,
            }
            for (is_added, is_matrix), group in groups.items()
        ],
        betas=(0.9, options.beta2),
        fused=True if on_cuda else None,
    )
    return optimizer


def checked_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that are finite if and only if the optimizer's state is, by name; none of them is in the host's memory
    if parameters are not.
    """
    if isinstance(optimizer, LowMemoryAdamW) and optimizer.offload:
        sums = optimizer.sums
        return {f"moments/{name}": sums[tensor] for name, tensor in parameters.items() if tensor in sums}
    return optimizer_tensors(optimizer, parameters)


def lr_factor(options: OptimizerOptions, step: int) -> float:
    """Learning-rate factor at `step` (from 0): linear warm-up, constant, decay over the last `decay_steps`."""
    up = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    down = min(1.0, (options.steps - step) / options.decay_steps) if options.decay_steps else 1.0
    if options.decay == "cosine":
        down = (1 - math.cos(math.pi * down)) / 2
    if options.final_lr_scale:
        down = options.final_lr_scale + (1 - options.final_lr_scale) * down
    return min(up, down)

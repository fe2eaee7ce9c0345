"""The optimizer: AdamW over groups of parameters, and the schedule of the learning rate."""

import math
from collections import defaultdict
from collections.abc import Mapping

import torch

from openuni.training.recipe import OptimizerOptions


def build_optimizer(
    parameters: Mapping[str, torch.Tensor], added: set[str], options: OptimizerOptions
) -> torch.optim.AdamW:
    """AdamW over the trained parameters in four groups: base or added, with weight decay (matrices) or without.

    `parameters`: by name. `added`: names of newly added ones. Uses PyTorch's fused kernel on CUDA.
    """
    groups: dict[tuple[bool, bool], list[torch.Tensor]] = defaultdict(list)
    for name, parameter in parameters.items():
        groups[name in added, parameter.ndim >= 2 and "table" not in name].append(parameter)
    on_cuda = all(parameter.is_cuda for parameter in parameters.values())
    return torch.optim.AdamW(
        [
            {
                "params": group,
                "full_rate": options.learning_rate * (options.new_parameter_lr_scale if is_added else 1.0),
                "weight_decay": options.weight_decay if is_matrix else 0.0,
            }
            for (is_added, is_matrix), group in groups.items()
        ],
        betas=(0.9, options.beta2),
        fused=True if on_cuda else None,
    )


def lr_factor(options: OptimizerOptions, step: int) -> float:
    """Learning-rate factor at `step` (from 0): linear warm-up, constant, decay over the last `decay_steps`."""
    up = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    down = min(1.0, (options.steps - step) / options.decay_steps) if options.decay_steps else 1.0
    if options.decay == "cosine":
        down = (1 - math.cos(math.pi * down)) / 2
    if options.final_lr_scale:
        down = options.final_lr_scale + (1 - options.final_lr_scale) * down
    return min(up, down)

"""Selective activation checkpointing: blocks are recomputed in the backward pass, but not their attention kernels."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# PyTorch's kernels; and the namespaces that other packages register theirs in
KERNELS = "aten::_scaled_dot_product_"
PACKAGES = ("flash_attn", "flash_attn_3", "xformers", "xformers_flash", "xformers_flash3")


def is_attention(operator: Any) -> bool:
    """Whether an operator of PyTorch's dispatcher is an attention kernel (forward)."""
    name = str(operator.name())
    return (name.startswith(KERNELS) or name.partition("::")[0] in PACKAGES) and not name.partition(".")[0].endswith(
        "backward"
    )


def recompute_selectively(block: Any) -> None:
    """Let a block recompute all but attention in its backward pass.

    The results of attention kernels take two numbers per token and channel; the kernels take most of the time of long
    sequences. The wrapped function is within FSDP's gathering and within what torch.compile sees.
    """
    block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    contexts = partial(create_selective_checkpoint_contexts, _policy)

    @wraps(forward)
    def recomputed(*given: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*given)
        return checkpoint(forward, *given, use_reentrant=False, context_fn=contexts)

    return recomputed


def _policy(_: Any, operator: Any, *given: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_attention(operator) else CheckpointPolicy.PREFER_RECOMPUTE

"""The trained weights of one rank: all of them, or with several ranks its share of each (FSDP2).

Optimizer, EMA and gradient clipping work on plain local tensors in both cases (`Weights.local`), so their arithmetic
and their kernels are the same. With several ranks these are the local tensors of the model's sharded parameters.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from torch import nn
from torch.nn.utils import get_total_norm

from openuni.manifests.errors import OpenUniError
from openuni.training.loop.ranks import Ranks
from openuni.training.loop.training_checkpoint import model_tensors

SYNC_TOLERANCE = 2e-7  # per rank: rounding of a float32 sum over ranks, relative to the sum of absolute values


class Rows(NamedTuple):
    """The rows of a tensor that this rank holds, on any device: optimizer state may be in the memory of the host."""

    local: torch.Tensor
    like: Any  # a DTensor whose rows are divided in the same way


class Weights:
    """The trained weights of a model that is on one device as a whole."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        # by name: this rank's share of the trained parameters, in the same memory
        self.local: dict[str, torch.Tensor] = dict(self.parameters)

    def begin_pass(self, is_last: bool) -> None:
        """Call before the forward pass of every micro-batch. `is_last`: of the step, after which gradients are used."""

    def used(self) -> np.ndarray:
        """float64 [parameters]: 1 for those that got a gradient on this rank since the last call of `gradients`."""
        return np.ones(len(self.local))

    def gradients(self, used: np.ndarray) -> list[torch.Tensor]:
        """Set the gradients of `local` and return them. `used`: `used()`, summed over all ranks."""
        return [tensor.grad for tensor in self.local.values() if tensor.grad is not None]

    def zero_gradients(self) -> None:
        """Remove all gradients."""
        for tensor in (*self.parameters.values(), *self.local.values()):
            tensor.grad = None

    def changed(self) -> None:
        """Call after `local` was changed outside of a step, and after forward passes without a backward pass."""

    def check_synchronized(self, ranks: Ranks) -> None:
        """Check that the gradients of the first step are the sum over all ranks. Raises `OpenUniError`."""

    def rows(self, name: str, local: torch.Tensor) -> "torch.Tensor | Rows":
        """What a checkpoint stores of a tensor whose rows are divided as those of the parameter `name`."""
        return local

    def saved(self, replaced: Mapping[str, torch.Tensor] | None = None) -> "dict[str, torch.Tensor | Rows]":
        """The weights for a checkpoint; `replaced`: shares that replace those of trained parameters."""
        replaced = replaced or {}
        return {
            name: self.rows(name, replaced[name]) if name in replaced else tensor
            for name, tensor in model_tensors(self.model).items()
        }


class Ema:
    """Exponential moving average of the trained weights, as shares of this rank."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.average = {name: tensor.detach().clone() for name, tensor in weights.local.items()}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average = decay * average + (1 - decay) * weights."""
        torch._foreach_lerp_(list(self.average.values()), list(self.weights.local.values()), 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[Any]:
        """Context in which the model has the averaged weights and is in evaluation mode."""
        model = self.weights.model
        self._swap()
        was_training = model.training
        model.eval()
        try:
            yield model
        finally:
            model.train(was_training)
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self.average.items():
            current = self.weights.local[name]
            kept = current.detach().clone()
            current.copy_(average)
            average.copy_(kept)
        self.weights.changed()


def clip_gradients(gradients: list[torch.Tensor], norm: float, max_norm: float) -> None:
    """Scale gradients with this total norm to at most `max_norm`, as `torch.nn.utils.clip_grads_with_norm_` does."""
    if not gradients:
        return
    scale = torch.clamp(max_norm / (torch.tensor(norm, dtype=torch.float32) + 1e-6), max=1.0)
    torch._foreach_mul_(gradients, scale.to(gradients[0].device))


def local_norm(gradients: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Norm of the gradients of this rank, float32, on the device."""
    return get_total_norm(gradients) if gradients else torch.zeros((), device=device)


def check_equal_weights(model: nn.Module, ranks: Ranks) -> None:
    """Raise `OpenUniError` unless all ranks begin with the same weights, bit for bit."""
    total = xxhash.xxh3_64()
    for name, tensor in model.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    odd = ranks.differing(total.hexdigest())
    if odd:
        error = OpenUniError(
            f"rank {odd[0]} begins with other weights than rank 0 ({len(odd)} of {ranks.world} ranks differ). All "
            "nodes need the same version of OpenUni and PyTorch, and the same files in model.pretrained and init_from."
        )
        raise ranks.agreed(error)

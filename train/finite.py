"""Checks of tensors for NaN and infinite values."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch.nn.utils import get_total_norm

from openuni.manifests.errors import OpenUniError


class NonFiniteError(OpenUniError):
    """A computation gave NaN or infinite values."""


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether all values of floating-point tensors are finite; waits for the device once."""
    floating = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not floating:
        return True
    # on a CPU sums take a tenth of the time of norms; NaN and infinite values stay in a sum, so a finite one has none
    if all(tensor.is_cpu for tensor in floating) and all(math.isfinite(tensor.sum()) for tensor in floating):
        return True
    # the maximum norm cannot overflow; it is NaN or infinite if and only if a value is
    return bool(get_total_norm(floating, torch.inf).isfinite())


def non_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors with NaN or infinite values."""
    if all_finite(tensors.values()):
        return []
    return [name for name, tensor in tensors.items() if not all_finite([tensor])]


def check_finite(groups: Mapping[str, Mapping[str, torch.Tensor]], when: str) -> None:
    """Raise `NonFiniteError` that names the first group of tensors with NaN or infinite values, and how many have."""
    if all_finite(tensor for group in groups.values() for tensor in group.values()):
        return
    for what, group in groups.items():
        if odd := non_finite(group):
            raise NonFiniteError(f"{what} not finite {when} ({len(odd)} of {len(group)} tensors, first {odd[0]})")

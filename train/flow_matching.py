"""Flow matching as pure functions. One convention everywhere: sigma 0 is clean, sigma 1 is noise."""

from typing import Literal

import torch

SigmaDensity = Literal["uniform", "logit_normal"]


def noised(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """`x_sigma = (1 - sigma) x + sigma eps`. `clean`, `noise`: [B, C, T, H, W]; `sigma`: [B] in 0..1.

    Exact at both ends: sigma 0 returns the clean latents bit for bit.
    """
    sigma = _per_sample(sigma, clean)
    return (1 - sigma) * clean + sigma * noise


def velocity(clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The target `d x_sigma / d sigma = eps - x`, [B, C, T, H, W]."""
    return noise - clean


def shifted(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """Wan's timestep shift `s sigma / (1 + (s - 1) sigma)`: above 1 it moves mass towards noise; keeps 0 and 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigma_at(quantile: torch.Tensor, density: SigmaDensity, shift: float) -> torch.Tensor:
    """Quantiles in (0, 1) -> sigmas of that density: drawing is this of uniform numbers, validation of fixed ones.

    "logit_normal": sigmoid of a standard normal; "uniform": the quantile itself; then the shift.
    """
    if density == "logit_normal":
        inside = quantile.double().clamp(1e-7, 1 - 1e-7)
        quantile = torch.sigmoid(torch.special.ndtri(inside)).to(quantile.dtype)
    return shifted(quantile, shift)


def stream_losses(
    predicted: dict[str, torch.Tensor], target: dict[str, torch.Tensor], made: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Per sample, the sum over its made streams of the mean squared error -> float32 [B].

    `made`: bool [B] per stream; what is given is no target, and its prediction does not enter.
    """
    total = torch.zeros(())
    for name, mask in made.items():
        error = (predicted[name].float() - target[name].float()).square().mean(dim=(1, 2, 3, 4))
        total = total.to(error) + torch.where(mask, error, 0.0)
    return total


def sampling_sigmas(steps: int, shift: float) -> torch.Tensor:
    """float32 [steps + 1] from 1 down to exactly 0, evenly spaced before the shift."""
    return shifted(torch.linspace(1.0, 0.0, steps + 1), shift)


def euler_step(
    noisy: torch.Tensor, predicted: torch.Tensor, sigma: float | torch.Tensor, next_sigma: float | torch.Tensor
) -> torch.Tensor:
    """One step along the predicted velocity from `sigma` to `next_sigma`; all tensors [B, C, T, H, W]."""
    return noisy + (next_sigma - sigma) * predicted


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance: scale 1 is the conditional prediction, 0 the unconditional one."""
    return unconditional + scale * (conditional - unconditional)


def _per_sample(sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return sigma.to(like).reshape(-1, *[1] * (like.ndim - 1))

"""Flow matching as pure functions. One convention everywhere: sigma 0 is clean, sigma 1 is noise."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple

import torch

SigmaDensity = Literal["uniform", "logit_normal"]
Weighting = Literal["none", "gaussian"]
Solver = Literal["euler", "heun", "adams_bashforth"]
Streams = dict[str, torch.Tensor]  # by modality: latents [B, C, T, H, W]; "text": tokens [B, L], embeddings [B, L, D]
TokenStep = Callable[[torch.Tensor, torch.Tensor, float, float, int], torch.Tensor]


def add_noise(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """`x_sigma = (1 - sigma) x + sigma eps`. `clean`, `noise`: [B, C, T, H, W]; `sigma`: [B] in 0..1.

    Exact at both ends: sigma 0 returns the clean latents bit for bit.
    """
    sigma = _per_sample(sigma, clean)
    return (1 - sigma) * clean + sigma * noise


def velocity(clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The target `d x_sigma / d sigma = eps - x`, [B, C, T, H, W]."""
    return noise - clean


def shift_sigma(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """Wan's timestep shift `s sigma / (1 + (s - 1) sigma)`: above 1 it moves mass towards noise; keeps 0 and 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigma_at(quantile: torch.Tensor, density: SigmaDensity, shift: float) -> torch.Tensor:
    """Quantiles in (0, 1) -> sigmas of that density: drawing is this of uniform numbers, validation of fixed ones.

    "logit_normal": sigmoid of a standard normal; "uniform": the quantile itself; then the shift.
    """
    if density == "logit_normal":
        inside = quantile.double().clamp(1e-7, 1 - 1e-7)
        quantile = torch.sigmoid(torch.special.ndtri(inside)).to(quantile.dtype)
    return shift_sigma(quantile, shift)


def loss_weight(sigma: torch.Tensor, weighting: Weighting) -> torch.Tensor:
    """What the loss at each sigma counts, float32 of sigma's shape; its mean over uniform sigmas is 1.

    "gaussian", as in UniVidX's code: a bell `exp(-2 (sigma - 1/2)^2)`, lowered so that it is 0 at both ends.
    """
    if weighting == "none":
        return torch.ones_like(sigma, dtype=torch.float32)
    lowest = math.exp(-0.5)
    mean = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - lowest  # of the lowered bell over 0..1
    return (torch.exp(-2 * (sigma.float() - 0.5).square()) - lowest) / mean


def stream_losses(
    predicted: dict[str, torch.Tensor],
    target: dict[str, torch.Tensor],
    made: dict[str, torch.Tensor],
    weights: dict[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Per sample, the sum over its made streams of the mean squared error -> float32 [B].

    `made`: bool [B] per stream; what is given is no target, and its prediction does not enter. `weights`: [B] per
    stream, 1 if absent; see `loss_weight`.
    """
    total = torch.zeros(())
    for name, mask in made.items():
        error = (predicted[name].float() - target[name].float()).square().mean(dim=(1, 2, 3, 4))
        if weights is not None:
            error = error * weights[name].to(error)
        total = total.to(error) + torch.where(mask, error, 0.0)
    return total


def sampling_sigmas(steps: int, shift: float) -> torch.Tensor:
    """float32 [steps + 1] from 1 down to exactly 0, evenly spaced before the shift."""
    return shift_sigma(torch.linspace(1.0, 0.0, steps + 1), shift)


def euler_step(
    noisy: torch.Tensor, predicted: torch.Tensor, sigma: float | torch.Tensor, next_sigma: float | torch.Tensor
) -> torch.Tensor:
    """One step along the predicted velocity from `sigma` to `next_sigma`; all tensors [B, C, T, H, W]."""
    return noisy + (next_sigma - sigma) * predicted


def adams_bashforth_step(
    noisy: torch.Tensor,
    predicted: torch.Tensor,
    before: torch.Tensor,
    sigmas: tuple[float | torch.Tensor, float | torch.Tensor, float | torch.Tensor],
) -> torch.Tensor:
    """Second-order step with the velocity of the step before, for steps of any lengths; tensors [B, C, T, H, W].

    `sigmas`: where `before` was predicted, where `predicted` is, and where to go. The line through both velocities is
    integrated.
    """
    last, sigma, next_sigma = sigmas
    step = next_sigma - sigma
    share = step / (2 * (sigma - last))
    return noisy + step * ((1 + share) * predicted - share * before)


def solve(
    field: Callable[[Streams, float], Streams],
    noisy: Streams,
    sigmas: torch.Tensor,
    solver: Solver,
    jump: TokenStep | None = None,
) -> Streams:
    """Follow the velocity `field(streams, sigma)` along `sigmas`, float32 [steps + 1], from first to last.

    "euler": order 1, one evaluation a step. "heun": order 2, two a step (the mean of the velocities at both ends).
    "adams_bashforth": order 2, one a step, from two consecutive velocities; the first step is Euler's. A step that
    ends at sigma 0 is Euler's under "heun", since models are not trained to see noise of exactly 0; orders hold.

    Streams of integers are tokens: of these the field gives logits, and `jump(tokens, logits, sigma, next sigma, number
    of the step)` moves them in the same loop, by the logits at the beginning of the step whatever the solver.
    """
    before: tuple[torch.Tensor, Streams] | None = None
    flowing = [name for name, stream in noisy.items() if stream.dtype != torch.int64]
    for number, (sigma, following) in enumerate(pairwise(sigmas)):
        predicted = field(noisy, float(sigma))
        tokens = {
            name: jump(noisy[name], predicted[name], float(sigma), float(following), number)
            for name in noisy
            if jump is not None and name not in flowing
        }
        if solver == "adams_bashforth" and before is not None:
            places = (before[0], sigma, following)
            step = {n: adams_bashforth_step(noisy[n], predicted[n], before[1][n], places) for n in flowing}
        else:
            step = {name: euler_step(noisy[name], predicted[name], sigma, following) for name in flowing}
        if solver == "heun" and following > 0 and flowing:
            ahead = field(step | tokens, float(following))
            mean = {name: (predicted[name] + ahead[name]) / 2 for name in flowing}
            step = {name: euler_step(noisy[name], mean[name], sigma, following) for name in flowing}
        before, noisy = (sigma, predicted), step | tokens
    return noisy


class GuidanceWeights(NamedTuple):
    """What each prediction counts in a guided one; they sum to 1."""

    full: float  # with the text and the given streams
    without_text: float  # with the given streams alone
    without_both: float


def guidance_weights(text_scale: float, condition_scale: float) -> GuidanceWeights:
    """Guidance towards the text and towards the given streams, each with a scale of its own, as a weighted sum.

    It is `without_both + condition_scale (without_text - without_both) + text_scale (full - without_text)`: the text's
    share is what it adds to the given streams. Both scales 1: the full prediction alone; a share of 0: a prediction
    that is not needed. As in InstructPix2Pix (Brooks et al., 2023).
    """
    return GuidanceWeights(text_scale, condition_scale - text_scale, 1.0 - condition_scale)


def _per_sample(sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return sigma.to(like).reshape(-1, *[1] * (like.ndim - 1))

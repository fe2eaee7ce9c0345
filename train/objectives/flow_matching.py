"""Flow matching as pure functions. Sigma 0 is clean, sigma 1 is noise."""

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
    """The regression target `d x_sigma / d sigma = eps - x`, [B, C, T, H, W]."""
    return noise - clean


def shift_sigma(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """Wan's timestep shift `s sigma / (1 + (s - 1) sigma)`: above 1 it moves mass towards noise; keeps 0 and 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigma_at(quantile: torch.Tensor, density: SigmaDensity, shift: float) -> torch.Tensor:
    """Quantile function of a sigma density: quantiles in (0, 1) -> sigmas. Training draws them, validation fixes them.

    "logit_normal": sigmoid of a standard normal; "uniform": the quantile itself. Then the timestep shift is applied.
    """
    if density == "logit_normal":
        inside = quantile.double().clamp(1e-7, 1 - 1e-7)
        quantile = torch.sigmoid(torch.special.ndtri(inside)).to(quantile.dtype)
    return shift_sigma(quantile, shift)


def loss_weight(sigma: torch.Tensor, weighting: Weighting) -> torch.Tensor:
    """Loss weight at each sigma, float32 of sigma's shape; its mean over uniform sigmas is 1.

    "gaussian", as in UniVidX's code: `exp(-2 (sigma - 1/2)^2)`, shifted down to 0 at both ends.
    """
    if weighting == "none":
        return torch.ones_like(sigma, dtype=torch.float32)
    lowest = math.exp(-0.5)
    mean = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - lowest  # of the lowered bell over 0..1
    return (torch.exp(-2 * (sigma.float() - 0.5).square()) - lowest) / mean


def losses_by_stream(
    predicted: dict[str, torch.Tensor],
    target: dict[str, torch.Tensor],
    targets: dict[str, torch.Tensor],
    weights: dict[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Per sample and stream, the mean squared error -> float32 [B]; 0 where the stream is a condition.

    `targets`: bool [B] per stream. `weights`: [B] per stream, 1 if absent; see `loss_weight`.
    """
    found = {}
    for name, mask in targets.items():
        error = (predicted[name].float() - target[name].float()).square().mean(dim=(1, 2, 3, 4))
        if weights is not None:
            error = error * weights[name].to(error)
        found[name] = torch.where(mask, error, 0.0)
    return found


def stream_losses(
    predicted: dict[str, torch.Tensor],
    target: dict[str, torch.Tensor],
    targets: dict[str, torch.Tensor],
    weights: dict[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Per sample, the sum of `losses_by_stream` over its target streams -> float32 [B]."""
    return summed(losses_by_stream(predicted, target, targets, weights))


def summed(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum over streams, in their order."""
    total = torch.zeros(())
    for loss in losses.values():
        total = total.to(loss) + loss
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
    """Second-order step that reuses the previous step's velocity, for variable step sizes; tensors [B, C, T, H, W].

    `sigmas`: that of `before`, that of `predicted`, and the next one. Integrates the line through both velocities.
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
    """Integrate the velocity `field(streams, sigma)` along `sigmas`, float32 [steps + 1], from first to last.

    "euler": order 1, one evaluation per step. "heun": order 2, two per step (mean of the velocities at both ends).
    "adams_bashforth": order 2, one per step, from two consecutive velocities; the first step is Euler's. Under "heun" a
    step that ends at sigma 0 is Euler's, since models are not trained at sigma 0; the order is unaffected.

    Integer streams are tokens: for these the field returns logits, and `jump(tokens, logits, sigma, next_sigma, step)`
    updates them in the same loop, always with the logits at the beginning of the step.
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
    """Weights of the predictions in a guided prediction; they sum to 1."""

    full: float  # with text and condition streams
    without_text: float  # with condition streams only
    without_both: float


def guidance_weights(text_scale: float, condition_scale: float) -> GuidanceWeights:
    """Classifier-free guidance on the text and the condition streams with separate scales, as a weighted sum.

    `without_both + condition_scale (without_text - without_both) + text_scale (full - without_text)`, as in
    InstructPix2Pix (Brooks et al., 2023). With both scales 1 only the full prediction remains; a prediction with weight
    0 need not be computed.
    """
    return GuidanceWeights(text_scale, condition_scale - text_scale, 1.0 - condition_scale)


def _per_sample(sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return sigma.to(like).reshape(-1, *[1] * (like.ndim - 1))

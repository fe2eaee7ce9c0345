"""Discrete flow matching of tokens as pure functions. Sigma 0 is clean, sigma 1 is the source.

The path of Discrete Flow Matching (Gat et al., 2024, arXiv 2407.15595) mixes, position by position, the clean token
with a token of the source: it is clean with probability kappa = (1 - sigma)^degree. The generalized KL is the loss of
Flow Matching with General Discrete Paths (Shaul et al., 2024, arXiv 2412.03487) on it. Tokens are int64 [B, L], values
in 0..V-1; sigmas float [B]. The network outputs logits [B, L, V], the posterior of each clean token given all noisy
tokens.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn import functional

from openuni.training.randomness import Name, named_seed, uniforms

Source = Literal["uniform", "mask"]
MIN_SIGMA = 1e-3  # lower clamp of sigma in the loss, since the rate is unbounded towards sigma 0


def kappa(sigma: torch.Tensor, degree: float) -> torch.Tensor:
    """The polynomial scheduler: probability `(1 - sigma)^degree` of a position to be clean; exact at both ends."""
    return (1 - sigma) ** degree


def rate(sigma: torch.Tensor, degree: float) -> torch.Tensor:
    """Jump rate towards the posterior per unit of time 1 - sigma: `kappa' / (1 - kappa)`; infinite at sigma 0."""
    time = 1 - sigma
    return degree * time ** (degree - 1) / (1 - time**degree)


def source_tokens(
    shape: Sequence[int], source: Source, vocabulary: int, mask_token: int, seed: int, *names: Name
) -> torch.Tensor:
    """Tokens int64 of `shape` on the CPU: the mask everywhere, or uniform over 0..vocabulary - 1, drawn by name."""
    if source == "mask":
        return torch.full(tuple(shape), mask_token)
    generator = torch.Generator().manual_seed(named_seed(seed, "source", *names))
    return torch.randint(vocabulary, tuple(shape), generator=generator)


def add_token_noise(
    clean: torch.Tensor, source: torch.Tensor, draws: torch.Tensor, sigma: torch.Tensor, degree: float = 1.0
) -> torch.Tensor:
    """Tokens at `sigma` [B]: clean where the draw is below kappa, else from the source. All int64 [B, L].

    `draws`: uniform numbers in [0, 1), [B, L]. Sigma 0 gives the clean tokens, sigma 1 the source, exactly.
    """
    kept = draws < kappa(sigma.to(draws), degree)[:, None]
    return torch.where(kept, clean, source)


def cross_entropy(logits: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """`-log p(clean)` at every position, float32 [B, L]; minimized in expectation by the true posterior."""
    return functional.cross_entropy(logits.float().transpose(1, 2), clean, reduction="none")


def generalised_kl(
    logits: torch.Tensor, noisy: torch.Tensor, clean: torch.Tensor, sigma: torch.Tensor, degree: float = 1.0
) -> torch.Tensor:
    """Bregman divergence between the conditional jump rates and the model's, at every position, float32 [B, L].

    `rate (clean = noisy ? 1 - p(noisy) : -log p(clean) - p(noisy))`: non-negative, 0 if p(clean) = 1, minimized in
    expectation by the true posterior. Sigma is clamped to at least `MIN_SIGMA`.
    """
    log_p = logits.float().log_softmax(-1)
    at_noisy = log_p.gather(-1, noisy[..., None])[..., 0].exp()
    at_clean = log_p.gather(-1, clean[..., None])[..., 0]
    divergence = torch.where(clean == noisy, 1 - at_noisy, -at_clean - at_noisy)
    return rate(sigma.float().clamp(min=MIN_SIGMA), degree)[:, None] * divergence


def discrete_euler_step(
    noisy: torch.Tensor,
    probabilities: torch.Tensor,
    sigma: float | torch.Tensor,
    next_sigma: float | torch.Tensor,
    draws: torch.Tensor,
    degree: float = 1.0,
) -> torch.Tensor:
    """One step of the jump process with the posterior held fixed: tokens int64 [B, L] at `next_sigma` < `sigma`.

    A position jumps to a token drawn from the posterior [B, L, V] with probability `(kappa' - kappa) / (1 - kappa)`:
    the velocity `rate (posterior - delta_noisy)` integrated exactly over the step. Any step size is valid, and the last
    step, to sigma 0, draws every token from the posterior. `draws`: uniform in [0, 1), [2, B, L]; the first decides
    whether a position jumps, the second selects the token.
    """
    before = kappa(torch.as_tensor(sigma, dtype=torch.float64, device=noisy.device), degree)
    after = kappa(torch.as_tensor(next_sigma, dtype=torch.float64, device=noisy.device), degree)
    jumps = draws[0] < ((after - before) / (1 - before)).to(draws)
    return torch.where(jumps, sample_tokens(probabilities, draws[1]), noisy)


def named_step(
    tokens: torch.Tensor,
    logits: torch.Tensor,
    sigmas: tuple[float, float],
    degree: float,
    step: int,
    seed: int,
    *names: Name,
) -> torch.Tensor:
    """`discrete_euler_step` from the first of `sigmas` to the second, with logits [B, L, V] and named draws.

    Row i's draws depend on (seed, names, i, step) only.
    """
    rows = [uniforms((2, tokens.shape[1]), seed, "jumps", *names, row, step) for row in range(len(tokens))]
    draws = torch.stack(rows, dim=1).to(tokens.device)
    return discrete_euler_step(tokens, logits.double().softmax(-1), *sigmas, draws, degree)


def sample_tokens(probabilities: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Inverse-transform sampling of one token per position: [B, L, V] and uniform [B, L] -> int64 [B, L].

    Never returns a token of probability 0.
    """
    summed = probabilities.double().cumsum(-1)
    places = draws.double()[..., None] * summed[..., -1:]
    return torch.searchsorted(summed, places, right=True)[..., 0].clamp(max=probabilities.shape[-1] - 1)

"""Discrete flow matching: ends, marginals, minima of the losses, and a solver that finds a known distribution."""

from itertools import pairwise

import pytest
import torch

from openuni.training.objectives.discrete_flow_matching import (
    Source,
    add_token_noise,
    cross_entropy,
    discrete_euler_step,
    generalised_kl,
    kappa,
    rate,
    sample_tokens,
    source_tokens,
)
from openuni.training.randomness import uniforms

MASK = 5
VOCABULARY = 5  # and the mask


@pytest.mark.parametrize("degree", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("kind", ["uniform", "mask"])
def test_ends_are_exact_and_marginals_are_the_schedulers(kind: Source, degree: float) -> None:
    shape = (5, 100_000)
    clean = torch.full(shape, 3)
    source = source_tokens(shape, kind, VOCABULARY, MASK, 0, "a")
    sigma = torch.tensor([0.0, 1.0, 0.2, 0.5, 0.9])
    noisy = add_token_noise(clean, source, uniforms(shape, 0, "b"), sigma, degree)
    assert torch.equal(noisy[0], clean[0]) and torch.equal(noisy[1], source[1])
    by_chance = 0.0 if kind == "mask" else 1 / VOCABULARY
    expected = kappa(sigma, degree) + (1 - kappa(sigma, degree)) * by_chance
    torch.testing.assert_close((noisy == 3).float().mean(1), expected, atol=0.006, rtol=0)  # 4 standard deviations
    counts = torch.bincount(source.flatten(), minlength=VOCABULARY + 1) / source.numel()
    wanted = torch.tensor([0, 0, 0, 0, 0, 1.0] if kind == "mask" else [0.2] * 5 + [0])
    torch.testing.assert_close(counts, wanted, atol=0.003, rtol=0)


def test_draws_are_functions_of_their_names() -> None:
    one, again, other = (source_tokens((2, 50), "uniform", 256, 256, 7, *n) for n in [("x", 1), ("x", 1), ("x", 2)])
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert source_tokens((1, 200_000), "uniform", 256_300, 0, 0).max() < 256_300


def posterior(prior: torch.Tensor, noisy: torch.Tensor, sigma: float, degree: float) -> torch.Tensor:
    """[B, 1, V] of the clean token of one position at uniform source, by Bayes."""
    kept = kappa(torch.tensor(sigma), degree)
    same = torch.nn.functional.one_hot(noisy, len(prior))
    weight = prior * (kept * same + (1 - kept) / len(prior))
    return weight / weight.sum(-1, keepdim=True)


@pytest.mark.parametrize("loss", ["cross_entropy", "generalised_kl"])
def test_losses_are_least_at_the_true_posterior(loss: str) -> None:
    prior = torch.tensor([0.5, 0.3, 0.15, 0.05])
    count, sigma, degree = 200_000, 0.6, 2.0
    clean = sample_tokens(prior.expand(count, 1, 4), uniforms((count, 1), 0, "clean"))
    source = source_tokens((count, 1), "uniform", 4, 4, 1)
    sigmas = torch.full((count,), sigma)
    noisy = add_token_noise(clean, source, uniforms((count, 1), 2), sigmas, degree)
    truth = posterior(prior, torch.arange(4)[:, None], sigma, degree)[:, 0].log()  # [noisy, V]

    def mean(table: torch.Tensor) -> torch.Tensor:
        logits = table[noisy]
        if loss == "cross_entropy":
            return cross_entropy(logits, clean).mean()
        return generalised_kl(logits, noisy, clean, sigmas, degree).mean()

    table = truth.clone().requires_grad_()
    best = mean(table)
    best.backward()
    assert table.grad is not None and table.grad.abs().max() < 2e-3  # stationary but for sampling noise
    generator = torch.Generator().manual_seed(3)
    for _ in range(8):
        assert mean(truth + 0.3 * torch.randn(4, 4, generator=generator)) > best


def test_generalised_kl_is_never_negative_and_zero_at_the_truth() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noisy = torch.randint(6, (2, 8, 500), generator=generator)
    sigma = torch.rand(8, generator=generator)
    sigma[0] = 0.0
    logits = 3 * torch.randn(8, 500, 6, generator=generator)
    value = generalised_kl(logits, noisy, clean, sigma)
    assert value.isfinite().all() and value.min() >= -1e-6 * 1e3
    certain = 200.0 * torch.nn.functional.one_hot(clean, 6)
    assert generalised_kl(certain, noisy, clean, sigma).abs().max() == 0
    assert (generalised_kl(-certain, noisy, clean, sigma) > 0).all()


def test_velocity_is_a_rate_and_moves_the_marginal() -> None:
    """d p(token) / d time along the path is what the mean velocity says."""
    prior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    degree, sigma, small = 3.0, 0.5, 1e-5
    every = torch.arange(3)[:, None]

    def marginal(at: float) -> torch.Tensor:
        kept = kappa(torch.tensor(at, dtype=torch.float64), degree)
        return kept * prior + (1 - kept) / 3

    p = posterior(prior, every, sigma, degree)
    velocity = rate(torch.tensor(sigma, dtype=torch.float64), degree) * (p[:, 0] - torch.eye(3))
    torch.testing.assert_close(velocity.sum(-1), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert ((velocity < 0).int() == torch.eye(3, dtype=torch.int32)).all()
    slope = (marginal(sigma - small) - marginal(sigma + small)) / (2 * small)
    torch.testing.assert_close(marginal(sigma) @ velocity, slope, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", ["uniform", "mask"])
def test_solver_recovers_a_joint_distribution(kind: Source) -> None:
    """Two dependent tokens, the exact posterior as model: within 0.02 in total variation after 64 steps."""
    joint = torch.tensor([[0.4, 0.0, 0.1], [0.05, 0.15, 0.0], [0.0, 0.05, 0.25]])
    count, size, degree = 60_000, 3, 1.0
    tokens = source_tokens((count, 2), kind, size, size, 0)
    for step, (sigma, following) in enumerate(pairwise(torch.linspace(1, 0, 65))):
        kept = kappa(sigma, degree)
        states = torch.arange(size + 1)
        by_chance = torch.where(states < size, 1 / size, 0.0) if kind == "uniform" else (states == size).float()
        likely = kept * torch.eye(size + 1)[:, :size] + (1 - kept) * by_chance[:, None]  # [noisy, clean]
        weights = joint * likely[tokens[:, 0]][:, :, None] * likely[tokens[:, 1]][:, None, :]
        weights = weights / weights.sum((1, 2), keepdim=True)
        probabilities = torch.stack([weights.sum(2), weights.sum(1)], 1)
        draws = uniforms((2, count, 2), 1, step)
        tokens = discrete_euler_step(tokens, probabilities, sigma, following, draws, degree)
    assert tokens.max() < size
    found = torch.bincount(tokens[:, 0] * size + tokens[:, 1], minlength=size * size).view(size, size) / count
    assert (found - joint).abs().sum() / 2 < 0.02


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_solver_finds_a_point_mass_exactly(steps: int) -> None:
    target = torch.randint(VOCABULARY, (4, 30), generator=torch.Generator().manual_seed(0))
    certain = torch.nn.functional.one_hot(target, VOCABULARY + 1).float()
    tokens = source_tokens((4, 30), "uniform", VOCABULARY, MASK, 0)
    right = []
    for step, (sigma, following) in enumerate(pairwise(torch.linspace(1, 0, steps + 1))):
        tokens = discrete_euler_step(tokens, certain, sigma, following, uniforms((2, 4, 30), 0, step), degree=2.0)
        right.append(int((tokens == target).sum()))
    assert torch.equal(tokens, target)
    assert right == sorted(right)


def test_tokens_of_no_probability_are_never_drawn() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).expand(1, 4, 5)
    draws = torch.tensor([[0.0, 0.4999, 0.5, 1 - 2**-24]])
    assert sample_tokens(probabilities, draws).tolist() == [[1, 1, 3, 3]]

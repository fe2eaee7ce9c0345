"""Identities of flow matching and of the sampler."""

from itertools import pairwise

import pytest
import torch

from train.flow_matching import (
    euler_step,
    guided,
    noised,
    sampling_sigmas,
    shifted,
    sigma_at,
    stream_losses,
    velocity,
)

SHAPE = (3, 4, 2, 2, 2)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def test_ends_are_exact(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    clean, noise = pair
    mixed = noised(clean, noise, torch.tensor([0.0, 1.0, 0.25]))
    assert torch.equal(mixed[0], clean[0]) and torch.equal(mixed[1], noise[1])
    torch.testing.assert_close(mixed[2], 0.75 * clean[2] + 0.25 * noise[2])


def test_velocity_is_the_derivative_and_euler_follows_it_home(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    clean, noise = pair
    low, high = torch.full((3,), 0.3), torch.full((3,), 0.7)
    slope = (noised(clean, noise, high) - noised(clean, noise, low)) / 0.4
    torch.testing.assert_close(slope, velocity(clean, noise))
    x = noise
    sigmas = sampling_sigmas(7, 3.0)
    for sigma, following in pairwise(sigmas):
        x = euler_step(x, velocity(clean, noise), sigma, following)
    torch.testing.assert_close(x, clean)


def test_shift_keeps_the_ends_and_order() -> None:
    sigma = torch.linspace(0, 1, 101)
    moved = shifted(sigma, 5.0)
    assert moved[0] == 0 and moved[-1] == 1 and (moved.diff() > 0).all()
    assert moved[50] == pytest.approx(5 / 6)
    torch.testing.assert_close(shifted(sigma, 1.0), sigma)


def test_densities() -> None:
    quantiles = (torch.arange(1000) + 0.5) / 1000
    torch.testing.assert_close(sigma_at(quantiles, "uniform", 1.0), quantiles)
    normal = torch.logit(sigma_at(quantiles, "logit_normal", 1.0))
    assert normal.mean().abs() < 1e-4 and normal.std() == pytest.approx(1.0, abs=0.01)


def test_loss_counts_made_streams_only(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    clean, noise = pair
    made = {"rgb": torch.tensor([True, False, True]), "depth": torch.tensor([True, True, False])}
    target = {"rgb": clean, "depth": noise}
    predicted = {"rgb": clean + 2.0, "depth": noise + 3.0}
    torch.testing.assert_close(stream_losses(predicted, target, made), torch.tensor([13.0, 9.0, 4.0]))
    predicted["rgb"][1] = float("nan")  # a given stream's prediction does not enter
    assert stream_losses(predicted, target, made).isfinite().all()


def test_guidance(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    with_text, without = pair
    assert torch.equal(guided(with_text, without, 0.0), without)
    torch.testing.assert_close(guided(with_text, without, 1.0), with_text)
    torch.testing.assert_close(guided(with_text, without, 3.0), with_text + 2 * (with_text - without))

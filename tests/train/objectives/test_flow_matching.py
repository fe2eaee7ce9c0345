"""Identities of flow matching and of the sampler."""

from itertools import pairwise

import pytest
import torch

from openuni.manifests.errors import OpenUniError
from openuni.training.objectives.flow_matching import (
    Solver,
    add_noise,
    euler_step,
    guidance_weights,
    loss_weight,
    sampling_sigmas,
    shift_sigma,
    sigma_at,
    solve,
    stream_losses,
    velocity,
)
from openuni.training.sampler import SamplingOptions

SHAPE = (3, 4, 2, 2, 2)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def test_ends_are_exact(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    clean, noise = pair
    mixed = add_noise(clean, noise, torch.tensor([0.0, 1.0, 0.25]))
    assert torch.equal(mixed[0], clean[0]) and torch.equal(mixed[1], noise[1])
    torch.testing.assert_close(mixed[2], 0.75 * clean[2] + 0.25 * noise[2])


def test_velocity_is_the_derivative_and_euler_follows_it_home(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    clean, noise = pair
    low, high = torch.full((3,), 0.3), torch.full((3,), 0.7)
    slope = (add_noise(clean, noise, high) - add_noise(clean, noise, low)) / 0.4
    torch.testing.assert_close(slope, velocity(clean, noise))
    x = noise
    sigmas = sampling_sigmas(7, 3.0)
    for sigma, following in pairwise(sigmas):
        x = euler_step(x, velocity(clean, noise), sigma, following)
    torch.testing.assert_close(x, clean)


def test_shift_keeps_the_ends_and_order() -> None:
    sigma = torch.linspace(0, 1, 101)
    moved = shift_sigma(sigma, 5.0)
    assert moved[0] == 0 and moved[-1] == 1 and (moved.diff() > 0).all()
    assert moved[50] == pytest.approx(5 / 6)
    torch.testing.assert_close(shift_sigma(sigma, 1.0), sigma)


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


def test_guidance_with_two_scales(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    full, without_text = pair
    without_both = full * without_text

    def guided_twice(text_scale: float, given_scale: float) -> torch.Tensor:
        shares = guidance_weights(text_scale, given_scale)
        assert sum(shares) == pytest.approx(1.0)
        return shares.full * full + shares.without_text * without_text + shares.without_both * without_both

    assert guidance_weights(1.0, 1.0) == (1.0, 0.0, 0.0)
    assert guidance_weights(0.0, 1.0) == (0.0, 1.0, 0.0)
    assert guidance_weights(0.0, 0.0) == (0.0, 0.0, 1.0)
    assert guidance_weights(3.0, 3.0).without_text == guidance_weights(3.0, 1.0).without_both == 0.0
    expected = without_both + 4.0 * (without_text - without_both) + 2.5 * (full - without_text)
    torch.testing.assert_close(guided_twice(2.5, 4.0), expected)
    torch.testing.assert_close(guided_twice(3.0, 1.0), without_text + 3.0 * (full - without_text))


def test_loss_weights(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    sigma = torch.linspace(0, 1, 10001)
    weight = loss_weight(sigma, "gaussian")
    assert weight[[0, -1]].abs().max() < 1e-6 and weight.argmax() == pytest.approx(5000, abs=5)
    assert weight.mean() == pytest.approx(1.0, abs=1e-3)
    # UniVidX's code: the bell over 1000 timesteps, its least taken off, normalised to a mean of 1
    timesteps = torch.arange(1000.0, 0, -1)
    bell = torch.exp(-2 * ((timesteps - 500) / 1000) ** 2)
    bell = (bell - bell.min()) * (1000 / (bell - bell.min()).sum())
    torch.testing.assert_close(loss_weight(timesteps / 1000, "gaussian"), bell, atol=3e-3, rtol=0)
    assert torch.equal(loss_weight(sigma, "none"), torch.ones(10001))
    clean, _ = pair
    made = {"rgb": torch.tensor([True, True, False])}
    weights = {"rgb": torch.tensor([0.5, 2.0, 2.0])}
    found = stream_losses({"rgb": clean + 2.0}, {"rgb": clean}, made, weights)
    torch.testing.assert_close(found, torch.tensor([2.0, 8.0, 0.0]))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("adams_bashforth", 2)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_solvers_converge_with_their_order(solver: Solver, order: int, shift: float) -> None:
    """dx/d sigma = i (1 + 2 sigma) x turns x by 2 rad from sigma 1 to 0; steps of unequal length too."""

    def field(x: dict[str, torch.Tensor], sigma: float) -> dict[str, torch.Tensor]:
        return {"x": 1j * (1 + 2 * sigma) * x["x"]}

    def error(steps: int) -> float:
        sigmas = shift_sigma(torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64), shift)
        found = solve(field, {"x": torch.ones(1, dtype=torch.complex128)}, sigmas, solver)["x"]
        return float((found - torch.exp(torch.tensor(-2j))).abs())

    errors = [error(steps) for steps in (80, 160, 320)]
    found = [torch.log2(torch.tensor(a / b)).item() for a, b in pairwise(errors)]
    assert found == pytest.approx([order, order], abs=0.15)


@pytest.mark.parametrize("solver", ["euler", "heun", "adams_bashforth"])
def test_solvers_are_exact_on_straight_paths(pair: tuple[torch.Tensor, torch.Tensor], solver: Solver) -> None:
    clean, noise = pair
    found = solve(lambda x, sigma: {"x": velocity(clean, noise)}, {"x": noise}, sampling_sigmas(7, 3.0), solver)
    torch.testing.assert_close(found["x"], clean)


def test_heun_never_evaluates_at_sigma_zero() -> None:
    seen: list[float] = []

    def field(x: dict[str, torch.Tensor], sigma: float) -> dict[str, torch.Tensor]:
        seen.append(sigma)
        return x

    solve(field, {"x": torch.ones(1)}, torch.tensor([1.0, 0.5, 0.0]), "heun")
    assert seen == [1.0, 0.5, 0.5]


def test_unknown_solver_is_named() -> None:
    with pytest.raises(OpenUniError, match=r'solver = "hein"\. Did you mean "heun"\? Allowed: euler, heun'):
        SamplingOptions(solver="hein")  # type: ignore[arg-type]

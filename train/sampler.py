"""Sampling: steps from noise to the made streams, with the given streams clean throughout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple, get_args

import torch

from manifests.errors import OpenUniError, unknown_name
from train.flow_matching import Solver, guidance_shares, noised, sampling_sigmas, solve
from train.model import Streams, VideoModel
from train.randomness import normal
from train.tasks import Task


@dataclass(frozen=True)
class Sampling:
    """How to sample."""

    steps: Annotated[int, "steps from noise to clean"] = 50
    shift: Annotated[float, "Wan's shift of the noise levels; best the training's"] = 5.0
    guidance: Annotated[float, "classifier-free guidance on the caption; 1: none"] = 1.0
    seed: Annotated[int, "of the noise"] = 0
    solver: Annotated[Solver, "euler; of second order: heun (two calls of the model a step), adams_bashforth"] = "euler"
    given_guidance: Annotated[float, "the same on the given streams, which then are noise; 1: none"] = 1.0

    def __post_init__(self) -> None:
        if self.solver not in get_args(Solver):
            raise OpenUniError(unknown_name("solver", self.solver, get_args(Solver)))
        if self.steps < 1 or self.shift <= 0:
            raise OpenUniError(f"sampling needs steps >= 1 and shift > 0, got {self.steps} and {self.shift}")


class Conditions(NamedTuple):
    """What a sample is made from: B samples."""

    given: Streams  # clean latents [B, C, T, H, W], on the model's device
    text: dict[str, torch.Tensor]  # [B, L, D] for every stream of the task
    unconditional: torch.Tensor | None  # [L, D]: the empty caption; needed with guidance
    captioned: tuple[str, ...] = ("rgb",)  # streams whose text is the caption, which guidance takes away
    dropped: Streams | None = None  # noise [B, C, T, H, W] in place of the given streams where guidance takes them away


@torch.no_grad()
def sample(model: VideoModel, task: Task, conditions: Conditions, shape: Sequence[int], sampling: Sampling) -> Streams:
    """Latents [B, C, T, H, W] (`shape`) of the made streams, float32 on the device of the texts.

    The noise of item i of a stream depends on (seed, stream, i) only: it is drawn on the CPU, so equal everywhere.
    Where the model wants given streams a little noisy (`given_sigma`), theirs is drawn once, in the same way.
    """
    if set(conditions.given) != set(task.given):
        raise OpenUniError(f'task "{task}" is given {list(task.given)}, got latents of {sorted(conditions.given)}')
    device = conditions.text[task.made[0]].device

    def noise(purpose: str, name: str) -> torch.Tensor:
        items = [normal(shape[1:], sampling.seed, purpose, name, item) for item in range(shape[0])]
        return torch.stack(items).to(device)

    made = {name: noise("sample", name) for name in task.made}
    sigmas = sampling_sigmas(sampling.steps, sampling.shift)
    if sampling.given_guidance != 1.0:
        conditions = conditions._replace(dropped={name: noise("dropped", name) for name in task.given})
    if model.given_sigma > 0:
        _check_above(float(sigmas[-2]), model.given_sigma)
        level = torch.full((shape[0],), model.given_sigma, device=device)
        noisy = {name: noised(clean, noise("given", name), level) for name, clean in conditions.given.items()}
        conditions = conditions._replace(given=noisy)
    return solve(
        lambda streams, sigma: _velocities(model, conditions, streams, sigma, sampling),
        made,
        sigmas,
        sampling.solver,
    )


def _check_above(last: float, given: float) -> None:
    if last <= given:
        raise OpenUniError(
            f"the last step's noise level, {last:.5f}, is not above that of given streams, {given:.5f}: "
            "take fewer steps, or a larger shift"
        )


def _velocities(
    model: VideoModel, conditions: Conditions, made: Streams, sigma: float, sampling: Sampling
) -> dict[str, torch.Tensor]:
    """float32 [B, C, T, H, W] for the made streams, guided; the model is called for what guidance needs, no more."""
    like = next(iter(made.values()))
    captioned = [name for name in conditions.captioned if name in conditions.text]
    given_scale = sampling.given_guidance if conditions.given else 1.0
    # without a caption, "full" and "without text" are one prediction; without given streams, the other two are
    shares = guidance_shares(sampling.guidance if captioned else given_scale, given_scale)
    text = {"full": conditions.text}
    if shares.without_text or shares.without_both:
        text |= dict.fromkeys(shares._fields[1:], conditions.text | _emptied(conditions, captioned))
    guided: dict[str, torch.Tensor] = {}
    for kind, share in shares._asdict().items():
        if share == 0.0:
            continue
        dropped = kind == "without_both"
        given = (conditions.dropped or {}) if dropped else conditions.given
        level = dict.fromkeys(made, sigma) | dict.fromkeys(given, 1.0 if dropped else model.given_sigma)
        sigmas = {name: torch.full((like.shape[0],), value, device=like.device) for name, value in level.items()}
        predicted = model(given | made, sigmas, text[kind])
        guided = {name: guided.get(name, 0.0) + share * predicted[name].float() for name in made}
    return guided


def _emptied(conditions: Conditions, captioned: Sequence[str]) -> dict[str, torch.Tensor]:
    """The empty caption [B, L, D] for the streams that are told the caption."""
    if not captioned:
        return {}
    if conditions.unconditional is None:
        raise OpenUniError("guidance needs the embedding of the empty caption")
    like = conditions.text[captioned[0]]
    return dict.fromkeys(captioned, conditions.unconditional.to(like.device).expand_as(like))

"""Sampling: steps from noise to the made streams, with the given streams clean throughout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Gt

from openuni.manifests.contracts.options import check_options
from openuni.manifests.errors import OpenUniError
from openuni.training.model import Streams, VideoModel
from openuni.training.objectives.discrete_flow_matching import named_step
from openuni.training.objectives.flow_matching import Solver, guidance_shares, noised, sampling_sigmas, solve
from openuni.training.randomness import normal
from openuni.training.tasks import TEXT, Task

COLDEST = 1e-6  # a temperature at which all but the likeliest token are out of the question


@dataclass(frozen=True)
class Sampling:
    """How to sample."""

    steps: Annotated[int, "steps from noise to clean", Ge(1)] = 50
    shift: Annotated[float, "Wan's shift of the noise levels; best the training's", Gt(0)] = 5.0
    guidance: Annotated[float, "classifier-free guidance on the caption; 1: none"] = 1.0
    seed: Annotated[int, "of the noise"] = 0
    solver: Annotated[Solver, "euler; of second order: heun (two calls of the model a step), adams_bashforth"] = "euler"
    given_guidance: Annotated[float, "the same on the given streams, which then are noise; 1: none"] = 1.0
    temperature: Annotated[
        float, "of tokens of a made text: 1 as learnt; less: likelier ones; 0: the likeliest", Ge(0)
    ] = 1.0

    def __post_init__(self) -> None:
        check_options(self, "sampling")


class SampledText(NamedTuple):
    """The text stream of a model that has one."""

    tokens: torch.Tensor  # where it is given: clean, int64 [B, L]; where it is made: as `TextDraws.start`, [B, L(, D)]
    empty: torch.Tensor  # int64 [L]: the empty text; guidance takes a given one away
    degree: float  # of the path of tokens


class Conditions(NamedTuple):
    """What a sample is made from: B samples."""

    given: Streams  # clean latents [B, C, T, H, W], on the model's device
    text: dict[str, torch.Tensor]  # [B, L, D] for every stream of the task
    unconditional: torch.Tensor | None  # [L, D]: the empty caption; needed with guidance
    captioned: tuple[str, ...] = ("rgb",)  # streams whose text is the caption, which guidance takes away
    dropped: Streams | None = None  # noise [B, C, T, H, W] in place of the given streams where guidance takes them away
    words: SampledText | None = None  # the text stream, made or given


@torch.no_grad()
def sample(model: VideoModel, task: Task, conditions: Conditions, shape: Sequence[int], sampling: Sampling) -> Streams:
    """Latents [B, C, T, H, W] (`shape`) of the made streams, float32 on the device of the texts.

    A made text is among them as "text", token values int64 [B, L]; it is made in the same steps as the video.

    The noise of item i of a stream depends on (seed, stream, i) only: it is drawn on the CPU, so equal everywhere.
    Where the model wants given streams a little noisy (`given_sigma`), theirs is drawn once, in the same way.
    """
    if set(conditions.given) != set(task.given):
        raise OpenUniError(f'task "{task}" is given {list(task.given)}, got latents of {sorted(conditions.given)}')
    device = conditions.text[task.streams[0]].device

    def noise(purpose: str, name: str) -> torch.Tensor:
        items = [normal(shape[1:], sampling.seed, purpose, name, item) for item in range(shape[0])]
        return torch.stack(items).to(device)

    made = {name: noise("sample", name) for name in task.made}
    if task.makes_text:
        if conditions.words is None:
            raise OpenUniError(f'task "{task}" makes text: the beginning of one is missing')
        made[TEXT] = conditions.words.tokens.to(device)
    sigmas = sampling_sigmas(sampling.steps, sampling.shift)
    if sampling.given_guidance != 1.0:
        conditions = conditions._replace(dropped={name: noise("dropped", name) for name in task.given})
    if model.given_sigma > 0:
        _check_above(float(sigmas[-2]), model.given_sigma)
        level = torch.full((shape[0],), model.given_sigma, device=device)
        noisy = {name: noised(clean, noise("given", name), level) for name, clean in conditions.given.items()}
        conditions = conditions._replace(given=noisy)
    made = solve(
        lambda streams, sigma: _velocities(model, conditions, streams, sigma, sampling),
        made,
        sigmas,
        sampling.solver,
        lambda tokens, logits, *place: _jump(tokens, logits, conditions, sampling, *place),
    )
    if TEXT in made and made[TEXT].is_floating_point():
        made[TEXT] = _nearest_tokens(model, conditions, made)
    return made


def _jump(
    tokens: torch.Tensor,
    logits: torch.Tensor,
    conditions: Conditions,
    sampling: Sampling,
    sigma: float,
    following: float,
    step: int,
) -> torch.Tensor:
    assert conditions.words is not None
    logits = logits.double() / max(sampling.temperature, COLDEST)
    return named_step(tokens, logits, (sigma, following), conditions.words.degree, step, sampling.seed)


def _nearest_tokens(model: VideoModel, conditions: Conditions, made: Streams) -> torch.Tensor:
    """Clean embeddings [B, L, D] -> int64 [B, L]: the values that the model thinks likeliest, all streams clean."""
    streams = conditions.given | made
    still = {name: torch.zeros(len(stream), device=stream.device) for name, stream in streams.items()}
    values: torch.Tensor = model(streams, still, conditions.text)[TEXT].argmax(-1)
    return values


def _check_above(last: float, given: float) -> None:
    if last <= given:
        raise OpenUniError(
            f"the last step's noise level, {last:.5f}, is not above that of given streams, {given:.5f}: "
            "take fewer steps, or a larger shift"
        )


def _velocities(
    model: VideoModel, conditions: Conditions, made: Streams, sigma: float, sampling: Sampling
) -> dict[str, torch.Tensor]:
    """Where the made streams go, guided: velocities float32 [B, C, T, H, W], and of tokens the logits.

    The model is called for what guidance needs, no more. Text is not guided: it is what the full conditions say.
    """
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
        if share == 0.0 and not (kind == "full" and TEXT in made):
            continue
        dropped = kind == "without_both"
        given = (conditions.dropped or {}) if dropped else conditions.given
        level = dict.fromkeys(made, sigma) | dict.fromkeys(given, 1.0 if dropped else model.given_sigma)
        words = _given_text(conditions, made, empty=kind != "full")
        level |= dict.fromkeys(words, 0.0)
        sigmas = {name: torch.full((like.shape[0],), value, device=like.device) for name, value in level.items()}
        predicted = model(given | made | words, sigmas, text[kind])
        if kind == "full" and TEXT in made:
            output = "text_velocity" if made[TEXT].is_floating_point() else TEXT
            guided[TEXT] = predicted[output].float()
        videos = [name for name in made if name != TEXT]
        guided |= {name: guided.get(name, 0.0) + share * predicted[name].float() for name in videos}
    return guided


def _given_text(conditions: Conditions, made: Streams, *, empty: bool) -> Streams:
    """The text stream where it is given, clean; nothing where there is none, or it is made."""
    words = conditions.words
    if words is None or TEXT in made:
        return {}
    return {TEXT: words.empty.to(words.tokens.device).expand_as(words.tokens) if empty else words.tokens}


def _emptied(conditions: Conditions, captioned: Sequence[str]) -> dict[str, torch.Tensor]:
    """The empty caption [B, L, D] for the streams that are told the caption."""
    if not captioned:
        return {}
    if conditions.unconditional is None:
        raise OpenUniError("guidance needs the embedding of the empty caption")
    like = conditions.text[captioned[0]]
    return dict.fromkeys(captioned, conditions.unconditional.to(like.device).expand_as(like))

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
from openuni.training.objectives.flow_matching import Solver, add_noise, guidance_weights, sampling_sigmas, solve
from openuni.training.randomness import normal
from openuni.training.tasks import TEXT, Task

MIN_TEMPERATURE = 1e-6  # a temperature at which all but the likeliest token are out of the question


@dataclass(frozen=True)
class SamplingOptions:
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


class TextState(NamedTuple):
    """The text stream of a model that has one."""

    tokens: torch.Tensor  # where it is given: clean, int64 [B, L]; where it is made: as `TextDraws.start`, [B, L(, D)]
    empty: torch.Tensor  # int64 [L]: the empty text; guidance takes a given one away
    degree: float  # of the path of tokens


class SamplerInputs(NamedTuple):
    """What a sample is made from: B samples."""

    conditions: Streams  # clean latents [B, C, T, H, W], on the model's device
    text: dict[str, torch.Tensor]  # [B, L, D] for every stream of the task
    unconditional: torch.Tensor | None  # [L, D]: the empty caption; needed with guidance
    caption_streams: tuple[str, ...] = ("rgb",)  # streams whose text is the caption, which guidance takes away
    dropped: Streams | None = None  # noise [B, C, T, H, W] in place of the given streams where guidance takes them away
    text_state: TextState | None = None  # the text stream, made or given


@torch.no_grad()
def sample(
    model: VideoModel, task: Task, inputs: SamplerInputs, shape: Sequence[int], sampling: SamplingOptions
) -> Streams:
    """Latents [B, C, T, H, W] (`shape`) of the made streams, float32 on the device of the texts.

    A made text is among them as "text", token values int64 [B, L]; it is made in the same steps as the video.

    The noise of item i of a stream depends on (seed, stream, i) only: it is drawn on the CPU, so equal everywhere.
    Where the model wants given streams a little noisy (`condition_sigma`), theirs is drawn once, in the same way.
    """
    if set(inputs.conditions) != set(task.conditions):
        raise OpenUniError(
            f'task "{task}" is given {list(task.conditions)}, got latents of {sorted(inputs.conditions)}'
        )
    device = inputs.text[task.streams[0]].device

    def noise(purpose: str, name: str) -> torch.Tensor:
        items = [normal(shape[1:], sampling.seed, purpose, name, item) for item in range(shape[0])]
        return torch.stack(items).to(device)

    made = {name: noise("sample", name) for name in task.targets}
    if task.generates_text:
        if inputs.text_state is None:
            raise OpenUniError(f'task "{task}" makes text: the beginning of one is missing')
        made[TEXT] = inputs.text_state.tokens.to(device)
    sigmas = sampling_sigmas(sampling.steps, sampling.shift)
    if sampling.given_guidance != 1.0:
        inputs = inputs._replace(dropped={name: noise("dropped", name) for name in task.conditions})
    if model.condition_sigma > 0:
        _check_above(float(sigmas[-2]), model.condition_sigma)
        level = torch.full((shape[0],), model.condition_sigma, device=device)
        noisy = {name: add_noise(clean, noise("given", name), level) for name, clean in inputs.conditions.items()}
        inputs = inputs._replace(conditions=noisy)
    made = solve(
        lambda streams, sigma: _velocities(model, inputs, streams, sigma, sampling),
        made,
        sigmas,
        sampling.solver,
        lambda tokens, logits, *place: _jump(tokens, logits, inputs, sampling, *place),
    )
    if TEXT in made and made[TEXT].is_floating_point():
        made[TEXT] = _nearest_tokens(model, inputs, made)
    return made


def _jump(
    tokens: torch.Tensor,
    logits: torch.Tensor,
    inputs: SamplerInputs,
    sampling: SamplingOptions,
    sigma: float,
    following: float,
    step: int,
) -> torch.Tensor:
    assert inputs.text_state is not None
    logits = logits.double() / max(sampling.temperature, MIN_TEMPERATURE)
    return named_step(tokens, logits, (sigma, following), inputs.text_state.degree, step, sampling.seed)


def _nearest_tokens(model: VideoModel, inputs: SamplerInputs, made: Streams) -> torch.Tensor:
    """Clean embeddings [B, L, D] -> int64 [B, L]: the values that the model thinks likeliest, all streams clean."""
    streams = inputs.conditions | made
    still = {name: torch.zeros(len(stream), device=stream.device) for name, stream in streams.items()}
    values: torch.Tensor = model(streams, still, inputs.text)[TEXT].argmax(-1)
    return values


def _check_above(last: float, given: float) -> None:
    if last <= given:
        raise OpenUniError(
            f"the last step's noise level, {last:.5f}, is not above that of given streams, {given:.5f}: "
            "take fewer steps, or a larger shift"
        )


def _velocities(
    model: VideoModel, inputs: SamplerInputs, made: Streams, sigma: float, sampling: SamplingOptions
) -> dict[str, torch.Tensor]:
    """Where the made streams go, guided: velocities float32 [B, C, T, H, W], and of tokens the logits.

    The model is called for what guidance needs, no more. Text is not guided: it is what the full inputs say.
    """
    like = next(iter(made.values()))
    captioned = [name for name in inputs.caption_streams if name in inputs.text]
    given_scale = sampling.given_guidance if inputs.conditions else 1.0
    # without a caption, "full" and "without text" are one prediction; without given streams, the other two are
    shares = guidance_weights(sampling.guidance if captioned else given_scale, given_scale)
    text = {"full": inputs.text}
    if shares.without_text or shares.without_both:
        text |= dict.fromkeys(shares._fields[1:], inputs.text | _with_empty_caption(inputs, captioned))
    guided: dict[str, torch.Tensor] = {}
    for kind, share in shares._asdict().items():
        if share == 0.0 and not (kind == "full" and TEXT in made):
            continue
        dropped = kind == "without_both"
        given = (inputs.dropped or {}) if dropped else inputs.conditions
        level = dict.fromkeys(made, sigma) | dict.fromkeys(given, 1.0 if dropped else model.condition_sigma)
        words = _condition_text(inputs, made, empty=kind != "full")
        level |= dict.fromkeys(words, 0.0)
        sigmas = {name: torch.full((like.shape[0],), value, device=like.device) for name, value in level.items()}
        predicted = model(given | made | words, sigmas, text[kind])
        if kind == "full" and TEXT in made:
            output = "text_velocity" if made[TEXT].is_floating_point() else TEXT
            guided[TEXT] = predicted[output].float()
        videos = [name for name in made if name != TEXT]
        guided |= {name: guided.get(name, 0.0) + share * predicted[name].float() for name in videos}
    return guided


def _condition_text(inputs: SamplerInputs, made: Streams, *, empty: bool) -> Streams:
    """The text stream where it is given, clean; nothing where there is none, or it is made."""
    words = inputs.text_state
    if words is None or TEXT in made:
        return {}
    return {TEXT: words.empty.to(words.tokens.device).expand_as(words.tokens) if empty else words.tokens}


def _with_empty_caption(inputs: SamplerInputs, captioned: Sequence[str]) -> dict[str, torch.Tensor]:
    """The empty caption [B, L, D] for the streams that are told the caption."""
    if not captioned:
        return {}
    if inputs.unconditional is None:
        raise OpenUniError("guidance needs the embedding of the empty caption")
    like = inputs.text[captioned[0]]
    return dict.fromkeys(captioned, inputs.unconditional.to(like.device).expand_as(like))

"""Sampling: solver steps from noise to the target streams, with the condition streams kept clean."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Gt

from openuni.manifests.contracts.options import check_options
from openuni.manifests.errors import OpenUniError
from openuni.training.finite import NonFiniteError, all_finite
from openuni.training.model import Streams, VideoModel
from openuni.training.objectives.discrete_flow_matching import named_step
from openuni.training.objectives.flow_matching import Solver, add_noise, guidance_weights, sampling_sigmas, solve
from openuni.training.randomness import normal
from openuni.training.tasks import TEXT, Task

MIN_TEMPERATURE = 1e-6  # low enough for greedy decoding, and safe to divide by


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling options."""

    steps: Annotated[int, "number of solver steps", Ge(1)] = 50
    shift: Annotated[float, "timestep shift of the noise levels; preferably that of the training", Gt(0)] = 5.0
    guidance_scale: Annotated[float, "guidance scale for the prompt; 1 disables guidance"] = 1.0
    seed: Annotated[int, "random seed of the noise"] = 0
    solver: Annotated[
        Solver, "solver: euler (first order), heun (second order, two model calls per step) or adams_bashforth (second)"
    ] = "euler"
    condition_guidance_scale: Annotated[float, "guidance scale for the condition streams; 1 disables guidance"] = 1.0
    temperature: Annotated[float, "sampling temperature for text; 0 is greedy decoding", Ge(0)] = 1.0
    negative_prompt: Annotated[str, "text that guidance moves away from, in place of the empty caption"] = ""

    def __post_init__(self) -> None:
        check_options(self, "sampling")


class TextState(NamedTuple):
    """The text stream of a model that has one."""

    tokens: torch.Tensor  # condition: clean, int64 [B, L]; target: as `TextSampler.start`, [B, L(, D)]
    empty: torch.Tensor  # int64 [L]: the empty text or negative prompt, which replaces a condition for guidance
    degree: float  # degree of the discrete flow matching path


class SamplerInputs(NamedTuple):
    """Inputs of `sample`, for B samples."""

    conditions: Streams  # clean latents [B, C, T, H, W], on the model's device
    text: dict[str, torch.Tensor]  # [B, L, D] for every stream of the task
    unconditional: torch.Tensor | None  # [L, D]: the empty caption or negative prompt; needed with guidance
    caption_streams: tuple[str, ...] = ("rgb",)  # streams whose text guidance replaces, see `guided_streams`
    dropped: Streams | None = None  # noise [B, C, T, H, W] that replaces the condition streams for guidance
    text_state: TextState | None = None  # the text stream, as target or condition


@torch.no_grad()
def sample(
    model: VideoModel, task: Task, inputs: SamplerInputs, shape: Sequence[int], sampling: SamplingOptions
) -> Streams:
    """Latents [B, C, T, H, W] (`shape`) of the target streams, float32 on the device of the text embeddings.

    A target text is returned as "text", token values int64 [B, L]; it is generated in the same steps as the video.

    The noise of item i of a stream depends only on (seed, stream, i). It is drawn on the CPU, so it is equal on every
    device. With a positive `condition_sigma`, the noise of condition streams is drawn once, in the same way. Raises
    `OpenUniError` if the inputs do not match the task, `NonFiniteError` if conditions or results are NaN or infinite.
    """
    if set(inputs.conditions) != set(task.conditions):
        raise OpenUniError(
            f'task "{task}": condition streams must be {list(task.conditions)}, got latents of '
            f"{sorted(inputs.conditions)}"
        )
    for name, tensors in (("condition", inputs.conditions), ("text embedding", inputs.text)):
        _check_finite(f'task "{task}": {name}', tensors)
    device = inputs.text[task.streams[0]].device

    def noise(purpose: str, name: str) -> torch.Tensor:
        items = [normal(shape[1:], sampling.seed, purpose, name, item) for item in range(shape[0])]
        return torch.stack(items).to(device)

    targets = {name: noise("sample", name) for name in task.targets}
    if task.generates_text:
        if inputs.text_state is None:
            raise OpenUniError(f'task "{task}" generates text: text_state is required')
        targets[TEXT] = inputs.text_state.tokens.to(device)
    sigmas = sampling_sigmas(sampling.steps, sampling.shift)
    if sampling.condition_guidance_scale != 1.0:
        inputs = inputs._replace(dropped={name: noise("dropped", name) for name in task.conditions})
    if model.condition_sigma > 0:
        _check_above(float(sigmas[-2]), model.condition_sigma)
        level = torch.full((shape[0],), model.condition_sigma, device=device)
        noisy = {name: add_noise(clean, noise("given", name), level) for name, clean in inputs.conditions.items()}
        inputs = inputs._replace(conditions=noisy)
    targets = solve(
        lambda streams, sigma: _velocities(model, inputs, streams, sigma, sampling),
        targets,
        sigmas,
        sampling.solver,
        lambda tokens, logits, *place: _jump(tokens, logits, inputs, sampling, *place),
    )
    if TEXT in targets and targets[TEXT].is_floating_point():
        targets[TEXT] = _nearest_tokens(model, inputs, targets)
    _check_finite(f'task "{task}": generated', targets)
    return targets


def _check_finite(what: str, streams: Streams) -> None:
    """Raise `NonFiniteError` that names the first stream with NaN or infinite values."""
    for name, tensor in streams.items():
        if not all_finite([tensor]):
            raise NonFiniteError(f"{what} {name} has NaN or infinite values")


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


def _nearest_tokens(model: VideoModel, inputs: SamplerInputs, targets: Streams) -> torch.Tensor:
    """Clean embeddings [B, L, D] -> int64 [B, L]: the most likely token values, with all streams clean."""
    streams = inputs.conditions | targets
    still = {name: torch.zeros(len(stream), device=stream.device) for name, stream in streams.items()}
    logits = model(streams, still, inputs.text)[TEXT]
    _check_finite("logits of", {TEXT: logits})  # the maximum of NaN would be a token
    values: torch.Tensor = logits.argmax(-1)
    return values


def _check_above(last: float, condition: float) -> None:
    if last <= condition:
        raise OpenUniError(
            f"noise level of the last step, {last:.5f}, must be above that of condition streams, {condition:.5f}. "
            "Use fewer steps or a larger shift."
        )


def _velocities(
    model: VideoModel, inputs: SamplerInputs, targets: Streams, sigma: float, sampling: SamplingOptions
) -> dict[str, torch.Tensor]:
    """Guided velocities of the target streams, float32 [B, C, T, H, W], and logits of text tokens.

    The model is called only for predictions with a non-zero guidance weight. Text is never guided.
    """
    like = next(iter(targets.values()))
    captioned = [name for name in inputs.caption_streams if name in inputs.text]
    condition_scale = sampling.condition_guidance_scale if inputs.conditions else 1.0
    # without a caption, "full" and "without text" are the same prediction; without conditions, the other two are
    shares = guidance_weights(sampling.guidance_scale if captioned else condition_scale, condition_scale)
    text = {"full": inputs.text}
    if shares.without_text or shares.without_both:
        text |= dict.fromkeys(shares._fields[1:], inputs.text | _with_empty_caption(inputs, captioned))
    guided: dict[str, torch.Tensor] = {}
    for kind, share in shares._asdict().items():
        if share == 0.0 and not (kind == "full" and TEXT in targets):
            continue
        dropped = kind == "without_both"
        conditions = (inputs.dropped or {}) if dropped else inputs.conditions
        level = dict.fromkeys(targets, sigma) | dict.fromkeys(conditions, 1.0 if dropped else model.condition_sigma)
        condition_text = _condition_text(inputs, targets, empty=kind != "full")
        level |= dict.fromkeys(condition_text, 0.0)
        sigmas = {name: torch.full((like.shape[0],), value, device=like.device) for name, value in level.items()}
        predicted = model(conditions | targets | condition_text, sigmas, text[kind])
        if kind == "full" and TEXT in targets:
            output = "text_velocity" if targets[TEXT].is_floating_point() else TEXT
            guided[TEXT] = predicted[output].float()
        videos = [name for name in targets if name != TEXT]
        guided |= {name: guided.get(name, 0.0) + share * predicted[name].float() for name in videos}
    _check_finite(f"at noise level {sigma:.3g}, the model's output for", guided)
    return guided


def _condition_text(inputs: SamplerInputs, targets: Streams, *, empty: bool) -> Streams:
    """The clean text stream as a condition; empty if there is no text stream or it is a target."""
    state = inputs.text_state
    if state is None or TEXT in targets:
        return {}
    return {TEXT: state.empty.to(state.tokens.device).expand_as(state.tokens) if empty else state.tokens}


def _with_empty_caption(inputs: SamplerInputs, captioned: Sequence[str]) -> dict[str, torch.Tensor]:
    """The empty caption [B, L, D] for the streams conditioned on the caption."""
    if not captioned:
        return {}
    if inputs.unconditional is None:
        raise OpenUniError("guidance requires the embedding of the empty caption")
    like = inputs.text[captioned[0]]
    return dict.fromkeys(captioned, inputs.unconditional.to(like.device).expand_as(like))

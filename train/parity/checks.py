"""Parity checks: models on Wan reproduce diffusers' pretrained model at initialization and receive gradients.

Each check compares a model with diffusers' `WanTransformer3DModel` on the same weights, or with itself. It has a
figure, a tolerance and a verdict. Memory: about twice the weights in float32, plus their gradients for one check.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from openuni.manifests.contracts.inference import float32_arithmetic
from openuni.manifests.errors import OpenUniError
from openuni.training.backbone.lora import gated_layers, load_adapter, save_adapter
from openuni.training.backbone.pretrained import defer_base_weights, weight_shards
from openuni.training.backbone.wan import WanModel
from openuni.training.loop.training_checkpoint import load_model, model_tensors
from openuni.training.model import Streams
from openuni.training.models.unityvideo import UnityVideoTransformer
from openuni.training.models.unividx import UniVidXTransformer
from openuni.training.parity.subject import (
    SHAPES,
    TOLERANCES,
    Measurement,
    NotApplicable,
    Subject,
    build_subject,
    checkpointing_of,
    difference,
    has_gradient,
    perturbing,
    plain_model,
    relative_difference,
    requiring_gradients,
    time_in_float32,
    with_config,
)

ParityStatus = Literal["passed", "failed", "does not apply", "not run"]


class ParityResult(NamedTuple):
    """Result of one parity check."""

    name: str
    verdict: ParityStatus
    figure: float | None  # the measured value; `what` states its unit
    tolerance: float | None  # the maximum figure that passes
    what: str  # description of the figure, or the reason why it is missing


def run_parity_checks(
    component: WanModel, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Iterator[ParityResult]:
    """Run all parity checks in order and yield each result. `dtype`: float32, or bfloat16 through autocast.

    Raises `OpenUniError` without a pretrained model. An error inside a check makes that check fail.
    """
    if not component.pretrained:
        raise OpenUniError("parity requires a pretrained model: pass its folder or hub name")
    component.base_options()
    names = iter(PARITY_CHECKS.items())
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            subject = build_subject(component, torch.device(device), dtype)
    except (OpenUniError, RuntimeError) as error:
        yield ParityResult(next(names)[0], "failed", None, 0.0, _line(error))
        yield from (ParityResult(name, "not run", None, None, "the model could not be built") for name, _ in names)
        return
    for name, measure in names:
        yield _outcome(name, measure, subject)


def _outcome(name: str, measure: Callable[[Subject], Measurement], subject: Subject) -> ParityResult:
    try:
        # the tolerances are those of 32-bit arithmetic; PyTorch's default on GPUs is TF32 for convolutions, and sums of
        # bfloat16 products that are rounded to bfloat16 between parts
        with torch.random.fork_rng(), float32_arithmetic("ieee", "ieee"), full_precision_sums():
            torch.manual_seed(0)
            found = measure(subject)
    except NotApplicable as reason:
        return ParityResult(name, "does not apply", None, None, str(reason))
    except (OpenUniError, RuntimeError) as error:
        return ParityResult(name, "failed", None, None, _line(error))
    finally:
        subject.model.zero_grad(set_to_none=True)
    return ParityResult(name, "passed" if found.figure <= found.tolerance else "failed", *found)


@contextmanager
def full_precision_sums() -> Iterator[None]:
    """Context in which GPUs add the products of 16-bit matrices in 32 bits, whatever the process has set."""
    switches: Any = torch.backends.cuda.matmul
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    before = {name: getattr(switches, name) for name in names}
    try:
        for name in names:
            setattr(switches, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(switches, name, value)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


# ---------------------------------------------------------------- the checks


def keys(subject: Subject) -> Measurement:
    """Every tensor of the files is in the model with the same name, shape and values."""
    base = subject.model.base_tensors()
    odd, seen = set(base) ^ set(subject.plain.state_dict()), set()
    for name, stored in (item for shard in weight_shards(subject.component.folder()) for item in shard.items()):
        seen.add(name)
        ours = base[name].cpu() if name in base else None
        if ours is None or not torch.equal(ours, stored.to(ours.dtype)) or not ours.isfinite().all():
            odd.add(name)
    odd |= set(base) - seen
    added = len(subject.model.added_parameters())
    what = f"tensors (of {len(base)}) that differ from the files or are not finite{_named(odd)}; {added} newly added"
    return Measurement(len(odd), 0, what)


@torch.no_grad()
def bitwise(subject: Subject) -> Measurement:
    """A single stream gives the plain model's output, with and without gradient checkpointing."""
    figure, runs = 0.0, 0
    for size in SHAPES:
        for name in subject.model.streams:
            inputs = subject.inputs((name,), size)
            expected = subject.run_reference(name, inputs)
            for checkpointing in (False, True):
                with torch.set_grad_enabled(checkpointing), checkpointing_of(subject.model, checkpointing):
                    ours = subject.run_model(subject.model, *inputs)[name].detach()
                figure, runs = max(figure, difference(ours, expected)), runs + 1
    return Measurement(figure, 0.0, f"maximum difference from diffusers' model, single stream, {runs} runs")


def perturbed(subject: Subject) -> Measurement:
    """Zero-initialized tensors have gradients; perturbed, they change the output and all additions have gradients.

    This detects disconnected parameters and a second zero in series.
    """
    model, inputs = subject.model, subject.inputs(subject.names)
    added = {name: model.get_parameter(name) for name in model.added_parameters()}
    zero = [name for name, parameter in added.items() if not parameter.detach().any()]
    if not added:
        raise NotApplicable("the model adds no parameters")
    if not zero and getattr(subject.component, "switcher", "") != "none":
        raise OpenUniError("no newly added parameter is zero-initialized")
    with requiring_gradients(added.values()):
        before = _backward(subject, inputs)
        dead = {name for name in zero if not has_gradient(added[name])}
        with perturbing(added[name] for name in zero or added):
            model.zero_grad(set_to_none=True)
            after = _backward(subject, inputs)
            dead |= {name for name, parameter in added.items() if not has_gradient(parameter)}
    moved = max(difference(value, before[name]) for name, value in after.items())
    return Measurement(
        len(dead) + (not 0 < moved < math.inf),
        0,
        f"newly added parameters (of {len(added)}, {len(zero)} zero-initialized) without a finite gradient"
        + _named(dead)
        + ("" if moved else "; outputs do not change")
        + ("; outputs are not finite" if moved == math.inf else ""),
    )


@torch.no_grad()
def layouts(subject: Subject) -> Measurement:
    """Joint attention over rows equals one concatenated sequence; without it, each row equals the plain model."""
    model = subject.model
    if not isinstance(model, UnityVideoTransformer | UniVidXTransformer):
        raise NotApplicable("the model has one latent stream, so layouts cannot be compared")
    if len(model.streams) < 2:
        raise NotApplicable("the model has one stream; pass more modalities")
    if isinstance(model, UniVidXTransformer) and not model.config.cross_modal:
        raise NotApplicable("the streams do not attend to one another (cross_modal = false)")
    inputs = subject.inputs(model.streams)
    base, options = model.base_tensors(), subject.component.base_options()
    with defer_base_weights():
        side = UnityVideoTransformer(model.streams, 8, "per_segment", **options)
        rows = UniVidXTransformer(model.streams, model.streams, 1, **options)
    for other in (side, rows):
        other.load_base([base], str(subject.device), share=True)
        other.to(subject.device)
    expected = subject.run_model(rows, *inputs)
    if isinstance(model, UniVidXTransformer):
        pairs = [(subject.run_model(side, *inputs), subject.run_model(model, *inputs))]
    else:
        with with_config(model, rope_layout="per_segment"):
            pairs = [(subject.run_model(model, *inputs), expected)]
    with with_config(rows, cross_modal=False):
        alone = subject.run_model(rows, *inputs)
    pairs.append((alone, {name: subject.run_reference(name, inputs) for name in model.streams}))
    figure = max(relative_difference(ours[name], theirs[name]) for ours, theirs in pairs for name in theirs)
    what = f"maximum relative difference: {len(model.streams)} streams joint and as rows; single rows and plain"
    return Measurement(figure, TOLERANCES[subject.dtype], what)


def gradients(subject: Subject) -> Measurement:
    """The base parameters receive the same gradients as in the plain model."""
    model, plain = subject.model, subject.plain
    name = model.streams[0]
    if isinstance(model, UnityVideoTransformer) and name != "rgb":
        raise NotApplicable(
            "only rgb uses the base input and output layers, and the streams do not include rgb; add rgb"
        )
    inputs = subject.inputs((name,))
    parameters = {key: model.get_parameter(key) for key in plain.state_dict()}
    with requiring_gradients(parameters.values()), requiring_gradients(plain.parameters()):
        subject.run_model(model, *inputs)[name].float().square().mean().backward()
        subject.run_reference(name, inputs).float().square().mean().backward()
    figure = 0.0
    for key, theirs in plain.named_parameters():
        if parameters[key].grad is None or theirs.grad is None:
            raise OpenUniError(f"{key} has no gradient")
        figure = max(figure, relative_difference(parameters[key].grad, theirs.grad))
        parameters[key].grad = theirs.grad = None
    return Measurement(
        figure, TOLERANCES[subject.dtype], f"maximum relative difference of the gradients of {len(parameters)} tensors"
    )


@torch.no_grad()
def round_trip(subject: Subject) -> Measurement:
    """Saving and loading preserve outputs: base as a diffusers folder, additions as a checkpoint, LoRAs as files."""
    model, name = subject.model, subject.model.streams[0]
    inputs = subject.inputs(subject.names)
    figure = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subject.plain.save_pretrained(folder / "base", max_shard_size="5GB")
        again = time_in_float32(plain_model(folder / "base").to(subject.device))
        figure = relative_difference(subject.run_reference(name, inputs, again), subject.run_reference(name, inputs))
        del again
        added = [model.get_parameter(key) for key in model.added_parameters()]
        with perturbing(added):
            expected = subject.run_model(model, *inputs)
            save_file({key: t.contiguous() for key, t in model_tensors(model).items()}, folder / "model.safetensors")
            component = subject.component
            read = (component if model.unsaved else component.resolved()).load(str(subject.device))
            load_model(read, load_file(folder / "model.safetensors"), folder)
            outputs = [subject.run_model(read, *inputs)]
            if gated_layers(model):
                outputs.append(_through_adapters(subject, read, folder, inputs))
        figure = max(figure, *(relative_difference(found[key], expected[key]) for found in outputs for key in expected))
    loader = "diffusers' from_pretrained" if find_spec("accelerate") else "diffusers' class and safetensors"
    return Measurement(figure, 0.0, f"maximum relative difference after saving and loading (base loaded with {loader})")


PARITY_CHECKS: dict[str, Callable[[Subject], Measurement]] = {
    "keys": keys,
    "bitwise": bitwise,
    "perturbed": perturbed,
    "layouts": layouts,
    "gradients": gradients,
    "round_trip": round_trip,
}


def _through_adapters(subject: Subject, model: Any, folder: Path, inputs: Any) -> Any:
    """Outputs of `model` after its LoRAs were zeroed and reloaded from files."""
    for adapter in model.config.adapters:
        save_adapter(subject.model, adapter, folder / f"{adapter}.safetensors")
        for layer in gated_layers(model).values():
            layer.lora_B[adapter].zero_()
        load_adapter(model, adapter, folder / f"{adapter}.safetensors")
    return subject.run_model(model, *inputs)


def _backward(subject: Subject, inputs: tuple[Streams, Streams, Streams]) -> Streams:
    """Detached outputs, after a backward pass of a loss over all of them."""
    out = subject.run_model(subject.model, *inputs)
    generator = torch.Generator().manual_seed(6)
    losses = [
        (value.float() - torch.randn(value.shape, generator=generator).to(value.device)).square().mean()
        for value in out.values()
    ]
    torch.stack(losses).sum().backward()
    return {name: value.detach() for name, value in out.items()}


def _named(names: set[str]) -> str:
    return f": {', '.join(sorted(names)[:3])}" if names else ""

"""Parity with the pretrained model, as a ladder: what the models on Wan must keep of their base, and what they add.

Each rung compares a model with diffusers' own `WanTransformer3DModel` of the same weights, or with itself, and has a
figure, a tolerance and a verdict. Memory: about twice the weights in float32, besides their gradients on one rung.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from manifests.errors import OpenUniError
from train.checkpoint import load_model, model_tensors
from train.lora import gated_layers, load_adapter, save_adapter
from train.model import Streams
from train.models.unityvideo import UnityVideoTransformer
from train.models.unividx import UniVidXTransformer
from train.pretrained import base_to_come, weight_shards
from train.tasks import TEXT
from train.wan import WanModel, rope_tables

_Transformer: Any = WanTransformer3DModel
Verdict = Literal["passed", "failed", "does not apply", "not run"]
SHAPES = ((1, 1, 2, 3), (2, 3, 2, 2))  # samples; frames, rows and columns in patches
WORDS = 6  # tokens of text as a stream
# How far results may lie apart that are equal on paper, relative to their largest value
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


class Rung(NamedTuple):
    """One rung's outcome."""

    name: str
    verdict: Verdict
    figure: float | None  # what was measured, in the unit that `what` says
    tolerance: float | None  # the largest figure that passes
    what: str  # what the figure is, or why there is none


class Measured(NamedTuple):
    """What a rung found."""

    figure: float
    tolerance: float
    what: str


class DoesNotApply(Exception):
    """This rung means nothing for this model; the text says why."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model at its start on a pretrained base, and the plain model of the same weights (in the same memory)."""

    component: WanModel
    model: Any
    plain: Any
    device: torch.device
    dtype: torch.dtype

    def inputs(self, names: Sequence[str], size: Sequence[int] = SHAPES[1]) -> tuple[Streams, Streams, Streams]:
        """Random streams, sigmas and text; the same each time."""
        generator = torch.Generator().manual_seed(5)
        batch = size[0]
        latent = [self.model.channels, *(n * part for n, part in zip(size[1:], self.model.patch, strict=True))]
        streams, sigmas, text = {}, {}, {}
        for name in names:
            if name == TEXT:
                streams[name] = torch.randint(self.model.vocabulary, (batch, WORDS), generator=generator)
            else:
                streams[name] = torch.randn(batch, *latent, generator=generator)
                text[name] = torch.randn(batch, 7, self.model.text_dim, generator=generator).to(self.device)
            streams[name] = streams[name].to(self.device)
            sigmas[name] = (torch.rand(batch, generator=generator) * 0.9 + 0.05).to(self.device)
        return streams, sigmas, text

    @property
    def names(self) -> tuple[str, ...]:
        """All streams of the model, text among them where it makes text."""
        return (*self.model.streams, TEXT) if hasattr(self.model, "vocabulary") else self.model.streams

    def called(self, model: Any, *arguments: Any) -> Any:
        """The model's output in the arithmetic of the ladder."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return model(*arguments)

    def plainly(self, name: str, inputs: tuple[Streams, Streams, Streams], model: Any = None) -> torch.Tensor:
        """What diffusers' model makes of one stream."""
        streams, sigmas, text = (group[name] for group in inputs)
        out: torch.Tensor = self.called(model or self.plain, streams, sigmas * 1000.0, text).sample
        return out


def ladder(component: WanModel, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Iterator[Rung]:
    """All rungs in order, each when it is done. `dtype` is that of the arithmetic: float32, or bfloat16 by autocast.

    Raises `OpenUniError` when there is no model to look at. A rung that meets an error has failed.
    """
    if not component.pretrained:
        raise OpenUniError("parity needs a pretrained model: give its folder or hub name")
    component.base_options()
    names = iter(RUNGS.items())
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            subject = _subject(component, torch.device(device), dtype)
    except (OpenUniError, RuntimeError) as error:
        yield Rung(next(names)[0], "failed", None, 0.0, _line(error))
        yield from (Rung(name, "not run", None, None, "the model could not be built") for name, _ in names)
        return
    for name, measure in names:
        yield _outcome(name, measure, subject)


def _outcome(name: str, measure: Callable[[Subject], Measured], subject: Subject) -> Rung:
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found = measure(subject)
    except DoesNotApply as reason:
        return Rung(name, "does not apply", None, None, str(reason))
    except (OpenUniError, RuntimeError) as error:
        return Rung(name, "failed", None, None, _line(error))
    finally:
        subject.model.zero_grad(set_to_none=True)
    return Rung(name, "passed" if found.figure <= found.tolerance else "failed", *found)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _subject(component: WanModel, device: torch.device, dtype: torch.dtype) -> Subject:
    model = component.load(str(device))
    with torch.device("meta"):
        plain = _Transformer.from_config(_Transformer.load_config(component.folder()))
    plain.rope = rope_tables(plain).to(device)
    plain.load_state_dict(model.base_tensors(), assign=True)
    return Subject(component, model, time_in_float32(plain).requires_grad_(False), device, dtype)


# ---------------------------------------------------------------- the rungs


def keys(subject: Subject) -> Measured:
    """Every tensor of the files is in the model under its name, with its shape and values."""
    base = subject.model.base_tensors()
    odd, seen = set(base) ^ set(subject.plain.state_dict()), set()
    for name, stored in (item for shard in weight_shards(subject.component.folder()) for item in shard.items()):
        seen.add(name)
        ours = base[name].cpu() if name in base else None
        if ours is None or not torch.equal(ours, stored.to(ours.dtype)) or not ours.isfinite().all():
            odd.add(name)
    odd |= set(base) - seen
    added = len(subject.model.added_parameters())
    what = f"tensors of {len(base)} that differ from the files or are not finite{_named(odd)}; {added} are added"
    return Measured(len(odd), 0, what)


@torch.no_grad()
def bitwise(subject: Subject) -> Measured:
    """One stream alone is what the plain model makes of it, with and without checkpointing."""
    figure, runs = 0.0, 0
    for size in SHAPES:
        for name in subject.model.streams:
            inputs = subject.inputs((name,), size)
            expected = subject.plainly(name, inputs)
            for checkpointing in (False, True):
                with torch.set_grad_enabled(checkpointing), _checkpointing(subject.model, checkpointing):
                    ours = subject.called(subject.model, *inputs)[name].detach()
                figure, runs = max(figure, _difference(ours, expected)), runs + 1
    return Measured(figure, 0.0, f"largest difference from diffusers' model, one stream alone, {runs} runs")


def perturbed(subject: Subject) -> Measured:
    """Zero-initialised tensors have a gradient at the start; off zero, they move the output and all additions learn.

    So none is cut off, and none waits behind a second zero.
    """
    model, inputs = subject.model, subject.inputs(subject.names)
    added = {name: model.get_parameter(name) for name in model.added_parameters()}
    zero = [name for name, parameter in added.items() if not parameter.detach().any()]
    if not zero:
        raise OpenUniError("no addition is zero at the start")
    with _trained(added.values()):
        before = _backward(subject, inputs)
        dead = {name for name in zero if not _has_gradient(added[name])}
        with _moved(added[name] for name in zero):
            model.zero_grad(set_to_none=True)
            after = _backward(subject, inputs)
            dead |= {name for name, parameter in added.items() if not _has_gradient(parameter)}
    moved = max(_difference(value, before[name]) for name, value in after.items())
    return Measured(
        len(dead) + (not 0 < moved < math.inf),
        0,
        f"additions without a finite gradient, of {len(added)} ({len(zero)} zero at the start){_named(dead)}"
        + ("" if moved else "; no output moves")
        + ("; outputs are not finite" if moved == math.inf else ""),
    )


@torch.no_grad()
def layouts(subject: Subject) -> Measured:
    """Rows seen as one sequence are streams side by side; without joint attention each row is the plain model."""
    model = subject.model
    if not isinstance(model, UnityVideoTransformer | UniVidXTransformer):
        raise DoesNotApply("one stream of latents, so there are no two ways to lay streams out")
    if len(model.streams) < 2:
        raise DoesNotApply("the model has one stream; give it more modalities")
    inputs = subject.inputs(model.streams)
    base, options = model.base_tensors(), subject.component.base_options()
    with base_to_come():
        side = UnityVideoTransformer(model.streams, 8, "per_segment", **options)
        rows = UniVidXTransformer(model.streams, model.streams, 1, **options)
    for other in (side, rows):
        other.load_base([base], str(subject.device), share=True)
        other.to(subject.device)
    expected = subject.called(rows, *inputs)
    if isinstance(model, UniVidXTransformer):
        pairs = [(subject.called(side, *inputs), subject.called(model, *inputs))]
    else:
        with _config(model, rope_layout="per_segment"):
            pairs = [(subject.called(model, *inputs), expected)]
    with _config(rows, cross_modal=False):
        alone = subject.called(rows, *inputs)
    pairs.append((alone, {name: subject.plainly(name, inputs) for name in model.streams}))
    figure = max(_apart(ours[name], theirs[name]) for ours, theirs in pairs for name in theirs)
    what = f"largest relative difference: {len(model.streams)} streams side by side and as rows; rows alone and plain"
    return Measured(figure, CLOSE[subject.dtype], what)


def gradients(subject: Subject) -> Measured:
    """The base's parameters get the gradients that they get in the plain model."""
    model, plain = subject.model, subject.plain
    name = model.streams[0]
    if isinstance(model, UnityVideoTransformer) and name != "rgb":
        raise DoesNotApply(
            "no rgb among the streams, and only rgb goes through the base's input and output layers; give rgb"
        )
    inputs = subject.inputs((name,))
    parameters = {key: model.get_parameter(key) for key in plain.state_dict()}
    with _trained(parameters.values()), _trained(plain.parameters()):
        subject.called(model, *inputs)[name].float().square().mean().backward()
        subject.plainly(name, inputs).float().square().mean().backward()
    figure = 0.0
    for key, theirs in plain.named_parameters():
        if parameters[key].grad is None or theirs.grad is None:
            raise OpenUniError(f"{key} has no gradient")
        figure = max(figure, _apart(parameters[key].grad, theirs.grad))
        parameters[key].grad = theirs.grad = None
    return Measured(
        figure, CLOSE[subject.dtype], f"largest relative difference of {len(parameters)} tensors' gradients"
    )


@torch.no_grad()
def round_trip(subject: Subject) -> Measured:
    """The base goes back to a folder that diffusers loads; trained additions go through a checkpoint, LoRAs a file."""
    model, name = subject.model, subject.model.streams[0]
    inputs = subject.inputs(subject.names)
    figure = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subject.plain.save_pretrained(folder / "base", max_shard_size="5GB")
        again = time_in_float32(plain_model(folder / "base").to(subject.device))
        figure = _apart(subject.plainly(name, inputs, again), subject.plainly(name, inputs))
        del again
        added = [model.get_parameter(key) for key in model.added_parameters()]
        with _moved(added):
            expected = subject.called(model, *inputs)
            save_file({key: t.contiguous() for key, t in model_tensors(model).items()}, folder / "model.safetensors")
            component = subject.component
            read = (component if model.unsaved else component.resolved()).load(str(subject.device))
            load_model(read, load_file(folder / "model.safetensors"), folder)
            outputs = [subject.called(read, *inputs)]
            if gated_layers(model):
                outputs.append(_through_adapters(subject, read, folder, inputs))
        figure = max(figure, *(_apart(found[key], expected[key]) for found in outputs for key in expected))
    loader = "diffusers' from_pretrained" if find_spec("accelerate") else "diffusers' class and safetensors"
    return Measured(figure, 0.0, f"largest relative difference after saving and loading (base by {loader})")


RUNGS: dict[str, Callable[[Subject], Measured]] = {
    "keys": keys,
    "bitwise": bitwise,
    "perturbed": perturbed,
    "layouts": layouts,
    "gradients": gradients,
    "round_trip": round_trip,
}


# ---------------------------------------------------------------- what rungs share


def time_in_float32(model: Any) -> Any:
    """diffusers' plain model, changed to compute the embedding of sigma in float32 under autocast, as ours do.

    So the comparison under bfloat16 is of all the rest, bit for bit. In float32 this changes nothing.
    """
    embedder = model.condition_embedder
    for layer in (embedder.time_embedder, embedder.time_proj):

        def forward(tensor: torch.Tensor, plain: Any = layer.forward) -> Any:
            with torch.autocast(tensor.device.type, enabled=False):
                return plain(tensor.float())

        layer.forward = forward
    return model


def plain_model(folder: Path) -> Any:
    """diffusers' own model of a folder, in float32: by its `from_pretrained`, which for Wan needs accelerate.

    Without that package by its class and the tensors of the files, strictly.
    """
    if find_spec("accelerate"):
        return _Transformer.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32).eval()
    model = _Transformer.from_config(_Transformer.load_config(folder))
    model.load_state_dict({name: tensor for shard in weight_shards(folder) for name, tensor in shard.items()})
    return model.float().eval()


def _through_adapters(subject: Subject, model: Any, folder: Path, inputs: Any) -> Any:
    """The outputs of `model` with the LoRAs taken away and read from files again."""
    for adapter in model.config.adapters:
        save_adapter(subject.model, adapter, folder / f"{adapter}.safetensors")
        for layer in gated_layers(model).values():
            layer.lora_B[adapter].zero_()
        load_adapter(model, adapter, folder / f"{adapter}.safetensors")
    return subject.called(model, *inputs)


def _backward(subject: Subject, inputs: tuple[Streams, Streams, Streams]) -> Streams:
    """Outputs, detached; gradients of a loss on all of them are on the parameters."""
    out = subject.called(subject.model, *inputs)
    generator = torch.Generator().manual_seed(6)
    losses = [
        (value.float() - torch.randn(value.shape, generator=generator).to(value.device)).square().mean()
        for value in out.values()
    ]
    torch.stack(losses).sum().backward()
    return {name: value.detach() for name, value in out.items()}


def _has_gradient(parameter: torch.Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any()) and bool(parameter.grad.isfinite().all())


def _named(names: set[str]) -> str:
    return f": {', '.join(sorted(names)[:3])}" if names else ""


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference; infinite where either is not finite, or of another shape. Never NaN: `max` would lose it."""
    if ours.shape != theirs.shape or not (ours.isfinite().all() and theirs.isfinite().all()):
        return math.inf
    return float((ours.float() - theirs.float()).abs().max())


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over largest value; infinite where either is not finite."""
    difference = _difference(ours, theirs)
    return difference if difference == math.inf else difference / (float(theirs.float().abs().max()) or 1.0)


@contextmanager
def _trained(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """Within it, these parameters require gradients."""
    before = [(parameter, parameter.requires_grad) for parameter in parameters]
    for parameter, _ in before:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextmanager
def _moved(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """Within it, these parameters have small random values added."""
    before = [(parameter, parameter.detach().clone()) for parameter in parameters]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter, _ in before:
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device) * 0.1)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)


@contextmanager
def _checkpointing(model: Any, on: bool) -> Iterator[None]:
    if not on:
        yield
        return
    model.enable_gradient_checkpointing()
    try:
        yield
    finally:
        model.disable_gradient_checkpointing()


@contextmanager
def _config(model: Any, **options: Any) -> Iterator[None]:
    """Within it, the model's configuration says this."""
    before = {name: getattr(model.config, name) for name in options}
    model.register_to_config(**options)
    try:
        yield
    finally:
        model.register_to_config(**before)

"""Fixtures of the parity checks: a model and the plain model on the same base, inputs, and comparisons."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from openuni.training.backbone.pretrained import rope_tables, weight_shards
from openuni.training.backbone.wan import WanModel
from openuni.training.model import Streams
from openuni.training.tasks import TEXT

_Transformer: Any = WanTransformer3DModel
SHAPES = ((1, 1, 2, 3), (2, 3, 2, 2))  # samples; frames, rows and columns in patches
TEXT_ROWS = 6  # tokens of the text stream
# Tolerance of mathematically equal results, relative to their maximum value
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


class Measurement(NamedTuple):
    """Measurement of one parity check."""

    figure: float
    tolerance: float
    what: str


class NotApplicable(Exception):
    """The check does not apply to this model; the message gives the reason."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model at initialization on a pretrained base, and the plain model sharing the same weights in memory."""

    component: WanModel
    model: Any
    plain: Any
    device: torch.device
    dtype: torch.dtype

    def inputs(self, names: Sequence[str], size: Sequence[int] = SHAPES[1]) -> tuple[Streams, Streams, Streams]:
        """Random streams, sigmas and text; deterministic."""
        generator = torch.Generator().manual_seed(5)
        batch = size[0]
        latent = [self.model.channels, *(n * part for n, part in zip(size[1:], self.model.patch, strict=True))]
        streams, sigmas, text = {}, {}, {}
        for name in names:
            if name == TEXT:
                streams[name] = torch.randint(self.model.vocabulary, (batch, TEXT_ROWS), generator=generator)
            else:
                streams[name] = torch.randn(batch, *latent, generator=generator)
                text[name] = torch.randn(batch, 7, self.model.text_dim, generator=generator).to(self.device)
            streams[name] = streams[name].to(self.device)
            sigmas[name] = (torch.rand(batch, generator=generator) * 0.9 + 0.05).to(self.device)
        return streams, sigmas, text

    @property
    def names(self) -> tuple[str, ...]:
        """All streams of the model, including text if it generates text."""
        return (*self.model.streams, TEXT) if hasattr(self.model, "vocabulary") else self.model.streams

    def run_model(self, model: Any, *arguments: Any) -> Any:
        """The model's output in the precision of the checks."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return model(*arguments)

    def run_reference(self, name: str, inputs: tuple[Streams, Streams, Streams], model: Any = None) -> torch.Tensor:
        """Output of diffusers' model for one stream."""
        streams, sigmas, text = (group[name] for group in inputs)
        out: torch.Tensor = self.run_model(model or self.plain, streams, sigmas * 1000.0, text).sample
        return out


def build_subject(component: WanModel, device: torch.device, dtype: torch.dtype) -> Subject:
    """Load the model, and the plain one on the same weights."""
    model = component.load(str(device))
    with torch.device("meta"):
        plain = _Transformer.from_config(_Transformer.load_config(component.folder()))
    plain.rope = rope_tables(plain).to(device)
    plain.load_state_dict(model.base_tensors(), assign=True)
    return Subject(component, model, time_in_float32(plain).requires_grad_(False), device, dtype)


def time_in_float32(model: Any) -> Any:
    """diffusers' plain model, patched to compute the sigma embedding in float32 under autocast, as ours do.

    This makes the remaining computation comparable bit for bit under bfloat16. It has no effect in float32.
    """
    embedder = model.condition_embedder
    for layer in (embedder.time_embedder, embedder.time_proj):

        def forward(tensor: torch.Tensor, plain: Any = layer.forward) -> Any:
            with torch.autocast(tensor.device.type, enabled=False):
                return plain(tensor.float())

        layer.forward = forward
    return model


def plain_model(folder: Path) -> Any:
    """Load diffusers' model from a folder in float32, with `from_pretrained` if accelerate is installed.

    Wan's `from_pretrained` requires accelerate. Otherwise the files are loaded strictly into its class.
    """
    if find_spec("accelerate"):
        return _Transformer.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32).eval()
    model = _Transformer.from_config(_Transformer.load_config(folder))
    model.load_state_dict({name: tensor for shard in weight_shards(folder) for name, tensor in shard.items()})
    return model.float().eval()


def has_gradient(parameter: torch.Tensor) -> bool:
    """Whether a parameter has a finite, non-zero gradient."""
    return parameter.grad is not None and bool(parameter.grad.any()) and bool(parameter.grad.isfinite().all())


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Maximum absolute difference; infinite if either is not finite or shapes differ. Never NaN, which `max` drops."""
    if ours.shape != theirs.shape or not (ours.isfinite().all() and theirs.isfinite().all()):
        return math.inf
    return float((ours.float() - theirs.float()).abs().max())


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Maximum absolute difference over maximum value; infinite if either is not finite."""
    largest = difference(ours, theirs)
    return largest if largest == math.inf else largest / (float(theirs.float().abs().max()) or 1.0)


@contextmanager
def requiring_gradients(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """Context in which these parameters require gradients."""
    before = [(parameter, parameter.requires_grad) for parameter in parameters]
    for parameter, _ in before:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextmanager
def perturbing(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """Context in which small random values are added to these parameters."""
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
def checkpointing_of(model: Any, on: bool) -> Iterator[None]:
    """Context in which the model uses gradient checkpointing if `on`."""
    if not on:
        yield
        return
    model.enable_gradient_checkpointing()
    try:
        yield
    finally:
        model.disable_gradient_checkpointing()


@contextmanager
def with_config(model: Any, **options: Any) -> Iterator[None]:
    """Context in which the model's configuration has these values."""
    before = {name: getattr(model.config, name) for name in options}
    model.register_to_config(**options)
    try:
        yield
    finally:
        model.register_to_config(**before)

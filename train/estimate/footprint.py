"""Memory and arithmetic of a model without its weights: its tensors are fake, so PyTorch computes shapes only."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from openuni.training.backbone.attention import use_context
from openuni.training.backbone.checkpointing import is_attention
from openuni.training.backbone.context import Context
from openuni.training.backbone.pretrained import SIZES
from openuni.training.backbone.wan import WanModel
from openuni.training.model import Model

# Sizes of published transformers whose configuration is not on this machine. All else is as in `WanModel`.
KNOWN_SIZES: dict[str, dict[str, int]] = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": {"num_layers": 30, "heads": 12, "ffn_dim": 8960, "channels": 16},
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": {"num_layers": 40, "heads": 40, "ffn_dim": 13824, "channels": 16},
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": {"num_layers": 30, "heads": 24, "ffn_dim": 14336, "channels": 48},
}
GB = 1e9


def sized(model: Model) -> Model | None:
    """The model without files: from the pretrained configuration if it is here, else from `KNOWN_SIZES`; else None."""
    if not isinstance(model, WanModel) or not model.pretrained:
        return model
    if model.checkpoints()[0].find() is not None:
        sizes = {ours: model.base_options()[theirs] for ours, theirs in SIZES.items()}
    elif model.pretrained in KNOWN_SIZES:
        defaults = {field.name: field.default for field in dataclasses.fields(WanModel)}
        sizes = {name: defaults[name] for name in SIZES} | KNOWN_SIZES[model.pretrained]
    else:
        return None
    return dataclasses.replace(model, pretrained="", **sizes)


class FirstRank(Context):
    """The first of several ranks without the others: what it receives has the right size, but no meaning."""

    def _exchange(self, rows: torch.Tensor, received: tuple[int, ...], sent: tuple[int, ...]) -> torch.Tensor:
        return rows[:1].repeat(sum(received), *[1] * (rows.ndim - 1))

    def _gathered(self, rows: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
        return self._exchange(rows, lengths, lengths)


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters."""

    trained: int
    frozen: int
    frozen_low: int  # of the frozen ones, those stored in bfloat16
    largest_block: int  # bytes
    outside_blocks: int  # bytes

    @property
    def stored_bytes(self) -> int:
        """Bytes of all weights."""
        return 4 * (self.trained + self.frozen) - 2 * self.frozen_low


@dataclass(frozen=True)
class Pass:
    """A forward and backward pass of one sample."""

    tokens: int
    flops: float
    saved_bytes: float  # activations for the backward pass, without recomputation
    recomputed_bytes: float  # with recomputation of the blocks: their inputs, and one of them
    attention_bytes: float  # results of the attention kernels of all blocks, which selective recomputation keeps
    attention_flops: float  # of these kernels in the forward pass

    def kept_bytes(self, checkpointing: bool | str) -> float:
        """Activations for the backward pass with this value of `gradient_checkpointing`."""
        if not checkpointing:
            return self.saved_bytes
        return self.recomputed_bytes + (self.attention_bytes if checkpointing == "selective" else 0.0)

    def computed_flops(self, checkpointing: bool | str) -> float:
        """`flops` and those of the recomputation: about a third more, attention not always included."""
        if not checkpointing:
            return self.flops
        return 4 / 3 * self.flops - (self.attention_flops if checkpointing == "selective" else 0.0)


def fake_model(model: Model) -> tuple[Any, Weights]:
    """The module with fake weights, and its numbers of parameters. `model`: from `sized`; call in a FakeTensorMode."""
    plain = {"attention": "auto", "compile": "none", "gradient_checkpointing": False}
    changes: Any = {name: value for name, value in plain.items() if hasattr(model, name)}
    module = dataclasses.replace(model, **changes).load("cpu")
    trained = frozen = frozen_low = 0
    sizes: dict[str, int] = defaultdict(int)
    for name, parameter in module.named_parameters():
        is_low = parameter.dtype == torch.bfloat16
        count = parameter.numel()
        trained += count * parameter.requires_grad
        frozen += count * (not parameter.requires_grad)
        frozen_low += count * is_low
        block = ".".join(name.split(".")[:2]) if name.startswith("blocks.") else ""
        sizes[block] += count * parameter.dtype.itemsize
    outside = sizes.pop("", 0)
    return module, Weights(trained, frozen, frozen_low, max(sizes.values(), default=0), outside)


def fake_pass(
    module: Any,
    streams: Sequence[str],
    shape: Sequence[int],
    text_length: int,
    text_tokens: int = 0,
    *,
    bfloat16: bool = False,
    context: int = 1,
) -> Pass:
    """Forward and backward of one sample with these latent streams of shape [C, T, H, W]; call in a FakeTensorMode.

    `text_tokens`: length of the text stream; 0: none. `bfloat16`: as under autocast. `context`: ranks that share its
    tokens; FLOPs and bytes are then those of the first one.
    """
    module.context = FirstRank(0, context) if context > 1 else None
    use_context(module, module.context)
    given = _inputs(module, streams, shape, text_length, text_tokens)
    blocks = list(module.blocks)
    few, more = min(2, len(blocks)), min(3, len(blocks))  # all further ones are equal
    try:
        found = [_measured(module, blocks[:count], given, bfloat16) for count in (few, more)]
    finally:
        module.blocks = torch.nn.ModuleList(blocks)
    flops, sizes, inputs, attention = found[1]
    per_block = len(blocks) / more
    outside, largest = sizes.get(-1, 0), max((size for block, size in sizes.items() if block >= 0), default=0)
    saved, rest = sum(sizes.values()), len(blocks) - more
    saved += rest * (saved - sum(found[0][1].values()))
    per_stream = math.prod(size // part for size, part in zip(shape[1:], module.patch, strict=True))
    return Pass(
        tokens=per_stream * len(streams) + text_tokens,
        flops=flops + rest * (flops - found[0][0]),
        saved_bytes=saved,
        recomputed_bytes=outside + len(blocks) * max(inputs) + largest,
        attention_bytes=attention.bytes * per_block,
        attention_flops=attention.flops * per_block,
    )


def _inputs(
    module: Any, streams: Sequence[str], shape: Sequence[int], text_length: int, text_tokens: int
) -> tuple[dict[str, torch.Tensor], ...]:
    latents = {name: torch.empty(1, *shape) for name in streams}
    sigmas = {name: torch.empty(1) for name in streams}
    text = {name: torch.empty(1, text_length, module.text_dim) for name in streams}
    if text_tokens:
        # as embeddings: token values are looked up, and checked, where there are values
        latents["text"] = torch.empty(1, text_tokens, module.dim, requires_grad=True)
        sigmas["text"] = torch.empty(1)
    return latents, sigmas, text


def _measured(
    module: Any, blocks: list[Any], given: tuple[dict[str, torch.Tensor], ...], bfloat16: bool
) -> "tuple[float, dict[int, int], list[int], AttentionCost]":
    """FLOPs, bytes kept by block (-1: outside), bytes of each block's input, and the cost of attention kernels."""
    module.blocks = torch.nn.ModuleList(blocks)
    saved: dict[int, dict[int, torch.UntypedStorage]] = defaultdict(dict)
    inputs: list[int] = []
    with (
        FlopCounterMode(display=False) as counter,
        AttentionCost() as attention,
        _kept(module, saved, inputs),
        _plain_text(module),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            outputs = module(*given)
        torch.stack([output.float().sum() for output in outputs.values()]).sum().backward()
    module.zero_grad()
    sizes = {block: sum(storage.nbytes() for storage in found.values()) for block, found in saved.items()}
    return float(counter.get_total_flops()), sizes, inputs, attention


class AttentionCost(TorchDispatchMode):
    """Context that adds up the bytes of the results of attention kernels, and their FLOPs in the forward pass."""

    bytes = flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if is_attention(function):
            results = out if isinstance(out, tuple | list) else (out,)
            self.bytes += sum(tensor.nbytes for tensor in results if isinstance(tensor, torch.Tensor))
            query, key = args[:2]  # [B, heads, tokens, channels]
            self.flops += 4 * query.numel() * key.shape[2]
        return out


@contextmanager
def _kept(module: Any, saved: dict[int, dict[int, torch.UntypedStorage]], inputs: list[int]) -> Iterator[None]:
    """Context that collects, by block, the storages that autograd keeps, and the sizes of the blocks' inputs."""
    parameters = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    current = -1

    def enter(number: int, _: Any, given: tuple[Any, ...]) -> None:
        nonlocal current
        current = number
        tensors = [tensor for entry in given for tensor in (entry if isinstance(entry, tuple) else (entry,))]
        inputs.append(tensors[0].untyped_storage().nbytes() if isinstance(tensors[0], torch.Tensor) else 0)

    def leave(*_: Any) -> None:
        nonlocal current
        current = -1

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters and not any(storage._cdata in found for found in saved.values()):
            saved[current][storage._cdata] = storage
        return tensor

    handles = []
    for number, block in enumerate(module.blocks):
        handles += [block.register_forward_pre_hook(partial(enter, number)), block.register_forward_hook(leave)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _plain_text(module: Any) -> Iterator[None]:
    """Context in which embeddings are accepted as text by models of tokens."""
    if getattr(module, "text_flow", "embeddings") == "embeddings":
        yield
        return
    flow, module._text_tokens = module.text_flow, lambda values: values
    try:
        yield
    finally:
        module.text_flow = flow
        del module._text_tokens

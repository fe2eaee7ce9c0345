"""A Wan transformer of two small blocks with random weights, and our models' options for the same sizes."""

from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch.utils._python_dispatch import TorchDispatchMode

from openuni.training.backbone.checkpointing import is_attention
from openuni.training.parity.subject import time_in_float32

# Options of our models on Wan
SIZES: dict[str, Any] = {
    "num_layers": 2,
    "heads": 2,
    "head_dim": 12,
    "ffn_dim": 32,
    "text_dim": 8,
    "channels": 4,
    "freq_dim": 16,
}
# The same as arguments of diffusers' transformer
BASE: dict[str, Any] = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "ffn_dim": 32,
    "text_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "freq_dim": 16,
}


def tiny_base() -> WanTransformer3DModel:
    """Always the same random weights; computes as ours do, see `time_in_float32`."""
    torch.manual_seed(0)
    return time_in_float32(WanTransformer3DModel(**BASE).eval())


def inputs(names: tuple[str, ...], batch: int = 2, given: tuple[str, ...] = ()) -> tuple[dict, dict, dict]:
    """Latents, sigmas (0 of what is given) and texts by stream, which fit `tiny_base`; always the same."""
    generator = torch.Generator().manual_seed(2)
    drawn = {
        name: (
            torch.randn(batch, 4, 3, 4, 6, generator=generator),
            torch.rand(batch, generator=generator) * 0.9 + 0.05,
            torch.randn(batch, 5, 8, generator=generator),
        )
        for name in names
    }
    streams, sigmas, text = ({name: values[place] for name, values in drawn.items()} for place in range(3))
    return streams, sigmas | {name: torch.zeros(batch) for name in given}, text


def gradients(model: Any, group: tuple[dict, dict, dict], made: str) -> dict[str, torch.Tensor]:
    """By parameter, of the mean square of what the model makes of one stream."""
    model.zero_grad()
    model(*group)[made].square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_checkpointing(model: Any, group: tuple[dict, dict, dict], made: str) -> None:
    """Recomputing blocks changes no gradient, to the bit; leaves it switched on."""
    plain = gradients(model, group, made)
    model.enable_gradient_checkpointing()
    recomputed = gradients(model, group, made)
    assert plain and plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


class AttentionCalls(TorchDispatchMode):
    """Context that counts how often attention kernels run forward."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += is_attention(function)
        return function(*args, **(kwargs or {}))


def check_keys(model: Any, base: WanTransformer3DModel) -> None:
    """The base's tensors are there under their names with their values; the rest is what the model says it adds."""
    ours, theirs = model.state_dict(), base.state_dict()
    assert set(ours) - set(theirs) == set(model.added_parameters())
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())

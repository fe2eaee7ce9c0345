"""A Wan transformer of two small blocks with random weights, and our models' options for the same sizes."""

from typing import Any

import torch
from diffusers import WanTransformer3DModel

from train.parity import time_in_float32

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

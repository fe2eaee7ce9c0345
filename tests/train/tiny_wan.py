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

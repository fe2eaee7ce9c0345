"""Tiny UniVidX models on `tiny_wan`."""

from typing import Any

import torch
from diffusers import WanTransformer3DModel

from openuni.training.backbone.lora import gated_layers
from openuni.training.models.unividx import UniVidX
from tests.train.backbone.tiny_wan import SIZES

INTRINSIC = ("rgb", "albedo", "irradiance", "normal")


def built(base: WanTransformer3DModel, **options: Any) -> Any:
    """A tiny model on the base, LoRAs at their start."""
    torch.manual_seed(1)
    model = UniVidX(**({"modalities": INTRINSIC, "rank": 3} | SIZES | options)).load("cpu")
    model.load_base(iter([base.state_dict()]))
    return model


def trained(base: WanTransformer3DModel, **options: Any) -> Any:
    """The same with random LoRAs."""
    model = built(base, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in gated_layers(model).values():
            for up in layer.lora_B.values():
                up.copy_(torch.randn(up.shape, generator=generator) * 0.3)
    return model

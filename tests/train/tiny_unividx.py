"""Tiny UniVidX models on `tiny_wan`, and what to call them with."""

from typing import Any

import torch
from diffusers import WanTransformer3DModel

from tests.train.tiny_wan import SIZES
from train.lora import gated_layers
from train.models.unividx import UniVidX

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


def inputs(names: tuple[str, ...], batch: int = 2, given: tuple[str, ...] = ()) -> tuple[dict, dict, dict]:
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

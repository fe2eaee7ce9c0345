"""Parity with the pretrained model, as a ladder: what the models on Wan must keep of their base, and what they add.

Each rung compares a model with diffusers' own `WanTransformer3DModel` of the same weights, or with itself, and has a
figure, a tolerance and a verdict.
"""

import torch


def time_in_float32(model: torch.nn.Module) -> torch.nn.Module:
    """diffusers' plain model, changed to compute the embedding of sigma in float32 under autocast, as ours do.

    So the comparison under bfloat16 is of all the rest, bit for bit. In float32 this changes nothing.
    """
    embedder = model.condition_embedder
    for layer in (embedder.time_embedder, embedder.time_proj):
        plain = layer.forward

        def forward(tensor: torch.Tensor, plain: object = plain) -> torch.Tensor:
            with torch.autocast(tensor.device.type, enabled=False):
                return plain(tensor.float())

        layer.forward = forward
    return model

"""Marigold's pipelines in diffusers' own format, with narrow layers and random weights."""

from pathlib import Path
from typing import Any

LIGHTING = {
    "target_names": ["albedo", "shading", "residual"],
    "albedo": {"prediction_space": "linear"},
    "shading": {"prediction_space": "linear", "up_to_scale": True},
    "residual": {"prediction_space": "linear", "up_to_scale": True},
}
APPEARANCE = {
    "target_names": ["albedo", "material"],
    "albedo": {"prediction_space": "srgb"},
    "material": {"prediction_space": "stack", "sub_target_names": ["roughness", "metallicity", None]},
    "roughness": {"prediction_space": "linear"},
    "metallicity": {"prediction_space": "linear"},
}


def tiny_marigold(folder: Path, kind: str = "normals", scheduler: str = "DDIMScheduler", **config: Any) -> str:
    """Folder of a tiny pipeline of that kind ("normals", "lighting", "appearance"), saved by diffusers."""
    path = folder / f"tiny-{kind}-{scheduler}-{len(config)}"
    if path.exists():
        return str(path)
    import diffusers
    import torch

    targets = {"normals": 1, "lighting": 3, "appearance": 2}[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {
            "unet": _unet(4 * targets),
            "vae": _vae(),
            "scheduler": getattr(diffusers, scheduler)(
                prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False
            ),
            "text_encoder": _text_encoder(),
            "tokenizer": _tokenizer(folder),
        }
    if kind == "normals":
        pipeline: Any = diffusers.MarigoldNormalsPipeline(**parts, prediction_type="normals", **config)
    else:
        properties = {"target_properties": LIGHTING if kind == "lighting" else APPEARANCE} | config
        pipeline = diffusers.MarigoldIntrinsicsPipeline(**parts, prediction_type="intrinsics", **properties)
    pipeline.save_pretrained(path, safe_serialization=True)
    return str(path)


def _unet(out_channels: int) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4 + out_channels,
        out_channels=out_channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=16,
        norm_num_groups=4,
    )


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )


def _text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=8,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3, "b": 4, "b</w>": 5}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=8)

"""A CLIP model in open_clip's own format, tiny and with random weights, and a head for it."""

import json
from pathlib import Path
from typing import Any

SIDE_PX = 32
MODEL: dict[str, Any] = {
    "embed_dim": 768,  # what the aesthetic head takes
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIDE_PX, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def tiny_clip(folder: Path, **changes: Any) -> str:
    """The folder of a checkpoint as open_clip writes one; `changes` to its configuration."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    model = MODEL | changes
    path = folder / ("tiny-clip" + "".join(f"-{name}-{value}" for name, value in changes.items()))
    if path.exists():
        return str(path)
    path.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = open_clip.CLIP(**model)
        for name, value in network.named_parameters():  # the library's initial weights hardly tell pictures apart
            if name.endswith("weight") and value.ndim > 1:
                torch.nn.init.normal_(value, 0, 0.3)
        torch.nn.init.normal_(network.visual.conv1.weight, 0, 2)
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, path / "open_clip_model.safetensors")
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": PREPROCESS}))
    return str(path)


def tiny_head(folder: Path) -> str:
    """A file with the aesthetic head's layers, random."""
    import torch
    from safetensors.torch import save_file

    path = folder / "head.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        maker = torch.Generator().manual_seed(0)
        weights = {}
        for place, (narrow, wide) in {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}.items():
            weights[f"layers.{place}.weight"] = torch.randn(wide, narrow, generator=maker) / narrow**0.5
            weights[f"layers.{place}.bias"] = torch.randn(wide, generator=maker)
        save_file(weights, path)
    return str(path)

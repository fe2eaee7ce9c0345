"""What the tests of wan share."""

from typing import Any

import torch

from openuni.training.models.unityvideo import UnityVideo
from openuni.training.models.unividx import UniVidX
from openuni.training.models.univigu import UniVigu
from tests.train.backbone.tiny_wan import inputs as rows

NAMES = ("rgb", "albedo", "normal")
SMALL = {"heads": 2, "head_dim": 12, "ffn_dim": 32, "text_dim": 8, "channels": 4, "freq_dim": 16, "num_layers": 2}


def components(**options: Any) -> dict[str, Any]:
    return {
        "unityvideo": UnityVideo(modalities=NAMES, switcher_dim=8, **options),
        "unividx": UniVidX(modalities=NAMES, rank=3, **options),
        "univigu": UniVigu(vocabulary=11, **options),
    }


def inputs(name: str) -> tuple[dict, dict, dict]:
    streams, sigmas, text = rows(("rgb",) if name == "univigu" else NAMES)
    if name != "univigu":
        return streams, sigmas, text
    words = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(2))
    return streams | {"text": words}, sigmas | {"text": sigmas["rgb"]}, text

"""The tiny pretrained Wan that the tests of the backbone load."""

from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from tests.train.backbone.tiny_wan import BASE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretrained transformer in several files."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("wan")
    WanTransformer3DModel(**BASE).save_pretrained(place, max_shard_size="20KB")
    assert len(list(place.glob("*.safetensors"))) > 2
    return place

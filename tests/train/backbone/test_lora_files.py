"""Files with a LoRA: one modality's goes out and back; those of others are taken over rightly or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from openuni.manifests.errors import OpenUniError
from openuni.training.backbone.lora import (
    adapter_tensors,
    gated_layers,
    load_adapter,
    load_adapter_tensors,
    save_adapter,
)
from tests.train.backbone.tiny_wan import tiny_base
from tests.train.models.test_unividx import LAYERS
from tests.train.models.tiny_unividx import built, trained

LAST_UP = "transformer.blocks.1.ffn.net.2.lora_B.weight"


@pytest.fixture(scope="module")
def base() -> WanTransformer3DModel:
    return tiny_base()


def test_one_lora_goes_through_a_file(base: Any, tmp_path: Path) -> None:
    model, other = trained(base), built(base)
    path = save_adapter(model, "normal", tmp_path / "normal.safetensors")
    keys = set(load_file(path))
    assert keys == {
        f"transformer.blocks.{block}.{layer}.lora_{part}.weight"
        for block in range(2)
        for layer in LAYERS
        for part in "AB"
    }
    assert {name for name, _ in base.named_modules()} >= {
        key.removeprefix("transformer.").rpartition(".lora_")[0] for key in keys
    }
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    load_adapter(other, "normal", path)
    for name, tensor in other.state_dict().items():
        theirs = model.state_dict() if name.endswith(".normal") else before
        assert torch.equal(tensor, theirs[name])
    with pytest.raises(OpenUniError, match=r'contains the LoRA of "normal", not of "albedo".*of="normal"'):
        load_adapter(other, "albedo", path)
    load_adapter(other, "albedo", path, of="normal")  # a LoRA may start from another's
    assert torch.equal(other.blocks[1].ffn.net[2].lora_B["albedo"], model.blocks[1].ffn.net[2].lora_B["normal"])
    peft = {key.replace("transformer.", "base_model.model.", 1): value for key, value in load_file(path).items()}
    load_adapter_tensors(other, "rgb", peft, "here")
    assert torch.equal(other.blocks[0].attn1.to_q.lora_A["rgb"], model.blocks[0].attn1.to_q.lora_A["normal"])


def test_files_that_do_not_fit_are_refused(base: Any, tmp_path: Path) -> None:
    model = trained(base)
    tensors = adapter_tensors(model, "rgb")
    with pytest.raises(OpenUniError, match=r'"com" is not known.*rgb'):
        load_adapter_tensors(model, "com", tensors, "file")
    short = dict(list(tensors.items())[1:])
    with pytest.raises(OpenUniError, match=r"missing keys: blocks\.0\.attn1\.to_q\.lora_A\.weight"):
        load_adapter_tensors(model, "rgb", short, "file")
    foreign = tensors | {"transformer.blocks.9.attn1.to_q.lora_A.weight": torch.zeros(3, 24)}
    before = tensors["transformer.blocks.0.attn1.to_q.lora_A.weight"].clone()
    with pytest.raises(OpenUniError, match=r"unexpected keys: blocks\.9\.attn1"):
        load_adapter_tensors(model, "rgb", {k: v + 1 for k, v in foreign.items()}, "file")
    with pytest.raises(OpenUniError, match=r"size mismatch.*\[2, 24\]"):
        load_adapter_tensors(model, "rgb", adapter_tensors(built(base, rank=2), "rgb"), "file")
    assert torch.equal(model.blocks[0].attn1.to_q.lora_A["rgb"], before)
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(OpenUniError, match="cannot be read"):
        load_adapter(model, "rgb", tmp_path / "no.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(OpenUniError, match=r"unexpected keys: a\."):
        load_adapter(model, "rgb", tmp_path / "a.safetensors")
    for odd, message in ((torch.nan, "with NaN"), (torch.inf, "infinite"), (1, r"of torch\.int64")):
        with pytest.raises(OpenUniError, match=rf"lora_B\.weight is a tensor .*{message}"):
            load_adapter_tensors(model, "rgb", tensors | {LAST_UP: torch.full((24, 3), odd)}, "file")
    assert torch.equal(model.blocks[0].attn1.to_q.lora_A["rgb"], before)


def told(place: Path, tensors: dict[str, torch.Tensor], how: str) -> Path:
    """A file of these tensors that says alpha 12, each in its way."""
    layers = {key.rpartition(".lora_")[0] for key in tensors}
    configuration = {"r": 3, "lora_alpha": 12, "use_rslora": how == "rslora"}
    metadata, path = {"format": "pt"}, place / "adapter_model.safetensors"
    if how in ("diffusers", "rslora"):
        packed = {f"transformer.{key}": value for key, value in configuration.items()}
        metadata["lora_adapter_metadata"] = json.dumps(packed)
    elif how == "diffusers_model":
        metadata["lora_adapter_metadata"] = json.dumps(configuration)
    elif how == "peft":
        (place / "adapter_config.json").write_text(json.dumps(configuration))
    elif how == "tensors":
        tensors = tensors | {f"{layer}.alpha": torch.tensor(12) for layer in layers}
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    ("how", "scale"),
    [("diffusers", 4.0), ("diffusers_model", 4.0), ("peft", 4.0), ("tensors", 4.0), ("rslora", 12 / 3**0.5), ("no", 1)],
)
def test_another_alpha_than_the_rank_scales(base: Any, tmp_path: Path, how: str, scale: float) -> None:
    model, other = trained(base), built(base)
    load_adapter(other, "rgb", told(tmp_path, dict(adapter_tensors(model, "rgb")), how))
    for name, layer in gated_layers(other).items():
        theirs = gated_layers(model)[name]
        assert torch.equal(layer.lora_A["rgb"], theirs.lora_A["rgb"])
        torch.testing.assert_close(layer.lora_B["rgb"], theirs.lora_B["rgb"] * scale)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"lora_adapter_metadata": "{"}, "must be JSON with lora_alpha"),
        ({"lora_adapter_metadata": json.dumps({"transformer.r": 3})}, "lora_alpha, a number: KeyError"),
        ({"lora_adapter_metadata": json.dumps({"lora_alpha": 3, "alpha_pattern": {"to_q": 9}})}, "an alpha per layer"),
        ({"ss_network_alpha": "1"}, r"trained with alpha 1 at rank 3 .*no \.alpha tensors"),
    ],
)
def test_an_alpha_that_cannot_be_taken_over_is_refused(base: Any, tmp_path: Path, metadata: dict, message: str) -> None:
    model, path = trained(base), tmp_path / "a.safetensors"
    save_file(adapter_tensors(model, "rgb"), path, metadata)
    with pytest.raises(OpenUniError, match=message):
        load_adapter(model, "rgb", path)


def test_alpha_is_said_once_and_is_a_number(base: Any, tmp_path: Path) -> None:
    model, path = trained(base), tmp_path / "a.safetensors"
    save_file(adapter_tensors(model, "rgb"), path, {"ss_network_alpha": "3.0"})
    load_adapter(model, "rgb", path)  # the note says what holds anyway
    twice = dict(adapter_tensors(model, "rgb")) | {LAST_UP.replace("lora_B.weight", "alpha"): torch.tensor(3.0)}
    save_file(twice, path, {"lora_adapter_metadata": json.dumps({"lora_alpha": 3})})
    with pytest.raises(OpenUniError, match="specifies alpha twice"):
        load_adapter(model, "rgb", path)
    for odd in ([3.0, 3.0], [float("nan")]):
        odd_alpha = twice | {LAST_UP.replace("lora_B.weight", "alpha"): torch.tensor(odd)}
        with pytest.raises(OpenUniError, match="must be one finite number"):
            load_adapter_tensors(model, "rgb", odd_alpha, "file")

"""Weights of an exported model as files: one model, a diffusers folder, LoRAs as PEFT adapters. safetensors only."""

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub.serialization import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch._subclasses.fake_tensor import FakeTensorMode

from openuni.manifests.errors import OpenUniError
from openuni.training.backbone.lora import PEFT_FILES
from openuni.training.backbone.pretrained import KIND
from openuni.training.backbone.pretrained import WEIGHTS as DIFFUSERS_FILE
from openuni.training.backbone.wan import WanModel
from openuni.training.loop.training_checkpoint import check_matches

MODEL_FILE = "model.safetensors"
ADDITIONS_FILE = "openuni_additions.safetensors"  # beside diffusers' files: the weights that its class does not have
SHARD_BYTES = 5 * 10**9  # per file, as diffusers
PEFT_PREFIX = "base_model.model."  # of key names in files of PEFT
LORA_PARTS = ("lora_A", "lora_B")


def write_model(place: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """All weights under the model's own names."""
    write_shards(place, MODEL_FILE, tensors)


def write_diffusers(place: Path, model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """The backbone as `WanTransformer3DModel.save_pretrained` writes it, and `ADDITIONS_FILE` beside it.

    Raises `OpenUniError` if the model has no Wan backbone, or one that training has not changed.
    """
    if not isinstance(model, WanModel):
        raise OpenUniError(f"--format diffusers: {model.name()} is not built on Wan. Use --format openuni.")
    added = set(_module(model).added_parameters())
    base = {name: tensor for name, tensor in tensors.items() if name not in added}
    if not base:
        raise OpenUniError(
            f"--format diffusers: the backbone is {model.pretrained}, unchanged; only LoRAs were trained. Use --format "
            "peft, or --format openuni."
        )
    config = {"_class_name": KIND, "_diffusers_version": diffusers.__version__, **model.base_options()}
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_shards(place, DIFFUSERS_FILE, base)
    write_shards(place, ADDITIONS_FILE, {name: tensor for name, tensor in tensors.items() if name in added})


def write_peft(place: Path, model: Any, tensors: Mapping[str, torch.Tensor], base: str) -> list[str]:
    """The LoRA of each modality as a PEFT adapter in a folder of its name; return the names.

    `base`: name of the base model for adapter_config.json. Raises `OpenUniError` if the model is more than LoRAs on an
    unchanged base.
    """
    adapters: dict[str, dict[str, torch.Tensor]] = {}
    others = []
    for name, tensor in tensors.items():
        layer, _, rest = name.rpartition(".lora_")
        part, _, adapter = rest.partition(".")
        if layer and f"lora_{part}" in LORA_PARTS and adapter:
            adapters.setdefault(adapter, {})[f"{PEFT_PREFIX}{layer}.lora_{part}.weight"] = tensor
        else:
            others.append(name)
    if not adapters:
        raise OpenUniError(f"--format peft: {model.name()} has no LoRA. Use --format openuni or diffusers.")
    if others:
        raise OpenUniError(
            f"--format peft: besides its LoRAs, {model.name()} has {len(others)} other trained weights (such as "
            f"{others[0]}), without which they do not work. Use --format openuni."
        )
    for adapter, own in adapters.items():
        folder = place / adapter
        folder.mkdir()
        save_file({key: tensor.contiguous() for key, tensor in own.items()}, folder / PEFT_FILES[0], {"format": "pt"})
        (folder / PEFT_FILES[1]).write_text(json.dumps(_peft_config(own, base), indent=2) + "\n", encoding="utf-8")
    return list(adapters)


def _peft_config(tensors: Mapping[str, torch.Tensor], base: str) -> dict[str, Any]:
    layers = {key.removeprefix(PEFT_PREFIX).rpartition(".lora_")[0] for key in tensors}
    rank = next(len(tensor) for key, tensor in tensors.items() if ".lora_A." in key)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": sorted({layer.split(".", 2)[2] for layer in layers}),  # without "blocks.0."
    }


def stored_sizes(files: Sequence[Path]) -> dict[str, torch.Size]:
    """Sizes of all tensors in safetensors files, by name. Raises `OpenUniError` for damaged files."""
    sizes = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # not a dict
                    sizes[name] = torch.Size(file.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise OpenUniError(f"{path} cannot be read as a safetensors file: {error}") from error
    return sizes


def check_stored(model: Any, sizes: Mapping[str, torch.Size], where: Path) -> None:
    """Raise `OpenUniError` unless the stored weights are those of a model on Wan, before memory is taken for it."""
    if not isinstance(model, WanModel):
        return
    if model.num_layers > len(sizes):
        raise OpenUniError(f"{where} has {len(sizes)} weights, too few for num_layers = {model.num_layers}")
    try:
        module: Any = _module(model)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise OpenUniError(f"{where}: the options of the model cannot be used: {error}") from error
    if model.pretrained:
        module.unsaved = frozenset(module.base_tensors())
    check_matches(module, sizes, where)


def _module(model: Any) -> Any:
    """The module with fake weights, for its names and sizes."""
    plain: Any = {"pretrained": "", "attention": "auto", "compile": "none"}
    with warnings.catch_warnings(action="ignore"), FakeTensorMode(allow_non_fake_inputs=True):
        return dataclasses.replace(model, **plain).load("cpu")


def write_shards(place: Path, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """One safetensors file, or several of `SHARD_BYTES` and an index as the Hub knows it."""
    stem = name.removesuffix(".safetensors")
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern=f"{stem}{{suffix}}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for file, names in split.filename_to_tensors.items():
        save_file({key: tensors[key].contiguous() for key in names}, place / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (place / f"{name}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

"""Decoupled gated LoRA: one low-rank addition per modality on a linear layer, active only on its own rows.

A row is one stream of one sample. Files contain one modality's LoRA under the key names of PEFT and diffusers.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from openuni.manifests.errors import OpenUniError, unknown_name
from openuni.training.backbone.pretrained import base_device

PREFIX = "transformer."  # key prefix that diffusers' pipelines expect
READ_PREFIXES = (PREFIX, "base_model.model.", "")  # the second is PEFT's; diffusers' models use none
ALPHA = ".alpha"  # suffix of a layer's alpha tensor, as in files of kohya's scripts
DIFFUSERS_KEY = "lora_adapter_metadata"  # metadata key of diffusers' LoRA configuration
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")  # tensors and configuration of PEFT
KOHYA_KEY = "ss_network_alpha"  # metadata key of kohya's alpha


class LoraRouting(NamedTuple):
    """Assignment of LoRAs to B M rows [B M, S, D], ordered by sample and then by stream."""

    adapters: tuple[str, ...]  # adapter of each of the M streams, or one name for all
    gate: torch.Tensor | None  # float32 [B M, 1, 1]: 1 where the LoRA is active, else 0; None: active on all rows


class GatedLinear(nn.Linear):
    """A linear layer with a LoRA per name: `y = W x + b + gate B A x`, alpha = rank, so no further scale.

    B is zero-initialized. The layer's base parameters keep their names; `lora_A.NAME` is [rank, in], `lora_B.NAME`
    [out, rank].
    """

    def __init__(self, in_features: int, out_features: int, adapters: Sequence[str], rank: int) -> None:
        with base_device():
            super().__init__(in_features, out_features)
        self.lora_A = nn.ParameterDict({name: nn.Parameter(torch.empty(rank, in_features)) for name in adapters})
        self.lora_B = nn.ParameterDict({name: nn.Parameter(torch.zeros(out_features, rank)) for name in adapters})
        for down in self.lora_A.values():
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))  # as in PEFT and nn.Linear

    def forward(self, tokens: torch.Tensor, rows: LoraRouting | None = None) -> torch.Tensor:
        """`tokens` [B M, S, in] -> [B M, S, out]; without `rows` the plain layer."""
        return together([self], tokens, rows)[0]


def together(layers: Sequence[GatedLinear], tokens: torch.Tensor, rows: LoraRouting | None) -> list[torch.Tensor]:
    """Outputs of layers with the same input, such as queries, keys and values, and the same names and rank.

    Their A are one matrix product, and so is its backward pass: fewer kernels, and one gradient of the input.
    """
    outputs = [functional.linear(tokens, layer.weight, layer.bias) for layer in layers]
    if rows is None:
        return outputs
    if len(rows.adapters) == 1:
        name = rows.adapters[0]
        down = torch.cat([layer.lora_A[name] for layer in layers]) if len(layers) > 1 else layers[0].lora_A[name]
        low = _gated(functional.linear(tokens, down), rows.gate).flatten(0, 1).chunk(len(layers), dim=-1)
        return [
            torch.addmm(output.flatten(0, 1), part, layer.lora_B[name].T).view_as(output)
            for output, part, layer in zip(outputs, low, layers, strict=True)
        ]
    # one batched product for all modalities: the number of GEMMs does not grow with the number of LoRAs
    downs = [torch.cat([layer.lora_A[name] for layer in layers]) for name in rows.adapters]
    low = _gated(torch.bmm(tokens, _stacked(downs, len(tokens))), rows.gate).chunk(len(layers), dim=-1)
    ups = [_stacked([layer.lora_B[name] for name in rows.adapters], len(tokens)) for layer in layers]
    return [torch.baddbmm(output, part, up) for output, part, up in zip(outputs, low, ups, strict=True)]


def _stacked(weights: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """[B M, in, out]: each row's weights [out, in], transposed; small compared with the tokens."""
    stacked = torch.stack(list(weights)).transpose(1, 2)
    return stacked.expand(count // len(weights), *stacked.shape).flatten(0, 1)


def _gated(low: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    return low if gate is None else low * gate.to(low.dtype)


def gated_layers(model: nn.Module) -> dict[str, GatedLinear]:
    """All layers with LoRAs, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, GatedLinear)}


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the LoRAs of a model, in its order. Raises `OpenUniError` for a model without LoRAs."""
    first = next(iter(gated_layers(model).values()), None)
    if first is None:
        raise OpenUniError(f"{type(model).__name__} has no LoRA")
    return list(first.lora_A)


def adapter_tensors(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """One modality's LoRA under PEFT's key names, `transformer.blocks.0.attn1.to_q.lora_A.weight` and so on.

    The tensors are views of the model's, not copies. alpha = rank, the default of readers without an alpha.
    """
    _check_known(model, name)
    found = {}
    for layer_name, layer in gated_layers(model).items():
        found[f"{PREFIX}{layer_name}.lora_A.weight"] = layer.lora_A[name].detach()
        found[f"{PREFIX}{layer_name}.lora_B.weight"] = layer.lora_B[name].detach()
    return found


@torch.no_grad()
def load_adapter_tensors(model: nn.Module, name: str, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Load one modality's LoRA strictly; other LoRAs and the base are unchanged.

    `tensors`: as from `adapter_tensors`, with one of `READ_PREFIXES`; alpha tensors (`blocks.0.attn1.to_q.alpha`) scale
    B. `where`: the source, for errors. Raises `OpenUniError`, without changing the model, if names or sizes differ.
    """
    _check_known(model, name)
    own = {key.removeprefix(PREFIX): tensor for key, tensor in adapter_tensors(model, name).items()}
    prefix = next(prefix for prefix in READ_PREFIXES if all(key.startswith(prefix) for key in tensors))
    loaded = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    alphas = {f"{key.rpartition('.lora_')[0]}{ALPHA}" for key in own} & set(loaded)
    missing, unknown = sorted(set(own) - set(loaded)), sorted(set(loaded) - set(own) - alphas)
    if missing or unknown:
        raise OpenUniError(
            f"{where} is not a LoRA of this model: missing keys: {_some(missing)}; unexpected keys: {_some(unknown)}. "
            "Keys must be PEFT's, for all attention and feed-forward layers of all blocks."
        )
    odd = [key for key in own if own[key].shape != loaded[key].shape]
    if odd:
        found, wanted = list(loaded[odd[0]].shape), list(own[odd[0]].shape)
        raise OpenUniError(f"{where}: size mismatch: {odd[0]} must be {wanted} (rank first), got {found}")
    ready = {key: _checked(key, loaded[key], where) for key in own}
    for key in alphas:
        layer, alpha = key.removesuffix(ALPHA), loaded[key].float()
        if alpha.numel() != 1 or not alpha.isfinite().all():
            raise OpenUniError(f"{where} is not a valid LoRA: {key} must be one finite number, got {alpha.tolist()}")
        up = f"{layer}.lora_B.weight"
        ready[up] = ready[up] * (alpha.item() / len(ready[f"{layer}.lora_A.weight"]))
    for key, tensor in own.items():
        tensor.copy_(ready[key])


def _checked(key: str, tensor: torch.Tensor, where: str) -> torch.Tensor:
    """The tensor as float32. Raises `OpenUniError` unless it is floating point and finite."""
    if not tensor.is_floating_point() or not tensor.float().isfinite().all():
        what = "with NaN or infinite values" if tensor.is_floating_point() else f"of {tensor.dtype}"
        raise OpenUniError(
            f"{where} is not a valid LoRA: {key} is a tensor {what}; it must be floating point and finite"
        )
    return tensor.float()


def save_adapter(model: nn.Module, name: str, path: str | Path) -> Path:
    """Write one modality's LoRA to a safetensors file that diffusers' `load_lora_weights` can read."""
    tensors = {key: tensor.cpu().contiguous() for key, tensor in adapter_tensors(model, name).items()}
    save_file(tensors, path, metadata={"format": "pt", "modality": name})
    return Path(path)


def load_adapter(model: nn.Module, name: str, path: str | Path, of: str | None = None) -> None:
    """Load a safetensors file as the LoRA of modality `name`; see `load_adapter_tensors`.

    `of`: the modality of the LoRA in the file, to initialize `name` from another modality. An alpha in the file's
    configuration (diffusers: metadata; PEFT: adapter_config.json in the same folder) scales B. Raises `OpenUniError`
    for unreadable files and unsupported configurations.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError) as error:
        raise OpenUniError(f"{path} cannot be read as a safetensors file: {error}") from error
    held, wanted = metadata.get("modality"), of or name
    if held not in (None, wanted):
        raise OpenUniError(
            f'{path} contains the LoRA of "{held}", not of "{wanted}". To initialize "{name}" from it: '
            f'load_adapter(..., of="{held}")'
        )
    load_adapter_tensors(model, name, tensors | _alphas(tensors, metadata, path), str(path))


def _alphas(tensors: dict[str, torch.Tensor], metadata: dict[str, str], path: Path) -> dict[str, torch.Tensor]:
    """Alpha tensors by layer from the file's configuration; empty without a configuration."""
    layers = {
        key.rpartition(".lora_")[0]: (*tensor.shape, 1)[0]  # the rank
        for key, tensor in tensors.items()
        if key.endswith("lora_A.weight")
    }
    there = any(key.endswith(ALPHA) for key in tensors)
    config = _configuration(metadata, path)
    if config is not None and there:
        raise OpenUniError(f"{path} specifies alpha twice, as tensors and in its configuration. Remove one of them.")
    if config is not None:
        root = config.get("use_rslora")  # rsLoRA scales by alpha / sqrt(rank)
        alphas = {layer: config["lora_alpha"] * (math.sqrt(rank) if root else 1) for layer, rank in layers.items()}
        return {f"{layer}{ALPHA}": torch.tensor(float(alpha)) for layer, alpha in alphas.items()}
    noted = metadata.get(KOHYA_KEY)
    odd = {rank for rank in layers.values() if noted not in (str(rank), f"{rank}.0")}
    if noted is not None and odd and not there:
        raise OpenUniError(
            f"{path} was trained with alpha {noted} at rank {max(odd)} ({KOHYA_KEY} in its metadata), but has no "
            f"{ALPHA} tensors, so it may be scaled already. Add them, or scale lora_B and remove that entry."
        )
    return {}


def _configuration(metadata: dict[str, str], path: Path) -> dict[str, Any] | None:
    """LoRA configuration written by diffusers or PEFT, with numeric `lora_alpha`; None if there is none."""
    try:
        if DIFFUSERS_KEY in metadata:
            config = {key.removeprefix(PREFIX): value for key, value in json.loads(metadata[DIFFUSERS_KEY]).items()}
        elif path.name == PEFT_FILES[0] and path.with_name(PEFT_FILES[1]).is_file():
            config = dict(json.loads(path.with_name(PEFT_FILES[1]).read_text()))
        else:
            return None
        config["lora_alpha"] = float(config["lora_alpha"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OpenUniError(
            f"{path}: the LoRA's configuration ({DIFFUSERS_KEY} in its metadata, or {PEFT_FILES[1]}) must be JSON with "
            f"lora_alpha, a number: {type(error).__name__}: {error}"
        ) from error
    if config.get("alpha_pattern"):
        raise OpenUniError(
            f"{path} has an alpha per layer (alpha_pattern), which is not supported. Store it as tensors, such as "
            f"blocks.0.attn1.to_q{ALPHA}"
        )
    return config


def _check_known(model: nn.Module, name: str) -> None:
    if name not in adapter_names(model):
        raise OpenUniError(unknown_name("LoRA", name, adapter_names(model)))


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}" or "nothing"

"""Decoupled gated LoRA: one low-rank addition per modality on a linear layer, at work only on the rows it is for.

A row is one stream of one sample. Files hold one modality's LoRA under the names PEFT and diffusers use.
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

PREFIX = "transformer."  # of the keys in a file: what diffusers' pipelines look for
READ_PREFIXES = (PREFIX, "base_model.model.", "")  # PEFT's own writes the second, diffusers' models none
ALPHA = ".alpha"  # ending of a layer's alpha among the tensors, as kohya's scripts and others write it
DIFFUSERS_KEY = "lora_adapter_metadata"  # of a file's metadata: the configuration, as diffusers writes it
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")  # tensors and configuration, as PEFT writes them
KOHYA_KEY = "ss_network_alpha"  # of the metadata: kohya's note on the training


class LoraRouting(NamedTuple):
    """Which LoRA is at work on which of B M rows [B M, S, D], ordered by sample and then by stream."""

    adapters: tuple[str, ...]  # of the M streams, or one name: the same for all
    gate: torch.Tensor | None  # float32 [B M, 1, 1]: 1 where it is at work, else 0; None: on all rows


class GatedLinear(nn.Linear):
    """A linear layer with a LoRA per name: `y = W x + b + gate B A x`, alpha = rank, so no further scale.

    B is zero at the start. The layer's own parameters keep their names; `lora_A.NAME` is [rank, in], `lora_B.NAME`
    [out, rank].
    """

    def __init__(self, in_features: int, out_features: int, adapters: Sequence[str], rank: int) -> None:
        with base_device():
            super().__init__(in_features, out_features)
        self.lora_A = nn.ParameterDict({name: nn.Parameter(torch.empty(rank, in_features)) for name in adapters})
        self.lora_B = nn.ParameterDict({name: nn.Parameter(torch.zeros(out_features, rank)) for name in adapters})
        for down in self.lora_A.values():
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))  # as PEFT and nn.Linear begin

    def forward(self, tokens: torch.Tensor, rows: LoraRouting | None = None) -> torch.Tensor:
        """`tokens` [B M, S, in] -> [B M, S, out]; without `rows` the plain layer."""
        base = super().forward(tokens)
        if rows is None:
            return base
        if len(rows.adapters) == 1:
            low = _gated(functional.linear(tokens, self.lora_A[rows.adapters[0]]), rows.gate)
            up = self.lora_B[rows.adapters[0]].T
            return torch.addmm(base.flatten(0, 1), low.flatten(0, 1), up).view_as(base)
        # all modalities in one batched product: as many GEMMs as for one LoRA, whatever their number
        low = torch.bmm(tokens, self._stacked(self.lora_A, rows, len(tokens)))
        return torch.baddbmm(base, _gated(low, rows.gate), self._stacked(self.lora_B, rows, len(tokens)))

    @staticmethod
    def _stacked(weights: nn.ParameterDict, rows: LoraRouting, count: int) -> torch.Tensor:
        """[B M, in, out] of each row's own weights [out, in]; small beside the tokens."""
        stacked = torch.stack([weights[name] for name in rows.adapters]).transpose(1, 2)
        return stacked.expand(count // len(rows.adapters), *stacked.shape).flatten(0, 1)


def _gated(low: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    return low if gate is None else low * gate.to(low.dtype)


def gated_layers(model: nn.Module) -> dict[str, GatedLinear]:
    """All layers with LoRAs, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, GatedLinear)}


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the LoRAs of a model, in its order; every layer has them all."""
    first = next(iter(gated_layers(model).values()), None)
    if first is None:
        raise OpenUniError(f"{type(model).__name__} has no LoRA")
    return list(first.lora_A)


def adapter_tensors(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """One modality's LoRA under PEFT's key names, `transformer.blocks.0.attn1.to_q.lora_A.weight` and so on.

    The tensors are those of the model, not copies. alpha = rank, which is what readers take when no alpha is told.
    """
    _check_known(model, name)
    found = {}
    for layer_name, layer in gated_layers(model).items():
        found[f"{PREFIX}{layer_name}.lora_A.weight"] = layer.lora_A[name].detach()
        found[f"{PREFIX}{layer_name}.lora_B.weight"] = layer.lora_B[name].detach()
    return found


@torch.no_grad()
def load_adapter_tensors(model: nn.Module, name: str, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Take over one modality's LoRA; the others and the base stay. Strict: nothing changes unless everything fits.

    `tensors`: as `adapter_tensors` gives them, with one of `READ_PREFIXES`; B is scaled by the alphas among them
    (`blocks.0.attn1.to_q.alpha`). `where` they came from is for errors.
    """
    _check_known(model, name)
    own = {key.removeprefix(PREFIX): tensor for key, tensor in adapter_tensors(model, name).items()}
    prefix = next(prefix for prefix in READ_PREFIXES if all(key.startswith(prefix) for key in tensors))
    given = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    alphas = {f"{key.rpartition('.lora_')[0]}{ALPHA}" for key in own} & set(given)
    missing, unknown = sorted(set(own) - set(given)), sorted(set(given) - set(own) - alphas)
    if missing or unknown:
        raise OpenUniError(
            f"{where} is no LoRA of this model: it lacks {_some(missing)} and has {_some(unknown)}, which the model "
            "does not. Names must be as PEFT writes them, for all attention and feed-forward layers of all blocks."
        )
    odd = [key for key in own if own[key].shape != given[key].shape]
    if odd:
        found, wanted = list(given[odd[0]].shape), list(own[odd[0]].shape)
        raise OpenUniError(f"{where} has another size: {odd[0]} is {found}, the model's is {wanted} (rank first)")
    ready = {key: _checked(key, given[key], where) for key in own}
    for key in alphas:
        layer, alpha = key.removesuffix(ALPHA), given[key].float()
        if alpha.numel() != 1 or not alpha.isfinite().all():
            raise OpenUniError(f"{where} is no LoRA: {key} must be one finite number, got {alpha.tolist()}")
        up = f"{layer}.lora_B.weight"
        ready[up] = ready[up] * (alpha.item() / len(ready[f"{layer}.lora_A.weight"]))
    for key, tensor in own.items():
        tensor.copy_(ready[key])


def _checked(key: str, tensor: torch.Tensor, where: str) -> torch.Tensor:
    """Itself, float32; raises unless it has numbers that a weight can be."""
    if not tensor.is_floating_point() or not tensor.float().isfinite().all():
        what = "with NaN or infinite values" if tensor.is_floating_point() else f"of {tensor.dtype}"
        raise OpenUniError(f"{where} is no LoRA: {key} is a tensor {what}; it must be floating point and finite")
    return tensor.float()


def save_adapter(model: nn.Module, name: str, path: str | Path) -> Path:
    """One modality's LoRA as a safetensors file, which diffusers' `load_lora_weights` reads too."""
    tensors = {key: tensor.cpu().contiguous() for key, tensor in adapter_tensors(model, name).items()}
    save_file(tensors, path, metadata={"format": "pt", "modality": name})
    return Path(path)


def load_adapter(model: nn.Module, name: str, path: str | Path, of: str | None = None) -> None:
    """Take over the LoRA in a safetensors file as the one of modality `name`; see `load_adapter_tensors`.

    `of`: the modality whose LoRA the file holds, where `name` is to start from that of another. An alpha that the file
    says (diffusers in its metadata, PEFT in adapter_config.json beside it) scales B; what cannot be taken over rightly
    is refused.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no dict
    except (OSError, SafetensorError) as error:
        raise OpenUniError(f"{path} cannot be read as a safetensors file: {error}") from error
    held, wanted = metadata.get("modality"), of or name
    if held not in (None, wanted):
        raise OpenUniError(
            f'{path} holds the LoRA of "{held}", not of "{wanted}". To start "{name}" from it: '
            f'load_adapter(..., of="{held}")'
        )
    load_adapter_tensors(model, name, tensors | _alphas(tensors, metadata, path), str(path))


def _alphas(tensors: dict[str, torch.Tensor], metadata: dict[str, str], path: Path) -> dict[str, torch.Tensor]:
    """What the file says of alpha beside its tensors, as tensors of its layers; none where it says nothing."""
    layers = {
        key.rpartition(".lora_")[0]: (*tensor.shape, 1)[0]  # the rank
        for key, tensor in tensors.items()
        if key.endswith("lora_A.weight")
    }
    there = any(key.endswith(ALPHA) for key in tensors)
    said = _configuration(metadata, path)
    if said is not None and there:
        raise OpenUniError(f"{path} says alpha twice, as tensors and in its configuration: take one of them out")
    if said is not None:
        root = said.get("use_rslora")  # scaled by alpha over the root of the rank
        alphas = {layer: said["lora_alpha"] * (math.sqrt(rank) if root else 1) for layer, rank in layers.items()}
        return {f"{layer}{ALPHA}": torch.tensor(float(alpha)) for layer, alpha in alphas.items()}
    noted = metadata.get(KOHYA_KEY)
    odd = {rank for rank in layers.values() if noted not in (str(rank), f"{rank}.0")}
    if noted is not None and odd and not there:
        raise OpenUniError(
            f"{path} was trained with alpha {noted} at rank {max(odd)} ({KOHYA_KEY} in its metadata), but has no "
            f"{ALPHA} tensors, so it may be scaled already: add them, or scale lora_B and save it without that entry"
        )
    return {}


def _configuration(metadata: dict[str, str], path: Path) -> dict[str, Any] | None:
    """What diffusers or PEFT wrote down beside the tensors, with `lora_alpha`, a number; None where they did not."""
    try:
        if DIFFUSERS_KEY in metadata:
            said = {key.removeprefix(PREFIX): value for key, value in json.loads(metadata[DIFFUSERS_KEY]).items()}
        elif path.name == PEFT_FILES[0] and path.with_name(PEFT_FILES[1]).is_file():
            said = dict(json.loads(path.with_name(PEFT_FILES[1]).read_text()))
        else:
            return None
        said["lora_alpha"] = float(said["lora_alpha"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OpenUniError(
            f"{path}: the LoRA's configuration ({DIFFUSERS_KEY} in its metadata, or {PEFT_FILES[1]}) must be JSON with "
            f"lora_alpha, a number: {type(error).__name__}: {error}"
        ) from error
    if said.get("alpha_pattern"):
        raise OpenUniError(
            f"{path} has an alpha per layer (alpha_pattern), which is not read: give it as tensors, such as "
            f"blocks.0.attn1.to_q{ALPHA}"
        )
    return said


def _check_known(model: nn.Module, name: str) -> None:
    if name not in adapter_names(model):
        raise OpenUniError(unknown_name("LoRA", name, adapter_names(model)))


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}" or "nothing"

"""Pretrained weights: read tensor by tensor from a diffusers folder into a model built on the meta device."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors import SafetensorError, safe_open

from openuni.manifests.errors import OpenUniError

KIND = "WanTransformer3DModel"
# size options and their names in diffusers
SIZES = {
    "num_layers": "num_layers",
    "heads": "num_attention_heads",
    "head_dim": "attention_head_dim",
    "ffn_dim": "ffn_dim",
    "text_dim": "text_dim",
    "channels": "in_channels",
    "patch": "patch_size",
    "freq_dim": "freq_dim",
}
WEIGHTS = "diffusion_pytorch_model.safetensors"
# by name in files
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_deferred: ContextVar[bool] = ContextVar("base weights are to come", default=False)


@contextmanager
def defer_base_weights() -> Iterator[None]:
    """Context in which models are built with base weights on the meta device, for `WanStreams.load_base`."""
    token = _deferred.set(True)
    try:
        yield
    finally:
        _deferred.reset(token)


def base_device() -> AbstractContextManager[object]:
    """Context for building base layers: the meta device within `defer_base_weights`, else no change."""
    return torch.device("meta") if _deferred.get() else nullcontext()


def weight_shards(folder: Path, name: str = WEIGHTS) -> Iterator[dict[str, torch.Tensor]]:
    """Stored tensors of a diffusers model folder, one at a time, so that no file is in memory as a whole.

    `name`: see `weight_files`. Raises `OpenUniError` for missing, damaged or unsupported files.
    """
    for path in weight_files(folder, name):
        yield from _tensors(path)


def weight_files(folder: Path, name: str = WEIGHTS) -> list[Path]:
    """The safetensors file of this name, or those that its index lists. Raises `OpenUniError` if they are missing."""
    listing = folder / f"{name}.index.json"
    files = _listed(listing) if listing.is_file() else {name}
    odd = sorted(file for file in files if Path(file).name != file)
    if odd:
        raise OpenUniError(f"{listing} names files outside its folder: {', '.join(odd[:3])}")
    missing = sorted(file for file in files if not (folder / file).is_file())
    if missing:
        raise OpenUniError(f"{folder}: {', '.join(missing)} not found. Pass a diffusers folder with safetensors files.")
    return [folder / file for file in sorted(files)]


def _listed(listing: Path) -> set[str]:
    """File names in a shard index."""
    try:
        files = json.loads(listing.read_text(encoding="utf-8"))["weight_map"].values()
        return {str(file) for file in files}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OpenUniError(f'{listing} is not a shard index: it must have a table "weight_map": {error!r}') from error


def _tensors(path: Path) -> Iterator[dict[str, torch.Tensor]]:
    """Each tensor of a safetensors file, in separately allocated memory.

    Uses plain reads: the library memory-maps the file, which would count in addition to the copies.
    """
    try:
        with safe_open(path, framework="pt"):
            pass  # validates the header against the file
    except SafetensorError as error:
        raise OpenUniError(f"{path} cannot be read as a safetensors file: {error}") from error
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if entry["dtype"] not in _DTYPES:
                raise OpenUniError(f"{path}: {name} is {entry['dtype']}; dtype must be one of {', '.join(_DTYPES)}")
            tensor = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
            file.seek(8 + size + entry["data_offsets"][0])
            array: Any = tensor.flatten().view(torch.uint8).numpy()
            file.readinto(array)
            yield {name: tensor}


def plain_config(folder: Path, what: str) -> dict[str, Any]:
    """Complete configuration of a text-to-video `WanTransformer3DModel`.

    Except for the sizes that `WanModel` has options for, all values must be those of the published models, since a run
    records no others. Raises `OpenUniError` otherwise. `what`: description of the folder, for errors.
    """
    try:
        config: Any = WanTransformer3DModel.load_config(str(folder))
    except OSError as error:
        raise OpenUniError(f"{what}: {error}") from error
    defaults = {name: p.default for name, p in signature(WanTransformer3DModel.__init__).parameters.items()}
    defaults.pop("self")
    kind = config.get("_class_name", KIND) if isinstance(config, dict) else None
    values = {key: value for key, value in config.items() if not key.startswith("_")} if kind == KIND else {}
    if kind != KIND or not set(SIZES.values()) <= set(values) <= set(defaults):
        raise OpenUniError(f"{what}: {folder / 'config.json'} must be that of a plain {KIND}, got {kind}")
    found = defaults | values
    if found["image_dim"] or found["added_kv_proj_dim"]:
        raise OpenUniError(f"{what} is an image-to-video model; pass a text-to-video model")
    if found["in_channels"] != (found["out_channels"] or found["in_channels"]):
        raise OpenUniError(f"{what}: input and output channels must be equal")
    odd = [key for key in ("cross_attn_norm", "qk_norm", "eps", "rope_max_seq_len") if found[key] != defaults[key]]
    if odd:
        raise OpenUniError(
            f"{what}: {odd[0]} must be {defaults[odd[0]]!r}, as in the published models, got {found[odd[0]]!r}"
        )
    return found


def rope_tables(model: Any) -> Any:
    """RoPE tables of a Wan transformer, computed from its configuration, since weight files do not include them."""
    config = model.config
    return type(model.rope)(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)

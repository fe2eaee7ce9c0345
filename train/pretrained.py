"""Pretrained weights: read tensor by tensor from a diffusers folder, into a model that was built without them."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from manifests.errors import OpenUniError

WEIGHTS = "diffusion_pytorch_model.safetensors"
_to_come: ContextVar[bool] = ContextVar("base weights are to come", default=False)


@contextmanager
def base_to_come() -> Iterator[None]:
    """Models built within it leave their base weights out (on torch's meta device): `WanStreams.load_base` follows."""
    token = _to_come.set(True)
    try:
        yield
    finally:
        _to_come.reset(token)


def base_place() -> AbstractContextManager[object]:
    """What to build base layers in: nothing special, or the meta device within `base_to_come`."""
    return torch.device("meta") if _to_come.get() else nullcontext()


def weight_shards(folder: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of a diffusers model folder as they are stored, one at a time: a file is never all in memory."""
    listing = folder / f"{WEIGHTS}.index.json"
    files = {WEIGHTS} if not listing.is_file() else set(json.loads(listing.read_text())["weight_map"].values())
    odd = sorted(file for file in files if Path(file).name != file)
    if odd:
        raise OpenUniError(f"{listing} names files outside its folder: {', '.join(odd[:3])}")
    missing = sorted(file for file in files if not (folder / file).is_file())
    if missing:
        raise OpenUniError(f"{folder} lacks {', '.join(missing)}: give a diffusers folder with safetensors")
    for file in sorted(files):
        try:
            with safe_open(folder / file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  # not a dict
                    yield {name: tensors.get_tensor(name)}
        except SafetensorError as error:
            raise OpenUniError(f"{folder / file} cannot be read as a safetensors file: {error}") from error

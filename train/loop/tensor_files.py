"""safetensors files written tensor by tensor, so that tensors divided among ranks are never in memory all at once."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

# names in files, in the order in which the safetensors library sorts them, the last first
_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_ORDER = {dtype: number for number, dtype in enumerate(_DTYPES)}


def file_order(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names in the order of the file."""
    return sorted(tensors, key=lambda name: (-_ORDER[tensors[name].dtype], name))


def whole_tensors(tensors: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    """Each tensor as a whole, in the order of the file. Tensors divided among ranks are gathered one by one.

    All ranks must iterate to the end.
    """
    for name in file_order(tensors):
        tensor = tensors[name].detach()
        yield tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], whole: Iterator[torch.Tensor]) -> None:
    """Write a safetensors file, byte for byte as `safetensors.torch.save_file` does.

    `whole`: from `whole_tensors`. Raises `OSError`.
    """
    header, offset = {}, 0
    for name in file_order(tensors):
        tensor = tensors[name]
        end = offset + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in header:
            data: Any = next(whole).cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            file.write(data)

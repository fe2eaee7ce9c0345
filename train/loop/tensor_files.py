"""safetensors files of training checkpoints: written tensor by tensor, read as a whole or in part.

With several ranks, each writes the rows that it holds to a file of its own. Concatenated in the order of the ranks they
are the whole tensor, so a reader may be any number of ranks.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open

Share = Callable[[str, torch.Size], tuple[slice, ...] | None]  # the part of a tensor, by name and whole size; None: all

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


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], check: Callable[[], None] = lambda: None) -> str:
    """Write a safetensors file, byte for byte as `safetensors.torch.save_file` does, and sync it to the disk.

    Tensors are copied to the CPU one by one. `check`: called before each of them; may raise. Returns the xxh3-64 of the
    bytes, 16 hex digits. Raises `OSError`.
    """
    header, offset = {}, 0
    for name in file_order(tensors):
        tensor = tensors[name]
        end = offset + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = xxhash.xxh3_64()
    with path.open("wb") as file:
        for data in _pieces(text, header, tensors, check):
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _pieces(
    text: bytes, names: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], check: Callable[[], None]
) -> Iterator[Any]:
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        check()
        yield tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def read_tensors(files: Sequence[Path], share: Share | None = None) -> Iterator[tuple[str, torch.Size, torch.Tensor]]:
    """Name, whole size and values of every tensor of the files of all ranks, in the order of the ranks.

    Only the part that `share` selects is read. Raises `OSError` and `SafetensorError`, also for files whose rows do not
    belong together.
    """
    with ExitStack() as stack:
        places: dict[str, list[Any]] = {}
        for file in files:
            opened = stack.enter_context(safe_open(file, framework="pt"))
            for key in opened.keys():  # noqa: SIM118  # not a dict
                places.setdefault(key, []).append(opened)
        for key, holders in places.items():
            parts = [opened.get_slice(key) for opened in holders]
            shapes = [part.get_shape() for part in parts]
            size = torch.Size(shapes[0])
            if len(parts) > 1:
                if not all(shape and shape[1:] == shapes[0][1:] for shape in shapes):
                    raise SafetensorError(f"{key} has rows of different sizes: {shapes}")
                size = torch.Size([sum(shape[0] for shape in shapes), *shapes[0][1:]])
            wanted = None if share is None else share(key, size)
            if len(parts) == 1:
                yield key, size, holders[0].get_tensor(key) if wanted is None else parts[0][wanted]
            else:
                yield key, size, _rows(parts, shapes, slice(0, size[0]) if wanted is None else wanted[0])


def _rows(parts: Sequence[Any], shapes: Sequence[Sequence[int]], rows: slice) -> torch.Tensor:
    """These rows of a tensor whose rows are divided among parts."""
    found, first = [], 0
    for part, shape in zip(parts, shapes, strict=True):
        start, stop = max(rows.start - first, 0), min(rows.stop - first, shape[0])
        if start < stop:
            found.append(part[start:stop])
        first += shape[0]
    return torch.cat(found) if found else parts[0][0:0]

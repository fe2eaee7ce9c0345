"""Reading files with weights, which come from anyone: tensors by name and nothing else, no code is ever run."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openuni.manifests.errors import OpenUniError


def read_weights(path: Path, again: str = "from its source", data: bytes | None = None) -> dict[str, Any]:
    """Tensors by name from a .safetensors file, or from a PyTorch file read with `weights_only`.

    `again`: how to get the file anew, for errors. `data`: the bytes of a PyTorch file that is packed in `path`. Raises
    `OpenUniError` for what is damaged or holds more than tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path if data is None else io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise OpenUniError(
            f"{path} cannot be read as weights: it is damaged, or holds more than tensors, and code in a checkpoint is "
            f"never run. Get it again {again}. ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    if not (isinstance(loaded, Mapping) and all(isinstance(value, torch.Tensor) for value in loaded.values())):
        raise OpenUniError(f"{path} is not a plain table of tensors by name. Save the model's state_dict() alone.")
    return dict(loaded)

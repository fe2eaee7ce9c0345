"""Safe reading of untrusted checkpoint files: named tensors only, no code execution."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openuni.manifests.errors import OpenUniError


def read_weights(path: Path, source: str = "from its source", data: bytes | None = None) -> dict[str, Any]:
    """Read named tensors from a .safetensors file, or from a PyTorch file with `weights_only`.

    `source`: how to download the file again, for error messages, such as "with: openuni checkpoints get NAME".
    `data`: contents of a PyTorch file that is packed inside `path`.
    Raises `OpenUniError` if the file is damaged or contains anything but tensors.
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
            f"{path} cannot be read as weights: it is damaged, or contains objects other than tensors (code in a "
            f"checkpoint is never executed). Download it again {source}. ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    if not (isinstance(loaded, Mapping) and all(isinstance(value, torch.Tensor) for value in loaded.values())):
        raise OpenUniError(f"{path} must be a mapping of names to tensors. Save only the model's state_dict().")
    return dict(loaded)

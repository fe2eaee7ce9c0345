"""Loading networks of transformers from a folder: data only, in 32 bits, and complete."""

from pathlib import Path
from typing import Any

ONLY_DATA: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # no downloads, no remote code


def require_model_type(folder: Path, wanted: str) -> None:
    """Raise `ValueError` if the folder's configuration is of another kind of network; `OSError` if there is none."""
    from transformers import AutoConfig

    kind = AutoConfig.from_pretrained(folder, **ONLY_DATA).model_type
    if kind != wanted:
        raise ValueError(f'model_type in config.json is "{kind}", must be "{wanted}"')


def complete_network(network_type: Any, folder: Path, **options: Any) -> Any:
    """A network of that class with float32 weights, whatever the file has.

    `options`: others of `from_pretrained`. Raises `ValueError` if weights are missing or have another size, and what
    `from_pretrained` raises.
    """
    import torch

    network, report = network_type.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, **ONLY_DATA, **options
    )
    if report["missing_keys"] or report["mismatched_keys"]:
        lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise ValueError(f"{len(lacking)} tensors are missing or have another size, such as {lacking[0]}")
    return network

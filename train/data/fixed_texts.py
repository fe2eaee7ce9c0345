"""The fixed texts of a run: the empty caption and the modality-type prompts, embedded once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.contracts.parsing import find_and_parse
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.store import Store
from openuni.training.codec import LatentCodec, TextCodec

EMPTY = "empty caption"  # key of the text that replaces a dropped caption


def open_text_codec(record: dict[str, Any]) -> TextCodec:
    """The codec of a text family, from its record in the corpus."""
    return find_and_parse("codecs", TextCodec, record["codec"], record["options"])


def open_latent_codec(record: dict[str, Any]) -> LatentCodec:
    """The codec of a latent family, from its record in the corpus."""
    return find_and_parse("codecs", LatentCodec, record["codec"], record["options"])


@dataclass(frozen=True)
class FixedTexts:
    """Embeddings float32 [L, D] of the empty caption and the modality-type prompts, and the padded text length."""

    rows: dict[str, torch.Tensor]
    length: int

    @property
    def empty(self) -> torch.Tensor:
        """The empty caption, padded: float32 [length, D]."""
        return self.padded(self.rows[EMPTY])

    def prompt(self, modality: str) -> torch.Tensor:
        """The modality-type prompt, padded: float32 [length, D]."""
        return self.padded(self.rows[modality])

    def padded(self, text: torch.Tensor) -> torch.Tensor:
        """float32 [L, D] -> [length, D] with zero rows, which Wan attends to as in its training."""
        if len(text) > self.length:
            raise OpenUniError(
                f"a text has {len(text)} rows, but data.text_length is {self.length}. Raise it, or set it to 0."
            )
        return torch.nn.functional.pad(text, (0, 0, 0, self.length - len(text)))


def fixed_rows(record: dict[str, Any], modalities: tuple[str, ...], cache: Path) -> dict[str, torch.Tensor]:
    """Fixed texts, encoded with the corpus's text codec or read from `cache` if it matches.

    `record`: of the text family. The codec is loaded (on the CPU) only on a cache miss.
    """
    wanted = {EMPTY: ""} | {name: find_modality(name).prompt for name in modalities if name != "rgb"}
    stamp = fingerprint(texts=wanted, codec=record["codec"], options=record["options"])
    tensor_of = {name: f"{stamp}/{name}" for name in wanted}
    stored = _stored(cache)
    if set(tensor_of.values()) <= set(stored):
        return {name: stored[key] for name, key in tensor_of.items()}
    codec = open_text_codec(record)
    model = codec.load("cpu")
    rows = {name: torch.from_numpy(codec.encode(model, text)) for name, text in wanted.items()}
    tensors = {tensor_of[name]: row.contiguous() for name, row in rows.items()}
    Store(str(cache.parent)).put(cache.name, save(tensors, {"xxh3": _checksum(tensors)}))
    return rows


def _stored(cache: Path) -> dict[str, torch.Tensor]:
    """Contents of the cache; empty if it is missing or damaged, so that it is recreated."""
    try:
        tensors = load_file(cache)
        with safe_open(cache, "pt") as file:
            expected = (file.metadata() or {}).get("xxh3")
    except (OSError, SafetensorError):
        return {}
    # caches of earlier versions have no checksum
    return tensors if expected is None or expected == _checksum(tensors) else {}


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    """xxh3-64 of names, shapes and values."""
    total = xxhash.xxh3_64()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()

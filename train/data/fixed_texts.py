"""The fixed texts of a run: the empty caption and the modality-type prompts, embedded once."""

import base64
import binascii
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.modality import find_modality, modality_names
from openuni.manifests.contracts.parsing import find_and_parse
from openuni.manifests.corpus.layout import prompts_record
from openuni.manifests.errors import DamagedFile, OpenUniError
from openuni.manifests.storage.checksums import record_bytes
from openuni.manifests.storage.store import Store
from openuni.training.codec import LatentCodec, TextCodec

if TYPE_CHECKING:
    from openuni.manifests.corpus.corpus import Corpus

logger = logging.getLogger(__name__)
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

    def prompt(self, modality: str, subject: torch.Tensor | None = None) -> torch.Tensor:
        """The modality-type prompt, padded: float32 [length, D]. `subject`: [L, D], which follows the prompt's rows."""
        prompt = self.rows[modality]
        return self.padded(prompt if subject is None else torch.cat([prompt, subject.to(prompt)]))

    def padded(self, text: torch.Tensor) -> torch.Tensor:
        """float32 [L, D] -> [length, D] with zero rows, which Wan attends to as in its training."""
        if len(text) > self.length:
            raise OpenUniError(
                f"a text has {len(text)} rows, but data.text_length is {self.length}. Raise it, or set it to 0."
            )
        return torch.nn.functional.pad(text, (0, 0, 0, self.length - len(text)))


def fixed_rows(
    record: dict[str, Any],
    modalities: tuple[str, ...],
    cache: Path,
    known: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Fixed texts: from `cache` if it matches, else from `known`, else encoded with the corpus's text codec.

    `record`: of the text family. `known`: embeddings by text, see `stored_prompts`. The codec is loaded (on the CPU)
    only for texts that neither has.
    """
    wanted = {EMPTY: ""} | {name: find_modality(name).prompt for name in modalities if name != "rgb"}
    return embedded_rows(record, wanted, cache, known)


def embedded_rows(
    record: dict[str, Any],
    wanted: Mapping[str, str],
    cache: Path,
    known: Mapping[str, torch.Tensor] | None = None,
    device: str = "cpu",
) -> dict[str, torch.Tensor]:
    """Embeddings float32 [L, D] of the texts `wanted`, by name: see `fixed_rows`. `device`: of the codec, if loaded."""
    stamp = fingerprint(texts=dict(wanted), codec=record["codec"], options=record["options"])
    tensor_of = {name: f"{stamp}/{name}" for name in wanted}
    stored = _stored(cache)
    if set(tensor_of.values()) <= set(stored):
        return {name: stored[key] for name, key in tensor_of.items()}
    codec = open_text_codec(record)  # generating needs it: an unknown one is an error before training, not after
    rows = {name: known[text] for name, text in wanted.items() if known is not None and text in known}
    if len(rows) < len(wanted):
        model = codec.load(device)
        rows = {name: torch.from_numpy(codec.encode(model, text)) for name, text in wanted.items()}
    tensors = {tensor_of[name]: row.contiguous() for name, row in rows.items()}
    Store(str(cache.parent)).put(cache.name, save(tensors, {"xxh3": _checksum(tensors)}))
    return rows


def embedded_texts(record: dict[str, Any], texts: Mapping[str, str], cache: Path) -> dict[str, torch.Tensor]:
    """Embeddings float32 [L, D] of `texts`, by their names: from `cache` if it matches, else encoded, on the CPU.

    `record`: of the text family.
    """
    stamp = fingerprint(texts=dict(texts), codec=record["codec"], options=record["options"])
    tensor_of = {name: f"{stamp}/{number}" for number, name in enumerate(texts)}
    stored = _stored(cache)
    if not set(tensor_of.values()) <= set(stored):
        codec = open_text_codec(record)
        model = codec.load("cpu")
        stored = {
            key: torch.from_numpy(codec.encode(model, texts[name])).contiguous() for name, key in tensor_of.items()
        }
        Store(str(cache.parent)).put(cache.name, save(stored, {"xxh3": _checksum(stored)}))
    return {name: stored[key] for name, key in tensor_of.items()}


def store_prompts(corpus: "Corpus", family: str, codec: TextCodec, model: Any) -> None:
    """Store the embeddings of the empty caption and of all modality-type prompts in a text family, unless it has them.

    Training then needs no text encoder. `model`: the loaded codec.
    """
    texts = sorted({"", *(find_modality(name).prompt for name in modality_names())})
    if set(texts) <= stored_prompts(corpus, family).keys():
        return
    rows = {text: np.ascontiguousarray(codec.encode(model, text), "<f4") for text in texts}
    tables = [
        {"text": text, "shape": list(row.shape), "float32": base64.b64encode(row.tobytes()).decode()}
        for text, row in rows.items()
    ]
    corpus.store.put(prompts_record(family), record_bytes({"texts": tables}))


def stored_prompts(corpus: "Corpus", family: str) -> dict[str, torch.Tensor]:
    """Embeddings by text, float32 [L, D], that `store_prompts` has stored; empty if there are none, or damaged ones."""
    name = prompts_record(family)
    if not corpus.store.exists(name):
        return {}
    try:
        return dict(_prompt(entry) for entry in corpus.read_json(name)["texts"])
    except (DamagedFile, KeyError, TypeError, ValueError, binascii.Error) as error:
        logger.warning("%s cannot be used, the text codec is loaded instead: %s", corpus.store.location(name), error)
        return {}


def _prompt(entry: Mapping[str, Any]) -> tuple[str, torch.Tensor]:
    row = np.frombuffer(base64.b64decode(entry["float32"], validate=True), "<f4").reshape(entry["shape"])
    if row.ndim != 2 or not row.size or not np.isfinite(row).all():
        raise ValueError(f"an embedding has shape {row.shape}, or values that are not finite")
    return str(entry["text"]), torch.from_numpy(row.astype(np.float32))


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

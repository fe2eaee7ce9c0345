"""Tokenizers for models that generate text: text <-> token values."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xxhash

from openuni.manifests.contracts.checkpoint import hub_or_path
from openuni.manifests.errors import OpenUniError
from openuni.training.recipe import TextStreamOptions


class Tokenizer(Protocol):
    """Converts texts to token values of fixed length, padded with end tokens."""

    @property
    def vocabulary(self) -> int:
        """Number of token values, including the mask, which is the last."""

    @property
    def end(self) -> int:
        """Value of the end token."""

    def encode(self, text: str, length: int) -> torch.Tensor:
        """int64 [length]; text is truncated to `length - 1` tokens, so that the end token always fits."""

    def decode(self, tokens: Sequence[int] | torch.Tensor) -> str:
        """Text before the first end token, from any token values [L]."""

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """Number of tokens of each text without the end token, int64 [N]."""

    def digest(self) -> str:
        """16 hex digits, equal for tokenizers that give equal tokens."""


@dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes 0..255, end token 256, mask 257. Truncates after the last whole character that fits."""

    vocabulary: int = 258
    end: int = 256

    def encode(self, text: str, length: int) -> torch.Tensor:
        """See `Tokenizer`."""
        _check_length(length)
        kept = text.encode()[: length - 1].decode(errors="ignore").encode()
        return torch.tensor([*kept, *[self.end] * (length - len(kept))])

    def decode(self, tokens: Sequence[int] | torch.Tensor) -> str:
        """See `Tokenizer`; masks are omitted, invalid UTF-8 bytes become U+FFFD."""
        return bytes(value for value in _before(self.end, tokens) if value < 256).decode(errors="replace")

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """See `Tokenizer`."""
        return np.array([len(text.encode()) for text in texts], np.int64)

    def digest(self) -> str:
        """See `Tokenizer`."""
        return xxhash.xxh3_64_hexdigest(f"bytes {self.vocabulary} {self.end}".encode())


@dataclass(frozen=True)
class Umt5Tokenizer:
    """umT5's sentence pieces, from transformers. `checkpoint`: hub name or folder of the tokenizer or of a pipeline.

    The vocabulary is the tokenizer's, including padding and end, followed by the mask. Texts are padded with the end
    token. Names of special tokens in a text, such as "</s>", are treated as ordinary text.
    """

    checkpoint: str = "google/umt5-xxl"

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        root = hub_or_path(self.checkpoint).resolve()
        folder = Path(root) / "tokenizer" if (Path(root) / "tokenizer").is_dir() else root
        try:
            found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError) as error:  # transformers' errors for missing or damaged files
            reason = " ".join(str(error).split())[:200]
            raise OpenUniError(
                f"{folder} has no umT5 tokenizer that can be read. Pass the folder with its tokenizer.json, or a "
                f"pipeline folder with tokenizer/ ({reason})"
            ) from error
        if found.eos_token_id is None:
            raise OpenUniError(f"the tokenizer at {folder} has no end token. Use umT5's tokenizer.")
        return found

    @cached_property
    def _plain(self) -> Any:
        """The same tokenizer in the tokenizers library, with special tokens treated as ordinary text.

        The library's `encode_special_tokens` is not sufficient, since special tokens are also vocabulary pieces. They
        are renamed so that no text matches them; token values do not change.
        """
        from tokenizers import Tokenizer as Backend

        names = set(self._tokenizer.all_special_tokens)
        whole = json.loads(self._tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
        for token in whole["added_tokens"]:
            token["content"] = _unwritten(token["content"], names)
        model = whole["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {_unwritten(piece, names): value for piece, value in model["vocab"].items()}
        else:
            model["vocab"] = [[_unwritten(piece, names), score] for piece, score in model["vocab"]]
        if model.get("unk_token"):
            model["unk_token"] = _unwritten(model["unk_token"], names)
        return Backend.from_str(json.dumps(whole))

    @property
    def vocabulary(self) -> int:
        """Number of token values, including the mask (the last)."""
        return len(self._tokenizer) + 1

    @property
    def end(self) -> int:
        """Value of the end token."""
        return int(self._tokenizer.eos_token_id)

    def encode(self, text: str, length: int) -> torch.Tensor:
        """See `Tokenizer`."""
        _check_length(length)
        values = self._plain.encode(text, add_special_tokens=False).ids[: length - 1]
        return torch.tensor([*values, *[self.end] * (length - len(values))])

    def decode(self, tokens: Sequence[int] | torch.Tensor) -> str:
        """See `Tokenizer`; special tokens are omitted."""
        values = [value for value in _before(self.end, tokens) if value < self.vocabulary - 1]
        text: str = self._tokenizer.decode(values, skip_special_tokens=True)
        return text

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """See `Tokenizer`."""
        found = self._plain.encode_batch(list(texts), add_special_tokens=False)
        return np.array([len(text.ids) for text in found], np.int64)

    def digest(self) -> str:
        """See `Tokenizer`."""
        pieces = sorted(self._tokenizer.get_vocab().items(), key=lambda piece: piece[1])
        return xxhash.xxh3_64_hexdigest(repr((pieces, self.end)).encode())


def make_tokenizer(options: TextStreamOptions) -> Tokenizer:
    """The tokenizer of a recipe."""
    return ByteTokenizer() if options.tokenizer == "bytes" else Umt5Tokenizer(options.checkpoint)


def tokenizer_identity(tokenizer: Tokenizer) -> dict[str, int | str]:
    """Identity of a tokenizer, as recorded in run.json."""
    return {"vocabulary": tokenizer.vocabulary, "digest": tokenizer.digest()}


def _before(end: int, tokens: Sequence[int] | torch.Tensor) -> list[int]:
    values = [int(value) for value in tokens]
    return values[: values.index(end)] if end in values else values


def _unwritten(piece: str, names: set[str]) -> str:
    return f"\0unwritten\0{piece}" if piece in names else piece


def _check_length(length: int) -> None:
    if length < 1:
        raise OpenUniError(f"text length must be at least 1 token, got {length}")

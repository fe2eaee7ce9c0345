"""Text <-> token values, for models that make text."""

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
    """Texts as token values of one length: the text, then the end token up to the length."""

    @property
    def vocabulary(self) -> int:
        """Token values, the mask included: it is the last."""

    @property
    def end(self) -> int:
        """Value of the end token."""

    def encode(self, text: str, length: int) -> torch.Tensor:
        """int64 [length]; a text of more than `length - 1` tokens is cut, so that the end is always there."""

    def decode(self, tokens: Sequence[int] | torch.Tensor) -> str:
        """The text before the first end token; any values [L] of the vocabulary are allowed."""

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """int64 [N]: how many tokens each text has, the end not among them."""

    def digest(self) -> str:
        """16 hex digits: equal where equal texts give equal tokens."""


@dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes 0..255, the end 256, the mask 257. Cut after the last whole character that fits."""

    vocabulary: int = 258
    end: int = 256

    def encode(self, text: str, length: int) -> torch.Tensor:
        """See `Tokenizer`."""
        _check_length(length)
        kept = text.encode()[: length - 1].decode(errors="ignore").encode()
        return torch.tensor([*kept, *[self.end] * (length - len(kept))])

    def decode(self, tokens: Sequence[int] | torch.Tensor) -> str:
        """See `Tokenizer`; masks are left out, bytes that are no UTF-8 become U+FFFD."""
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

    The vocabulary is the tokenizer's own, padding and end included, and the mask behind it. The end token fills up.
    Names of special tokens in a text, such as "</s>", are words like any other.
    """

    checkpoint: str = "google/umt5-xxl"

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        root = hub_or_path(self.checkpoint).resolve()
        folder = Path(root) / "tokenizer" if (Path(root) / "tokenizer").is_dir() else root
        try:
            found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError) as error:  # as transformers meets what is missing or damaged
            reason = " ".join(str(error).split())[:200]
            raise OpenUniError(
                f"{folder} has no tokenizer of umT5 that can be read: give the folder with its tokenizer.json, or of a "
                f"pipeline with tokenizer/ inside ({reason})"
            ) from error
        if found.eos_token_id is None:
            raise OpenUniError(f"the tokenizer at {folder} has no end token: give umT5's own")
        return found

    @cached_property
    def _plain(self) -> Any:
        """The same tokenizer, of the tokenizers library, to which special tokens are words like any other.

        The library's own `encode_special_tokens` is not enough: they are pieces of the vocabulary too, in umT5 the
        likeliest. Renamed, none is in any text; values stay.
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
        """Token values, the mask (the last) included."""
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
        """See `Tokenizer`; special tokens are left out."""
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
    """The tokenizer that a recipe names."""
    return ByteTokenizer() if options.tokenizer == "bytes" else Umt5Tokenizer(options.checkpoint)


def tokenizer_identity(tokenizer: Tokenizer) -> dict[str, int | str]:
    """What a run records of its tokenizer, to know it again."""
    return {"vocabulary": tokenizer.vocabulary, "digest": tokenizer.digest()}


def _before(end: int, tokens: Sequence[int] | torch.Tensor) -> list[int]:
    values = [int(value) for value in tokens]
    return values[: values.index(end)] if end in values else values


def _unwritten(piece: str, names: set[str]) -> str:
    return f"\0unwritten\0{piece}" if piece in names else piece


def _check_length(length: int) -> None:
    if length < 1:
        raise OpenUniError(f"a text needs a length of at least 1 token, got {length}")

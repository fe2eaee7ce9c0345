"""Text codec without weights: one fixed vector per UTF-8 byte plus its position."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import numpy as np
import xxhash
from annotated_types import Ge, MultipleOf

from openuni.training.codec import TextCodec

END = 256  # end row of every text, so that the empty text has one row


@dataclass(frozen=True)
class Bytes(TextCodec):
    """UTF-8 bytes -> (sign vector of the byte + sinusoids of its position) / sqrt(2), then one end row.

    The sign vectors (entries +1 or -1 by a hash, so nearly orthogonal) and the sinusoids (as in the Transformer paper,
    times sqrt(2), so of unit mean square) are fixed. Text longer than `max_bytes` is truncated after the last whole
    character that fits; the end row is always appended.
    """

    origin: ClassVar[str] = "positions: Attention Is All You Need (Vaswani et al., 2017)"

    dim: Annotated[int, "width of the embeddings", Ge(2), MultipleOf(2)] = 64
    max_bytes: Annotated[int, "maximum length of a text in bytes; longer text is truncated", Ge(0)] = 255

    def encode(self, model: Any, text: str) -> np.ndarray:
        """Text of any length -> float32 [L, dim], L = number of bytes + 1."""
        kept = text.encode()[: self.max_bytes].decode(errors="ignore").encode()
        rows = np.append(np.frombuffer(kept, dtype=np.uint8).astype(np.int64), END)
        return ((_signs(self.dim)[rows] + _positions(len(rows), self.dim)) / np.sqrt(2)).astype(np.float32)


@lru_cache(maxsize=4)
def _signs(dim: int) -> np.ndarray:
    """float64 [257, dim] of -1 and +1."""
    bits = [
        [
            xxhash.xxh3_64_intdigest(bytes((value % 256, value // 256, column % 256, column // 256))) & 1
            for column in range(dim)
        ]
        for value in range(END + 1)
    ]
    return np.array(bits) * 2.0 - 1.0


def _positions(length: int, dim: int) -> np.ndarray:
    """float64 [length, dim]: sine and cosine pairs of mean square 1, wavelengths from 2 pi to 20000 pi rows."""
    angles = np.arange(length)[:, None] / 10000.0 ** (np.arange(dim // 2) / (dim // 2))
    return np.sqrt(2.0) * np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

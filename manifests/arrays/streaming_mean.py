"""The mean of float32 values that come in parts: the same bits as NumPy's mean of them all."""

import numpy as np

BLOCK = 8192  # values that NumPy adds at a time when it converts them to float64


class StreamingMean:
    """Mean of float32 values in parts, added in the order of `np.mean(values, dtype=np.float64)` of them all."""

    def __init__(self) -> None:
        self.count, self.total = 0, 0.0
        self.rest = np.empty(0, np.float32)  # of an incomplete block

    def add(self, values: np.ndarray) -> None:
        """Add the next values, float32 of any shape."""
        flat = np.ascontiguousarray(values).reshape(-1)
        missing = -len(self.rest) % BLOCK
        self.rest, flat = np.concatenate([self.rest, flat[:missing]]), flat[missing:]
        if len(self.rest) == BLOCK:
            self._add_block(self.rest)
            self.rest = self.rest[:0]
        whole = len(flat) // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            self._add_block(flat[start : start + BLOCK])
        if len(flat):
            self.rest = flat[whole:].copy()

    def mean(self) -> float | None:
        """The mean so far; None without values."""
        count = self.count + len(self.rest)
        return float((self.total + self.rest.sum(dtype=np.float64)) / count) if count else None

    def _add_block(self, block: np.ndarray) -> None:
        self.total += float(block.sum(dtype=np.float64))
        self.count += len(block)

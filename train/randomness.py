"""Named random draws: every draw is a pure function of the seed and its name.

No generator state is carried between steps, so resuming, prefetching and gradient accumulation cannot change a draw.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xxhash

Name = int | str


def named_seed(seed: int, *names: Name) -> int:
    """A 63-bit seed for one named purpose, such as `named_seed(7, "noise", step, slot, "rgb")`."""
    return xxhash.xxh3_64_intdigest(repr((seed, *names)).encode()) >> 1


def uniform(seed: int, *names: Name) -> float:
    """One number in [0, 1)."""
    return (named_seed(seed, *names) >> 10) / 2**53


def normal(shape: Sequence[int], seed: int, *names: Name, out: torch.Tensor | None = None) -> torch.Tensor:
    """float32 tensor of `shape` on the CPU, standard normal; equal on every device and number of threads.

    `out`: contiguous memory of that shape to write it to.
    """
    generator = torch.Generator().manual_seed(named_seed(seed, *names))
    return torch.randn(*shape, generator=generator, out=out)


def uniforms(shape: Sequence[int], seed: int, *names: Name) -> torch.Tensor:
    """float32 tensor of `shape` on the CPU, uniform in [0, 1); equal on every device and number of threads."""
    generator = torch.Generator().manual_seed(named_seed(seed, *names))
    return torch.rand(*shape, generator=generator)


def permuted(index: np.ndarray, count: int, key: int) -> np.ndarray:
    """Images of `index` (int64, values in 0..count-1) under a keyed permutation of 0..count-1 -> int64, same shape.

    A Feistel network over the next even number of bits, iterated until the value is in range (cycle walking). Every
    position of every epoch costs the same, and memory does not grow with the data.
    """
    half = max(1, ((max(2, count) - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    rounds = [np.uint64(named_seed(key, "round", number)) for number in range(6)]
    value = np.asarray(index, dtype=np.uint64).copy()
    todo = np.ones(value.shape, dtype=bool)
    while todo.any():
        left, right = value[todo] >> np.uint64(half), value[todo] & mask
        for salt in rounds:
            left, right = right, left ^ (_mixed(right + salt) & mask)
        value[todo] = (left << np.uint64(half)) | right
        todo &= value >= count
    return value.astype(np.int64)


def _mixed(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: uint64 -> uint64, every input bit reaches every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))

"""The codec contract: video <-> latents and text -> embeddings."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from openuni.manifests.contracts.component import Component


@dataclass(frozen=True)
class LatentCodec(Component, ABC):
    """Video <-> latents. Frame counts are 4k + 1: the first frame alone, then `stride[0]` frames per latent frame."""

    stride: ClassVar[tuple[int, int, int]] = (4, 8, 8)  # frames, height, width of video per latent element

    @abstractmethod
    def encode(self, model: Any, rgb: np.ndarray) -> np.ndarray:
        """float32 [T, H, W, 3] in 0..1, T = 4k + 1 -> normalized latents (posterior mean), float32 [C, T', H', W'].

        T' = (T - 1) / 4 + 1, H' = H / 8, W' = W / 8 at the default stride. Raises `ClipError` for other sizes.
        """

    def videos_per_batch(self, model: Any, height_px: int, width_px: int) -> int:
        """How many videos of this size `encode_batch` takes at most. Default: 1."""
        return 1

    def encode_batch(self, model: Any, videos: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The latents of several videos of one shape, in order; each is what `encode` gives, up to rounding.

        May raise whatever `encode` raises, also for one of them: the worker then tries parts of the batch.
        """
        return [self.encode(model, rgb) for rgb in videos]

    @abstractmethod
    def decode(self, model: Any, latents: np.ndarray) -> np.ndarray:
        """float32 [C, T', H', W'] -> float32 [T, H, W, 3] in 0..1."""


@dataclass(frozen=True)
class TextCodec(Component, ABC):
    """Text -> embeddings for cross-attention."""

    @abstractmethod
    def encode(self, model: Any, text: str) -> np.ndarray:
        """Text of any length -> float32 [L, D], without padding (at least one row, even for "")."""

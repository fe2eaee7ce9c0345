"""Alpha: how much of each pixel the foreground covers."""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np

from openuni.manifests.arrays.resample import resize_smooth
from openuni.manifests.contracts.modality import Modality, Payload
from openuni.manifests.errors import ClipError
from openuni.manifests.video.encode import encode_lossless

LEVELS = 65535  # of the stored 16-bit planes


class AlphaConstants(NamedTuple):
    """What a stored matte means."""

    levels: int = LEVELS  # the level that stands for full coverage


@dataclass(frozen=True, eq=False)
class Alpha(Modality):
    """Coverage of the foreground: float32 [T, H, W, 1], 0 (background alone) to 1 (foreground alone).

    Of sRGB values as they are, not of linear light: rgb = alpha x foreground + (1 - alpha) x background. Stored as 16
    bits, FFV1: error <= 1 / 131070. As RGB: three equal channels, and back by their mean; 8 bits cost at most 1 / 510.
    """

    name: ClassVar[str] = "alpha"
    prompt: ClassVar[str] = "alpha matte"
    constants_type: ClassVar[type[AlphaConstants]] = AlphaConstants

    def check(self) -> None:
        """Raise `ClipError` unless float32, one channel, finite and within 0..1."""
        lo, hi = self.check_array(np.float32, 1)
        if lo < 0 or hi > 1:
            raise ClipError(f"alpha: coverage must be within 0..1, got {lo:g} to {hi:g}; divide by the largest level")

    def constants(self) -> AlphaConstants:
        """The levels of storage; they do not depend on the clip."""
        return AlphaConstants()

    def encode(self, fps: float) -> Payload:
        """Gray 16-bit FFV1."""
        planes = np.rint(self.array * np.float32(LEVELS)).astype(np.uint16)
        return Payload(encode_lossless(planes, fps), self.suffix, self.constants())

    @classmethod
    def decode(cls, data: bytes, constants: AlphaConstants) -> Self:
        """The stored coverage."""
        if not 0 < constants.levels <= LEVELS:
            raise ClipError(f"alpha: levels must be within 1..{LEVELS}, the constants say {constants.levels}")
        return cls(cls.decode_planes(data, np.uint16, 1).astype(np.float32) / np.float32(constants.levels))

    def to_rgb(self) -> np.ndarray:
        """Grey float32 [T, H, W, 3], the foreground white."""
        return np.repeat(self.array, 3, axis=-1)

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, constants: AlphaConstants | None = None) -> Self:
        """The mean of the three channels, clipped to 0..1."""
        return cls(np.clip(rgb.mean(axis=-1, keepdims=True, dtype=np.float32), 0, 1))

    def resize(self, height_px: int, width_px: int) -> Self:
        """Averaged or bilinear."""
        return replace(self, array=resize_smooth(self.array, height_px, width_px))

"""Alpha: the fraction of each pixel that the foreground covers."""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np

from openuni.manifests.arrays.resample import resize_smooth
from openuni.manifests.contracts.modality import Modality, check_rendering
from openuni.manifests.errors import ClipError

LEVELS = 65535  # maximum of the stored 16-bit planes


class AlphaConstants(NamedTuple):
    """Constants of a stored matte."""

    levels: int = LEVELS  # level of full coverage


@dataclass(frozen=True, eq=False)
class Alpha(Modality):
    """Coverage of the foreground: float32 [T, H, W, 1], 0 (only background) to 1 (only foreground).

    Compositing uses sRGB values, not linear light: rgb = alpha x foreground + (1 - alpha) x background.

    Storage: 16 bits, FFV1; error <= 1 / 131070.

    Rendering: three equal channels; converted back by their mean. Rounding to 8 bits costs at most 1 / 510.
    """

    name: ClassVar[str] = "alpha"
    prompt: ClassVar[str] = "alpha matte"
    constants_type: ClassVar[type[AlphaConstants]] = AlphaConstants

    def check(self) -> None:
        """Raise `ClipError` unless float32, one channel, finite and within 0..1."""
        lo, hi = self.check_array(np.float32, 1)
        if lo < 0 or hi > 1:
            raise ClipError(f"alpha: coverage must be within 0..1, got {lo:g} to {hi:g}. Divide by the maximum level.")

    def constants(self) -> AlphaConstants:
        """The maximum level of the stored planes, the same for all clips."""
        return AlphaConstants()

    def planes(self, constants: AlphaConstants) -> np.ndarray:
        """16-bit grey planes."""
        return np.rint(self.array * np.float32(LEVELS)).astype(np.uint16)

    @classmethod
    def from_planes(cls, planes: np.ndarray, constants: AlphaConstants) -> Self:
        """The stored coverage. Raises `ClipError` for invalid constants."""
        if not 0 < constants.levels <= LEVELS:
            raise ClipError(f"alpha: constants must have levels within 1..{LEVELS}, got {constants.levels}")
        return cls(cls.check_planes(planes, np.uint16, 1).astype(np.float32) / np.float32(constants.levels))

    def to_rgb(self) -> np.ndarray:
        """float32 [T, H, W, 3], grey; the foreground is white."""
        return np.repeat(self.array, 3, axis=-1)

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, constants: AlphaConstants | None = None) -> Self:
        """Coverage as the mean of the three channels, clipped to 0..1."""
        check_rendering(cls.name, rgb)
        return cls(np.clip(rgb.mean(axis=-1, keepdims=True, dtype=np.float32), 0, 1))

    def resize(self, height_px: int, width_px: int) -> Self:
        """Resize by area averaging or bilinear interpolation."""
        return replace(self, array=resize_smooth(self.array, height_px, width_px))

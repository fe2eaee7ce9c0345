"""RGB: the video frames."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np

from openuni.manifests.arrays.resample import resize_smooth
from openuni.manifests.contracts.modality import Modality, picture_levels
from openuni.manifests.errors import ClipError


class RGBConstants(NamedTuple):
    """Constants of a stored picture."""

    colour_space: str = "srgb"  # display-encoded, full range


@dataclass(frozen=True, eq=False)
class RGB(Modality):
    """Colour video: uint8 [T, H, W, 3], RGB, sRGB, full range 0..255.

    Storage: lossless (RGB H.264; earlier versions wrote FFV1, which is still read).

    Rendering: value / 255; converted back exactly from 8 bits, or under any perturbation below 1 / 510.
    """

    name: ClassVar[str] = "rgb"
    prompt: ClassVar[str] = "colour video"
    is_picture: ClassVar[bool] = True
    constants_type: ClassVar[type[RGBConstants]] = RGBConstants
    coding: ClassVar[Mapping[str, bool]] = {"across_frames": True, "fast": True}  # RGB H.264

    def check(self) -> None:
        """Raise `ClipError` unless uint8 with three channels."""
        if self.array.dtype != np.uint8 or self.array.shape[-1] != 3:
            raise ClipError(f"{self.name}: array must be uint8 [T, H, W, 3], got {self.array.dtype} {self.array.shape}")

    def constants(self) -> RGBConstants:
        """The colour space, the same for all clips."""
        return RGBConstants()

    def planes(self, constants: RGBConstants) -> np.ndarray:
        """The frames themselves."""
        return self.array

    @classmethod
    def from_planes(cls, planes: np.ndarray, constants: RGBConstants) -> Self:
        """The stored picture."""
        return cls(planes)

    def to_rgb(self) -> np.ndarray:
        """float32 [T, H, W, 3]: value / 255."""
        return self.array.astype(np.float32) / np.float32(255)

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, constants: RGBConstants | None = None) -> Self:
        """Round to 8 bits; values outside 0..1 are clipped."""
        return cls(picture_levels(cls.name, rgb))

    def resize(self, height_px: int, width_px: int) -> Self:
        """Resize by area averaging or bilinear interpolation."""
        return replace(self, array=resize_smooth(self.array, height_px, width_px))

"""Albedo: diffuse reflectance of the surface, without lighting."""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np

from openuni.manifests.arrays.resample import resize_smooth
from openuni.manifests.arrays.srgb import linear_to_srgb, srgb_to_linear
from openuni.manifests.contracts.modality import Modality, check_rendering
from openuni.manifests.errors import ClipError

LEVELS = 65535  # maximum of the stored 16-bit planes


class AlbedoConstants(NamedTuple):
    """Constants of a stored map."""

    transfer: str = "linear"  # transfer function of the stored planes; linear: reflectance = level / 65535


@dataclass(frozen=True, eq=False)
class Albedo(Modality):
    """Diffuse reflectance: float32 [T, H, W, 3], RGB (sRGB primaries), linear, 0..1.

    Linear RGB = albedo x irradiance.

    Storage: 16 bits, linear, FFV1; error <= 1 / 131070.

    Rendering: sRGB transfer function, like a picture of evenly lit surfaces. Rounding to 8 bits costs at most 0.0045 at
    white, less than 0.0002 near black.
    """

    name: ClassVar[str] = "albedo"
    prompt: ClassVar[str] = "albedo map"
    constants_type: ClassVar[type[AlbedoConstants]] = AlbedoConstants

    def check(self) -> None:
        """Raise `ClipError` unless float32, three channels, finite and within 0..1."""
        lo, hi = self.check_array(np.float32, 3)
        if lo < 0 or hi > 1:
            raise ClipError(f"albedo: reflectance must be within 0..1, got {lo:g} to {hi:g}. Clip or rescale it.")

    def constants(self) -> AlbedoConstants:
        """The transfer function of the planes, the same for all clips."""
        return AlbedoConstants()

    def planes(self, constants: AlbedoConstants) -> np.ndarray:
        """16-bit planes, linear."""
        planes = np.empty(self.array.shape, np.uint16)
        for plane, image in zip(planes, self.array, strict=True):
            plane[:] = np.rint(image * np.float32(LEVELS))
        return planes

    @classmethod
    def from_planes(cls, planes: np.ndarray, constants: AlbedoConstants) -> Self:
        """The stored reflectance. Raises `ClipError` for another transfer function."""
        if constants != AlbedoConstants():
            raise ClipError(f'albedo: constants must have transfer = "linear", got "{constants.transfer}"')
        return cls(cls.check_planes(planes, np.uint16, 3).astype(np.float32) / np.float32(LEVELS))

    def to_rgb(self) -> np.ndarray:
        """float32 [T, H, W, 3]: sRGB values."""
        out = np.empty(self.array.shape, np.float32)
        for target, image in zip(out, self.array, strict=True):
            target[:] = np.clip(linear_to_srgb(image), 0, 1)
        return out

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, constants: AlbedoConstants | None = None) -> Self:
        """Convert sRGB values to linear reflectance; values outside 0..1 are clipped."""
        check_rendering(cls.name, rgb)
        out = np.empty(rgb.shape, np.float32)
        for target, image in zip(out, rgb, strict=True):
            target[:] = np.clip(srgb_to_linear(np.clip(image, 0, 1)), 0, 1)
        return cls(out)

    def resize(self, height_px: int, width_px: int) -> Self:
        """Resize by area averaging or bilinear interpolation, in linear reflectance."""
        return replace(self, array=resize_smooth(self.array, height_px, width_px))

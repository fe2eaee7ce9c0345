"""Albedo: the colour of the surface itself, without light and shadow."""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np

from openuni.manifests.arrays.resample import resize_smooth
from openuni.manifests.arrays.srgb import linear_to_srgb, srgb_to_linear
from openuni.manifests.contracts.modality import Modality, Payload
from openuni.manifests.errors import ClipError
from openuni.manifests.video.encode import encode_lossless

LEVELS = 65535  # of the stored 16-bit planes


class AlbedoConstants(NamedTuple):
    """What a stored map means."""

    transfer: str = "linear"  # of the stored planes: level / 65535 is the reflectance


@dataclass(frozen=True, eq=False)
class Albedo(Modality):
    """Diffuse reflectance: float32 [T, H, W, 3], red green blue (sRGB primaries), linear, 0..1.

    Linear rgb = albedo x irradiance. Stored as 16 bits, linear, FFV1: error <= 1 / 131070. As RGB: the sRGB transfer
    function, so that it looks as a picture of evenly lit surfaces would; 8 bits cost at most 0.0045, at white, and less
    than 0.0002 near black.
    """

    name: ClassVar[str] = "albedo"
    prompt: ClassVar[str] = "albedo map"
    constants_type: ClassVar[type[AlbedoConstants]] = AlbedoConstants

    def check(self) -> None:
        """Raise `ClipError` unless float32, three channels, finite and within 0..1."""
        lo, hi = self.check_array(np.float32, 3)
        if lo < 0 or hi > 1:
            raise ClipError(f"albedo: reflectance must be within 0..1, got {lo:g} to {hi:g}; clip or rescale it")

    def constants(self) -> AlbedoConstants:
        """The transfer of the planes; it does not depend on the clip."""
        return AlbedoConstants()

    def encode(self, fps: float) -> Payload:
        """RGB 16-bit FFV1, linear."""
        planes = np.empty(self.array.shape, np.uint16)
        for plane, image in zip(planes, self.array, strict=True):
            plane[:] = np.rint(image * np.float32(LEVELS))
        return Payload(encode_lossless(planes, fps), self.suffix, self.constants())

    @classmethod
    def decode(cls, data: bytes, constants: AlbedoConstants) -> Self:
        """The stored reflectance. Raises `ClipError` for planes of another transfer."""
        if constants != AlbedoConstants():
            raise ClipError(f'albedo: planes must be "linear", the constants say "{constants.transfer}"')
        return cls(cls.decode_planes(data, np.uint16, 3).astype(np.float32) / np.float32(LEVELS))

    def to_rgb(self) -> np.ndarray:
        """float32 [T, H, W, 3]: sRGB values."""
        out = np.empty(self.array.shape, np.float32)
        for target, image in zip(out, self.array, strict=True):
            target[:] = np.clip(linear_to_srgb(image), 0, 1)
        return out

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, constants: AlbedoConstants | None = None) -> Self:
        """sRGB values taken back to linear; outside 0..1 they are clipped."""
        out = np.empty(rgb.shape, np.float32)
        for target, image in zip(out, rgb, strict=True):
            target[:] = np.clip(srgb_to_linear(np.clip(image, 0, 1)), 0, 1)
        return cls(out)

    def resize(self, height_px: int, width_px: int) -> Self:
        """Averaged or bilinear, in linear reflectance."""
        return replace(self, array=resize_smooth(self.array, height_px, width_px))

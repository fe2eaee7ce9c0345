"""Depth: how far each pixel's surface is from the camera, as disparity or in metres."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np

from openuni.manifests.arrays.resample import resize_smooth
from openuni.manifests.contracts.modality import Modality, Payload
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities._compact import finest_within_budget
from openuni.manifests.video.encode import decode_lossless, encode_lossless

LEVELS = 65535  # of the stored 16-bit planes, less one
COMPACT_BITS_PER_PX = 1.95  # 7.9 MB for 81 frames of 480 x 832
COMPACT_LEVELS = (65535, 16383, 8191, 4095, 2047, 1023, 511, 255)


class DepthConstants(NamedTuple):
    """One normalisation per clip."""

    unit: str  # "disparity" or "metres"
    lo: float  # smallest value of the clip, in its unit
    hi: float  # largest value of the clip, in its unit
    levels: int = LEVELS  # steps of the stored planes between the two

    def checked(self) -> Self:
        """Itself; raises `ClipError` for constants that no depth of ours has: they may come from anyone's file."""
        if self.unit not in ("disparity", "metres"):
            raise ClipError(f'depth: unit must be "disparity" or "metres", the constants say "{self.unit}"')
        above = self.lo > 0 if self.unit == "metres" else self.lo >= 0
        if not (above and np.isfinite(self.hi) and self.hi >= self.lo):
            raise ClipError(f"depth: {self.unit} cannot range from {self.lo:g} to {self.hi:g}")
        if not 1 <= self.levels <= LEVELS:
            raise ClipError(f"depth: levels are 1..{LEVELS}, the constants say {self.levels}")
        return self


@dataclass(frozen=True, eq=False)
class Depth(Modality):
    """Disparity (larger is nearer) or metres (larger is farther): float32 [T, H, W, 1], finite.

    `unit` "disparity": >= 0, scale and shift free unless the annotator says otherwise; "metres": > 0, distance along
    the optical axis.
    `normalisation`: constants of the row or rendering this depth was read from; kept through take, crop and resize, so
    that every window of a clip is rendered alike. None: the array's own smallest and largest value.

    Stored as 16 bits, FFV1: disparity affinely, error <= (hi - lo) / 131070; metres on a log scale, relative error
    <= ln(hi / lo) / 131070 (each plus float32 rounding, 2^-23 of the value). Compact: with the most levels of 65535 to
    255 that fit in 1.95 bits per pixel, error <= (hi - lo) / (2 levels), or ln(hi / lo) / (2 levels) of metres; where
    255 do not fit, at half the size, and so on. As RGB: grey, nearer is brighter, affine
    in disparity or in 1 / metres; 8 bits cost at most 1 / 510 of that range.
    """

    unit: Literal["disparity", "metres"] = "disparity"
    normalisation: DepthConstants | None = None

    name: ClassVar[str] = "depth"
    prompt: ClassVar[str] = "depth map"
    constants_type: ClassVar[type[DepthConstants]] = DepthConstants

    def check(self) -> None:
        """Raise `ClipError` unless float32, one channel, finite and in the unit's range."""
        if self.array.dtype != np.float32 or self.array.shape[-1] != 1:
            raise ClipError(f"depth: array must be float32 [T, H, W, 1], got {self.array.dtype} {self.array.shape}")
        if self.unit not in ("disparity", "metres"):
            raise ClipError(f'depth: unit must be "disparity" or "metres", got "{self.unit}"')
        if not self.array.size:
            return
        lo, hi = float(self.array.min()), float(self.array.max())
        if not (np.isfinite(lo) and np.isfinite(hi)):
            raise ClipError("depth: array has NaN or infinite values; replace the sky by the farthest finite value")
        if lo < 0 or (lo == 0 and self.unit == "metres"):
            rule = ">= 0" if self.unit == "disparity" else "> 0"
            raise ClipError(f"depth: {self.unit} must be {rule}, smallest value is {lo:g}")

    def constants(self) -> DepthConstants:
        """The row's when the depth came from one, else unit, smallest and largest value of the array."""
        if self.normalisation is not None:
            return self.normalisation
        return DepthConstants(self.unit, float(self.array.min()), float(self.array.max()))

    def encode(self, fps: float) -> Payload:
        """Gray 16-bit FFV1 over `constants()`, or over the array's own range where that is wider."""
        return self.encode_in_steps(fps, LEVELS)

    def encode_compact(self, fps: float) -> Payload:
        """See the class: fewer levels, 8 bits from 255 on."""
        scaled = replace(self, normalisation=self.constants())  # a sample of it has the same range
        return finest_within_budget(
            scaled, lambda depth, levels: depth.encode_in_steps(fps, levels), COMPACT_LEVELS, COMPACT_BITS_PER_PX
        )

    def encode_in_steps(self, fps: float, levels: int) -> Payload:
        """With `levels` steps between the smallest and the largest value; in 8 bits where that is enough."""
        constants = self.constants()
        if self.array.min() < constants.lo or self.array.max() > constants.hi:
            constants = replace(self, normalisation=None).constants()
        lo, hi = _scaled_range(constants)
        span = hi - lo or 1.0
        planes = np.empty(self.array.shape, np.uint8 if levels < 256 else np.uint16)
        for plane, image in zip(planes, self.array, strict=True):
            value = np.log(image, dtype=np.float64) if self.unit == "metres" else image.astype(np.float64)
            plane[:] = np.rint(np.clip((value - lo) / span, 0, 1) * levels)
        return Payload(encode_lossless(planes, fps), self.suffix, constants._replace(levels=levels))

    @classmethod
    def decode(cls, data: bytes, constants: DepthConstants) -> Self:
        """The stored depth, in the row's unit, with the row's normalisation."""
        lo, hi = _scaled_range(constants.checked())
        planes = decode_lossless(data)
        table = lo + np.minimum(np.arange(LEVELS + 1) / constants.levels, 1) * (hi - lo)
        if constants.unit == "metres":
            table = np.exp(table)
        values = np.clip(table, constants.lo, constants.hi).astype(np.float32)
        return cls(values[planes], _unit(constants), constants)

    def to_rgb(self) -> np.ndarray:
        """Grey float32 [T, H, W, 3], nearest of the clip 1, farthest 0; a clip of one single depth is 0.5."""
        constants = self.constants()
        far, near = _far_near(constants)
        if near == far:
            return np.full((*self.array.shape[:3], 3), 0.5, np.float32)
        out = np.empty((*self.array.shape[:3], 3), np.float32)
        for target, image in zip(out, self.array, strict=True):
            value = 1.0 / image.astype(np.float64) if constants.unit == "metres" else image.astype(np.float64)
            target[:] = np.clip((value - far) / (near - far), 0, 1)
        return out

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, constants: DepthConstants | None = None) -> Self:
        """From the mean of the three channels. Without constants: disparity in 0..1."""
        constants = (constants or DepthConstants("disparity", 0.0, 1.0)).checked()
        far, near = _far_near(constants)
        out = np.empty((*rgb.shape[:3], 1), np.float32)
        for target, image in zip(out, rgb, strict=True):
            mean = (image[..., 0].astype(np.float64) + image[..., 1] + image[..., 2]) / 3
            value = far + np.clip(mean, 0, 1) * (near - far)
            value = 1.0 / value if constants.unit == "metres" else value
            target[..., 0] = np.clip(value, constants.lo, constants.hi)
        return cls(out, _unit(constants), constants)

    def resize(self, height_px: int, width_px: int) -> Self:
        """Averaged or bilinear in disparity; metres in 1 / metres, which is linear across a plane in the picture."""
        if self.unit == "disparity":
            return replace(self, array=resize_smooth(self.array, height_px, width_px))
        inverse = resize_smooth(1 / self.array, height_px, width_px)
        return replace(self, array=np.clip(1 / inverse, self.array.min(), self.array.max()))


def _unit(constants: DepthConstants) -> Literal["disparity", "metres"]:
    return "metres" if constants.unit == "metres" else "disparity"


def _scaled_range(constants: DepthConstants) -> tuple[float, float]:
    """lo and hi on the storage scale."""
    if constants.unit == "metres":
        return float(np.log(constants.lo)), float(np.log(constants.hi))
    return constants.lo, constants.hi


def _far_near(constants: DepthConstants) -> tuple[float, float]:
    """Far and near end of the rendering's scale: disparity, or 1 / metres."""
    if constants.unit == "metres":
        return 1 / constants.hi, 1 / constants.lo
    return constants.lo, constants.hi

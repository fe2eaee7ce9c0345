"""Depth: distance of each pixel's surface from the camera, as disparity or in metres."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np

from openuni.manifests.arrays.resample import resize_smooth
from openuni.manifests.contracts.modality import Modality, Payload, check_rendering
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities._compact import CompactStorage
from openuni.manifests.video.encode import encode_lossless

LEVELS = 65535  # maximum of the stored 16-bit planes
COMPACT_BITS_PER_PX = 1.95  # 7.9 MB for 81 frames of 480 x 832
COMPACT_LEVELS = (65535, 16383, 8191, 4095, 2047, 1023, 511, 255)


class DepthConstants(NamedTuple):
    """Normalization of a clip."""

    unit: str  # "disparity" or "metres"
    lo: float  # minimum of the clip, in its unit
    hi: float  # maximum of the clip, in its unit
    levels: int = LEVELS  # number of steps between minimum and maximum in the stored planes

    def checked(self) -> Self:
        """Return self. Raises `ClipError` for invalid constants, which untrusted files may contain."""
        if self.unit not in ("disparity", "metres"):
            raise ClipError(f'depth: constants must have unit "disparity" or "metres", got "{self.unit}"')
        is_valid_lo = self.lo > 0 if self.unit == "metres" else self.lo >= 0
        if not (is_valid_lo and np.isfinite(self.hi) and self.hi >= self.lo):
            bound = "> 0" if self.unit == "metres" else ">= 0"
            raise ClipError(
                f"depth: constants have lo = {self.lo:g} and hi = {self.hi:g} in {self.unit}; lo must be {bound}, hi "
                "finite and at least lo"
            )
        if not 1 <= self.levels <= LEVELS:
            raise ClipError(f"depth: constants must have levels within 1..{LEVELS}, got {self.levels}")
        return self


@dataclass(frozen=True, eq=False)
class Depth(Modality):
    """Disparity (larger is nearer) or metres (larger is farther): float32 [T, H, W, 1], finite.

    `unit` "disparity": >= 0, with unknown scale and shift unless the annotator documents otherwise; "metres": > 0,
    distance along the optical axis.
    `normalisation`: constants of the row or rendering that this depth was read from. They persist through take, crop
    and resize, so that all windows of a clip are rendered alike. None: minimum and maximum of the array.

    Storage: 16 bits, FFV1. Disparity is affine, error <= (hi - lo) / 131070; metres are on a log scale, relative error
    <= ln(hi / lo) / 131070 (plus float32 rounding, 2^-23 of the value). Compact storage: the maximum number of levels
    (65535 to 255) that fits into 1.95 bits per pixel, error <= (hi - lo) / (2 levels), for metres relative error
    <= ln(hi / lo) / (2 levels); downscaled if 255 levels do not fit.

    Rendering: grey, nearer is brighter, affine in disparity or in 1 / metres. Rounding to 8 bits costs at most 1 / 510
    of that range.
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
            raise ClipError("depth: array has NaN or infinite values. Set the sky to the farthest finite value.")
        if lo < 0 or (lo == 0 and self.unit == "metres"):
            bound = ">= 0" if self.unit == "disparity" else "> 0"
            raise ClipError(f"depth: {self.unit} must be {bound}, minimum is {lo:g}")

    def constants(self) -> DepthConstants:
        """The row's constants if the depth was read from one, else unit, minimum and maximum of the array."""
        if self.normalisation is not None:
            return self.normalisation
        return DepthConstants(self.unit, float(self.array.min()), float(self.array.max()))

    @classmethod
    def constants_of(cls, blocks: Iterable[Self]) -> DepthConstants:
        """The constants to store maps with: those of the row, unless the range of the blocks is wider."""
        first = next(iter(blocks))
        lo, hi = float("inf"), float("-inf")
        for block in blocks:
            if block.unit != first.unit:
                raise ClipError(f"depth: all maps of a clip must have one unit, got {first.unit} and {block.unit}")
            lo, hi = min(lo, float(block.array.min())), max(hi, float(block.array.max()))
        stored = first.normalisation
        found = stored if stored and stored.lo <= lo and hi <= stored.hi else DepthConstants(first.unit, lo, hi)
        return found._replace(levels=LEVELS)

    def planes(self, constants: DepthConstants) -> np.ndarray:
        """Grey planes with `constants.levels` steps over the range of `constants`, in 8 bits if these suffice."""
        lo, hi = _scaled_range(constants)
        span = hi - lo or 1.0
        planes = np.empty(self.array.shape, np.uint8 if constants.levels < 256 else np.uint16)
        for plane, image in zip(planes, self.array, strict=True):
            value = np.log(image, dtype=np.float64) if self.unit == "metres" else image.astype(np.float64)
            plane[:] = np.rint(np.clip((value - lo) / span, 0, 1) * constants.levels)
        return planes

    def encode(self, fps: float) -> Payload:
        """Encode as 16-bit grey FFV1 over the range of `constants()`, or of the array if that is wider."""
        constants = self.constants_of([self])
        return Payload(encode_lossless(self.planes(constants), fps), self.suffix, constants)

    @classmethod
    def compact_storage(cls) -> CompactStorage:
        """Fewer levels, 8 bits for 255 levels; see the class for the error bound."""
        return CompactStorage(
            COMPACT_BITS_PER_PX,
            COMPACT_LEVELS,
            lambda constants, levels: constants._replace(levels=levels),
            lambda depth, constants: replace(depth, normalisation=constants),  # sampled frames use the same range
        )

    @classmethod
    def from_planes(cls, planes: np.ndarray, constants: DepthConstants) -> Self:
        """The stored depth, in the row's unit and with the row's normalization."""
        lo, hi = _scaled_range(constants.checked())
        table = lo + np.minimum(np.arange(LEVELS + 1) / constants.levels, 1) * (hi - lo)
        if constants.unit == "metres":
            table = np.exp(table)
        values = np.clip(table, constants.lo, constants.hi).astype(np.float32)
        return cls(values[planes], _unit(constants), constants)

    def to_rgb(self) -> np.ndarray:
        """float32 [T, H, W, 3], grey: the clip's nearest depth is 1, its farthest 0; constant depth is 0.5."""
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
        """Depth from the mean of the three channels. Without constants: disparity in 0..1."""
        check_rendering(cls.name, rgb)
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
        """Resize by area averaging or bilinear interpolation, in disparity or 1 / metres (affine on planes)."""
        if self.unit == "disparity":
            return replace(self, array=resize_smooth(self.array, height_px, width_px))
        inverse = resize_smooth(1 / self.array, height_px, width_px)
        return replace(self, array=np.clip(1 / inverse, self.array.min(), self.array.max()))


def _unit(constants: DepthConstants) -> Literal["disparity", "metres"]:
    return "metres" if constants.unit == "metres" else "disparity"


def _scaled_range(constants: DepthConstants) -> tuple[float, float]:
    """Minimum and maximum on the scale of the stored planes."""
    if constants.unit == "metres":
        return float(np.log(constants.lo)), float(np.log(constants.hi))
    return constants.lo, constants.hi


def _far_near(constants: DepthConstants) -> tuple[float, float]:
    """Far and near end of the rendering's scale, in disparity or 1 / metres."""
    if constants.unit == "metres":
        return 1 / constants.hi, 1 / constants.lo
    return constants.lo, constants.hi

"""Irradiance: incoming light at each pixel's surface."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np

from openuni.manifests.arrays.order_statistics import value_at_rank
from openuni.manifests.arrays.resample import resize_smooth
from openuni.manifests.arrays.srgb import linear_to_srgb, srgb_to_linear
from openuni.manifests.contracts.modality import Modality, check_rendering
from openuni.manifests.errors import ClipError

MAX_VALUE = 65504.0  # maximum of 16-bit floats
WHITE_PERCENTILE = 99.5
WHITE_FLOOR = 2.0**-14  # smallest normal 16-bit float; keeps black clips black


class IrradianceConstants(NamedTuple):
    """Rendering scale of a clip."""

    white: float  # irradiance that is rendered as white

    def checked(self) -> Self:
        """Return self. Raises `ClipError` unless `white` is positive and finite."""
        if not 0 < self.white < math.inf:
            raise ClipError(f"irradiance: white must be above 0 and finite, got {self.white:g}")
        return self


@dataclass(frozen=True, eq=False)
class Irradiance(Modality):
    """Incoming light: float32 [T, H, W, 3], RGB (sRGB primaries), linear, 0..65504.

    The scale is such that linear RGB = albedo x irradiance; values above 1 would overexpose a white surface.
    `white`: rendering scale of the row that this map was read from. It persists through take, crop and resize, so that
    all windows of a clip are rendered alike. None: computed from the array.

    Storage: 16-bit floats, FFV1; exact for values that are 16-bit floats, otherwise relative error <= 2^-11 (absolute
    error <= 2^-25 below 2^-14).

    Rendering: irradiance / white, clipped to 1, then the sRGB transfer function. White is the clip's 99.5th percentile
    of the brightest channel of each pixel, at least 2^-14. Values above white are converted back to white. Rounding to
    8 bits costs at most 0.0045 white.
    """

    white: float | None = None

    name: ClassVar[str] = "irradiance"
    prompt: ClassVar[str] = "irradiance map"
    constants_type: ClassVar[type[IrradianceConstants]] = IrradianceConstants

    def check(self) -> None:
        """Raise `ClipError` unless float32, three channels, finite, >= 0 and within 16-bit floats."""
        lo, hi = self.check_array(np.float32, 3)
        if lo < 0:
            raise ClipError(f"irradiance: must be >= 0, minimum is {lo:g}")
        if hi > MAX_VALUE:
            raise ClipError(
                f"irradiance: must be at most {MAX_VALUE:g} (16-bit floats), maximum is {hi:g}. Rescale the clip, or "
                "clip its brightest pixels."
            )
        if self.white is not None:
            IrradianceConstants(self.white).checked()

    def constants(self) -> IrradianceConstants:
        """The row's white if the map was read from one, else the white of the array."""
        return IrradianceConstants(white_point(self.array) if self.white is None else self.white)

    @classmethod
    def constants_of(cls, blocks: Iterable[Self]) -> IrradianceConstants:
        """See `Modality.constants_of`: the row's white, or that of all blocks."""
        white = next(iter(blocks)).white
        return IrradianceConstants(_white_of(BlockArrays(blocks)) if white is None else white)

    def planes(self, constants: IrradianceConstants) -> np.ndarray:
        """The bit patterns of IEEE half-precision floats, 16 bits."""
        import cv2

        planes = np.empty(self.array.shape, np.uint16)
        for plane, image in zip(planes.view(np.float16), self.array, strict=True):
            # same rounding as NumPy's conversion, but many times faster
            plane[:] = cv2.add(image, 0, dtype=cv2.CV_16F)  # type: ignore[call-overload]
        return planes

    @classmethod
    def from_planes(cls, planes: np.ndarray, constants: IrradianceConstants) -> Self:
        """The stored irradiance, with the row's white."""
        planes = np.ascontiguousarray(cls.check_planes(planes, np.uint16, 3))
        return cls(planes.view(np.float16).astype(np.float32), constants.checked().white)

    @classmethod
    def from_passthrough(cls, array: np.ndarray, constants: IrradianceConstants) -> Self:
        """The signal of an array [T, H, W, C] that was read from passthrough files, with the row's white."""
        return cls(array, constants.checked().white)

    def to_rgb(self) -> np.ndarray:
        """float32 [T, H, W, 3]: sRGB values of irradiance / white."""
        white = np.float32(self.constants().white)
        out = np.empty(self.array.shape, np.float32)
        for target, image in zip(out, self.array, strict=True):
            target[:] = np.clip(linear_to_srgb(np.minimum(image / white, 1)), 0, 1)
        return out

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, constants: IrradianceConstants | None = None) -> Self:
        """Convert sRGB values to linear light and multiply by white. Without constants white is 1."""
        check_rendering(cls.name, rgb)
        white = (constants or IrradianceConstants(1.0)).checked().white
        out = np.empty(rgb.shape, np.float32)
        for target, image in zip(out, rgb, strict=True):
            target[:] = np.clip(srgb_to_linear(np.clip(image, 0, 1)) * white, 0, min(white, MAX_VALUE))
        return cls(out, white)

    def resize(self, height_px: int, width_px: int) -> Self:
        """Resize by area averaging or bilinear interpolation, in linear light."""
        return replace(self, array=resize_smooth(self.array, height_px, width_px))


class BlockArrays:
    """The arrays of maps that come in blocks; can be iterated as often as the blocks."""

    def __init__(self, blocks: Iterable[Irradiance]) -> None:
        self.blocks = blocks

    def __iter__(self) -> Iterator[np.ndarray]:
        return (block.array for block in self.blocks)


def white_point(array: np.ndarray) -> float:
    """99.5th percentile over the clip of each pixel's brightest channel, at least `WHITE_FLOOR`.

    `array`: [T, H, W, C] with C 1 or 3.
    """
    return _white_of([array])


def _white_of(arrays: Iterable[np.ndarray]) -> float:
    """`white_point` of an array that comes in blocks of frames, which are iterated twice."""
    size = sum(array.size // array.shape[-1] for array in arrays)
    if not size:
        return WHITE_FLOOR

    def brightest() -> Iterator[np.ndarray]:
        return (np.maximum(image.max(axis=-1), 0) for array in arrays for image in array)

    rank = math.ceil(WHITE_PERCENTILE / 100 * (size - 1))
    return max(WHITE_FLOOR, value_at_rank(brightest, rank))

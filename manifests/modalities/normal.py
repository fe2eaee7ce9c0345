"""Normal: orientation of each pixel's surface."""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np

from openuni.manifests.arrays.resample import resize_nearest, resize_smooth
from openuni.manifests.arrays.vectors import rescale_vectors, vector_lengths
from openuni.manifests.contracts.modality import Modality, check_rendering
from openuni.manifests.errors import ClipError

LENGTH_TOLERANCE = 1e-3  # twice the length error of rounding to 16-bit floats
ZERO_LEVEL = 32768  # level of zero in the stored 16-bit planes
LEVELS = 32767  # number of steps from 0 to 1, and from 0 to -1
MIN_LENGTH = 0.25  # rendered vectors shorter than this mean "no surface"
SURFACE_SHARE = 0.5  # minimum fraction of surface in the area of a new pixel
CANCELLED = 1e-3  # averages shorter than this have no meaningful direction


class NormalConstants(NamedTuple):
    """Constants of a stored map."""

    frame: str = "camera, +x right, +y up, +z to the viewer"


@dataclass(frozen=True, eq=False)
class Normal(Modality):
    """Surface normals in camera coordinates: float32 [T, H, W, 3], +x right, +y up, +z towards the viewer.

    Unit length (within 1e-3, so that vectors rounded to 16-bit floats pass); exactly (0, 0, 0) for pixels without a
    surface, such as sky.

    Storage: 16 bits per component, FFV1, symmetric about 0. Zero vectors are exact; directions have an error of at most
    0.002 degrees and are decoded to unit length.

    Rendering: (n + 1) / 2; zero vectors are mid grey. Converted back to unit length, within 0.4 degrees from exact 8
    bits. Pixels within 0.125 of mid grey (Euclidean, in RGB 0..1) become zero vectors.
    """

    name: ClassVar[str] = "normal"
    prompt: ClassVar[str] = "surface normal map"
    constants_type: ClassVar[type[NormalConstants]] = NormalConstants

    @classmethod
    def from_opencv(cls, array: np.ndarray) -> Self:
        """Convert from coordinates with y down and z away from the viewer (OpenCV, COLMAP) by negating y and z."""
        return cls(array * np.array([1, -1, -1], array.dtype))

    def check(self) -> None:
        """Raise `ClipError` unless float32, three channels, finite, and every vector of unit length or zero."""
        self.check_array(np.float32, 3)
        for number, image in enumerate(self.array):
            length = vector_lengths(image)
            invalid = (np.abs(length - 1) > LENGTH_TOLERANCE) & (length > 0)
            if invalid.any():
                row, column = np.argwhere(invalid)[0]
                raise ClipError(
                    f"normal: frame {number}, row {row}, column {column} has length {float(length[row, column]):g}. "
                    f"Allowed: 1 within {LENGTH_TOLERANCE:g}, or exactly 0 for no surface. Normalize the vectors."
                )

    def constants(self) -> NormalConstants:
        """The coordinate system, the same for all clips."""
        return NormalConstants()

    def planes(self, constants: NormalConstants) -> np.ndarray:
        """16-bit planes; see the class for the error bound."""
        planes = np.empty(self.array.shape, np.uint16)
        for plane, image in zip(planes, self.array, strict=True):
            levels = rescale_vectors(image, vector_lengths(image), LEVELS)
            np.rint(levels, out=levels)
            levels += ZERO_LEVEL
            plane[:] = levels
        return planes

    @classmethod
    def from_planes(cls, planes: np.ndarray, constants: NormalConstants) -> Self:
        """The stored directions at unit length. Raises `ClipError` for another coordinate system."""
        if constants != NormalConstants():
            expected = NormalConstants().frame
            raise ClipError(f'normal: constants must have frame = "{expected}", got "{constants.frame}"')
        cls.check_planes(planes, np.uint16, 3)
        out = np.empty((*planes.shape[:3], 3), np.float32)
        for target, plane in zip(out, planes, strict=True):
            target[:] = _normalize((plane.astype(np.float32) - ZERO_LEVEL) / LEVELS, 0)
        return cls(out)

    def to_rgb(self) -> np.ndarray:
        """float32 [T, H, W, 3]: (n + 1) / 2."""
        out = np.empty(self.array.shape, np.float32)
        for target, image in zip(out, self.array, strict=True):
            target[:] = np.clip((image + 1) / 2, 0, 1)
        return out

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, constants: NormalConstants | None = None) -> Self:
        """2 rgb - 1, normalized to unit length; zero if shorter than 0.25."""
        check_rendering(cls.name, rgb)
        out = np.empty((*rgb.shape[:3], 3), np.float32)
        for target, image in zip(out, rgb, strict=True):
            target[:] = _normalize(np.clip(image, 0, 1) * 2 - 1, MIN_LENGTH)
        return cls(out)

    def resize(self, height_px: int, width_px: int) -> Self:
        """Resize by area averaging or bilinear interpolation of the vectors, then normalize them.

        Zero if less than half of the new pixel is surface. If the vectors cancel out, the one under the new pixel's
        centre is used.
        """
        mean = resize_smooth(self.array, height_px, width_px)
        is_surface = (vector_lengths(self.array) > 0).astype(np.float32)[..., None]
        surface_share = resize_smooth(is_surface, height_px, width_px)
        nearest = resize_nearest(self.array, height_px, width_px)
        direction = np.where(vector_lengths(mean)[..., None] < CANCELLED * surface_share, nearest, mean)
        return replace(self, array=np.where(surface_share < SURFACE_SHARE, np.float32(0), _normalize(direction, 0)))


def _normalize(vectors: np.ndarray, min_length: float) -> np.ndarray:
    """Normalize vectors, float32 [..., W, 3], to unit length; zero if they are zero or shorter than `min_length`."""
    return rescale_vectors(vectors, vector_lengths(vectors), 1.0, min_length)

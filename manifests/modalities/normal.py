"""Normal: which way each pixel's surface faces."""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np

from openuni.manifests.arrays.resample import resize_nearest, resize_smooth
from openuni.manifests.arrays.vectors import rescale_vectors, vector_lengths
from openuni.manifests.contracts.modality import Modality, Payload
from openuni.manifests.errors import ClipError
from openuni.manifests.video.encode import encode_lossless

LENGTH_TOLERANCE = 1e-3  # twice what rounding to 16-bit floats does to a length
ZERO_LEVEL = 32768  # of the stored 16-bit planes
LEVELS = 32767  # from 0 to 1, and as many from 0 to -1
MIN_LENGTH = 0.25  # a rendered vector shorter than this is no surface
SURFACE_SHARE = 0.5  # of a new pixel's area that must be surface
CANCELLED = 1e-3  # an average shorter than this has no direction


class NormalConstants(NamedTuple):
    """What a stored map means."""

    frame: str = "camera, +x right, +y up, +z to the viewer"


@dataclass(frozen=True, eq=False)
class Normal(Modality):
    """Surface normals in the camera's frame: float32 [T, H, W, 3], +x right, +y up, +z towards the viewer.

    Unit length (within 1e-3, so that vectors rounded to 16-bit floats pass); exactly (0, 0, 0) where there is no
    surface, such as the sky.

    Stored as 16 bits per component, FFV1, symmetric about 0: no surface stays exactly that, directions err by at most
    0.002 degrees and come back with unit length. As RGB: (n + 1) / 2, no surface is mid grey; back with unit length,
    from exact 8 bits within 0.4 degrees. A pixel within 0.125 of mid grey (Euclidean, in RGB 0..1) is no surface.
    """

    name: ClassVar[str] = "normal"
    prompt: ClassVar[str] = "surface normal map"
    constants_type: ClassVar[type[NormalConstants]] = NormalConstants

    @classmethod
    def from_opencv(cls, array: np.ndarray) -> Self:
        """From a frame with y down and z away from the viewer (OpenCV, COLMAP): y and z change sign."""
        return cls(array * np.array([1, -1, -1], array.dtype))

    def check(self) -> None:
        """Raise `ClipError` unless float32, three channels, finite, and every vector of unit length or zero."""
        self.check_array(np.float32, 3)
        for number, image in enumerate(self.array):
            length = vector_lengths(image)
            wrong = (np.abs(length - 1) > LENGTH_TOLERANCE) & (length > 0)
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                raise ClipError(
                    f"normal: frame {number}, row {row}, column {column} has length {float(length[row, column]):g}; "
                    f"allowed: 1 within {LENGTH_TOLERANCE:g}, or exactly 0 where there is no surface. Normalise it"
                )

    def constants(self) -> NormalConstants:
        """The frame of reference; it does not depend on the clip."""
        return NormalConstants()

    def encode(self, fps: float) -> Payload:
        """RGB 16-bit FFV1; see the class for the bound."""
        planes = np.empty(self.array.shape, np.uint16)
        for plane, image in zip(planes, self.array, strict=True):
            levels = rescale_vectors(image, vector_lengths(image), LEVELS)
            np.rint(levels, out=levels)
            levels += ZERO_LEVEL
            plane[:] = levels
        return Payload(encode_lossless(planes, fps), self.suffix, self.constants())

    @classmethod
    def decode(cls, data: bytes, constants: NormalConstants) -> Self:
        """The stored directions, of unit length. Raises `ClipError` for another frame of reference."""
        if constants != NormalConstants():
            raise ClipError(f'normal: the frame is "{NormalConstants().frame}", the constants say "{constants.frame}"')
        planes = cls.decode_planes(data, np.uint16, 3)
        out = np.empty((*planes.shape[:3], 3), np.float32)
        for target, plane in zip(out, planes, strict=True):
            target[:] = _unit((plane.astype(np.float32) - ZERO_LEVEL) / LEVELS, 0)
        return cls(out)

    def to_rgb(self) -> np.ndarray:
        """float32 [T, H, W, 3]: (n + 1) / 2."""
        out = np.empty(self.array.shape, np.float32)
        for target, image in zip(out, self.array, strict=True):
            target[:] = np.clip((image + 1) / 2, 0, 1)
        return out

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, constants: NormalConstants | None = None) -> Self:
        """2 rgb - 1, brought to unit length; zero where that is shorter than 0.25."""
        out = np.empty((*rgb.shape[:3], 3), np.float32)
        for target, image in zip(out, rgb, strict=True):
            target[:] = _unit(np.clip(image, 0, 1) * 2 - 1, MIN_LENGTH)
        return cls(out)

    def resize(self, height_px: int, width_px: int) -> Self:
        """The surface's vectors averaged or interpolated, then brought to unit length; zero where less than half of
        the new pixel is surface. Where they cancel out, the one under the new pixel's centre.
        """
        mean = resize_smooth(self.array, height_px, width_px)
        surface = (vector_lengths(self.array) > 0).astype(np.float32)[..., None]
        share = resize_smooth(surface, height_px, width_px)
        nearest = resize_nearest(self.array, height_px, width_px)
        direction = np.where(vector_lengths(mean)[..., None] < CANCELLED * share, nearest, mean)
        return replace(self, array=np.where(share < SURFACE_SHARE, np.float32(0), _unit(direction, 0)))


def _unit(vectors: np.ndarray, shortest: float) -> np.ndarray:
    """float32 [..., W, 3] brought to unit length; zero where it is zero or shorter than `shortest`."""
    return rescale_vectors(vectors, vector_lengths(vectors), 1.0, shortest)

"""DensePose: body part and surface coordinates of each pixel that shows a person."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, NamedTuple, Self

import numpy as np

from openuni.manifests.arrays.resample import resize_nearest
from openuni.manifests.contracts.modality import Modality, check_rendering
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities._compact import CompactStorage

PART_COUNT = 24
COMPACT_BITS_PER_PX = 0.49  # 1.98 MB for 81 frames of 480 x 832


class DensePoseConstants(NamedTuple):
    """Constants of a stored map."""

    part_count: int = PART_COUNT


@dataclass(frozen=True, eq=False)
class DensePose(Modality):
    """Body surface coordinates: uint8 [T, H, W, 3] = I, U, V.

    I: body part, 1..24 in DensePose's numbering, 0 for background. U, V: coordinates on the part, 0..1 scaled to
    0..255 and rounded.

    Storage: exact (FFV1, 8 bits). Compact storage: lossless H.264, halved in size while above 0.49 bits per pixel.

    Rendering: only the parts, in the colours of MagicAnimate's DensePose videos (viridis at level 255 I / 24, rounded
    down, background included); converted back to the nearest of these 25 colours. I is exact under any perturbation
    shorter (Euclidean, in RGB) than `margin()` = 4.7 / 255, which covers 8 bits but not lossy video. U and V are not
    rendered and become 0.
    """

    name: ClassVar[str] = "densepose"
    prompt: ClassVar[str] = "dense body part map"
    constants_type: ClassVar[type[DensePoseConstants]] = DensePoseConstants

    def check(self) -> None:
        """Raise `ClipError` unless uint8, three channels and parts within 0..24."""
        self.check_array(np.uint8, 3)
        max_part = int(self.array[..., 0].max(initial=0))
        if max_part > PART_COUNT:
            raise ClipError(f"densepose: parts must be within 0..{PART_COUNT}, got {max_part}. Channels are I, U, V.")

    def constants(self) -> DensePoseConstants:
        """The number of parts, the same for all clips."""
        return DensePoseConstants()

    def planes(self, constants: DensePoseConstants) -> np.ndarray:
        """The values themselves, 8 bits."""
        return self.array

    @classmethod
    def compact_storage(cls) -> CompactStorage:
        """As lossless H.264 with inter-frame prediction, downscaled if the bit budget requires it."""
        return CompactStorage(COMPACT_BITS_PER_PX, coding={"across_frames": True})

    @classmethod
    def from_planes(cls, planes: np.ndarray, constants: DensePoseConstants) -> Self:
        """The stored I, U, V. Raises `ClipError` for another number of parts."""
        if constants != DensePoseConstants():
            raise ClipError(f"densepose: constants must have part_count = {PART_COUNT}, got {constants.part_count}")
        return cls(cls.check_planes(planes, np.uint8, 3))

    def to_rgb(self) -> np.ndarray:
        """float32 [T, H, W, 3]: the colours of the parts."""
        return part_colours()[self.array[..., 0]]

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, constants: DensePoseConstants | None = None) -> Self:
        """Part with the nearest colour; U and V are 0."""
        check_rendering(cls.name, rgb)
        colours = part_colours()
        half_norms = np.square(colours).sum(axis=1) / 2
        out = np.zeros((*rgb.shape[:3], 3), np.uint8)
        for target, image in zip(out, rgb, strict=True):  # nearest colour: maximum of x.c - |c|^2 / 2
            target[..., 0] = np.argmax(image.astype(np.float32, copy=False) @ colours.T - half_norms, axis=-1)
        return cls(out)

    def resize(self, height_px: int, width_px: int) -> Self:
        """Nearest-neighbour resize: I, U and V of the pixel under each new pixel's centre."""
        return replace(self, array=resize_nearest(self.array, height_px, width_px))


@lru_cache(maxsize=1)
def part_colours() -> np.ndarray:
    """Colours of the background and of each part: float32 [25, 3] in 0..1."""
    import cv2

    levels = np.arange(PART_COUNT + 1) * 255 // PART_COUNT
    table = cv2.applyColorMap(levels.astype(np.uint8)[:, None], cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]
    colours = table.astype(np.float32) / np.float32(255)
    colours.flags.writeable = False
    return colours


def margin() -> float:
    """Half the minimum RGB distance (0..1 per channel) between the colours of two parts."""
    colours = part_colours().astype(np.float64)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    return float(distance.min() / 2)

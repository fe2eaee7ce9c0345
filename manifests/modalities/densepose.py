"""DensePose: which part of the human body's surface each pixel shows, and where on it."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, NamedTuple, Self

import numpy as np

from openuni.manifests.arrays.resample import resize_nearest
from openuni.manifests.contracts.modality import Modality, Payload
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities._compact import downscale_to_budget
from openuni.manifests.video.encode import encode_lossless

PART_COUNT = 24
COMPACT_BITS_PER_PX = 0.49  # 1.98 MB for 81 frames of 480 x 832


class DensePoseConstants(NamedTuple):
    """What a stored map means."""

    part_count: int = PART_COUNT


@dataclass(frozen=True, eq=False)
class DensePose(Modality):
    """Body surface coordinates: uint8 [T, H, W, 3] = I, U, V.

    I is the part of the surface, 1..24 as DensePose numbers them, 0 for background; U and V are the place on the part,
    0..1 times 255, rounded.

    Stored exactly (FFV1, 8 bits). Compact: lossless H.264, at half the size where it takes over 0.49 bits per pixel.
    As RGB: the parts alone, in the colours that MagicAnimate's DensePose videos have: viridis at level 255 I / 24,
    rounded down, background included. Back by the nearest of these 25 colours: I is exact under any perturbation
    shorter (Euclidean, in RGB) than `margin()`, 4.7 / 255: enough for 8 bits, too little for lossy video. U and V are
    not in the picture and come back as 0.
    """

    name: ClassVar[str] = "densepose"
    prompt: ClassVar[str] = "dense body part map"
    constants_type: ClassVar[type[DensePoseConstants]] = DensePoseConstants

    def check(self) -> None:
        """Raise `ClipError` unless uint8, three channels and parts within 0..24."""
        self.check_array(np.uint8, 3)
        largest = int(self.array[..., 0].max(initial=0))
        if largest > PART_COUNT:
            raise ClipError(f"densepose: parts are 0..{PART_COUNT}, found {largest}; the channels are I, U, V")

    def constants(self) -> DensePoseConstants:
        """The number of parts; it does not depend on the clip."""
        return DensePoseConstants()

    def encode(self, fps: float) -> Payload:
        """Three 8-bit planes, FFV1, exact."""
        return Payload(encode_lossless(self.array, fps), self.suffix, self.constants())

    def encode_compact(self, fps: float) -> Payload:
        """Exact too, each frame coded from the others; at half the size where that is not enough."""

        def encode(maps: DensePose) -> Payload:
            return Payload(encode_lossless(maps.array, fps, across_frames=True), self.suffix, self.constants())

        return downscale_to_budget(self, encode, COMPACT_BITS_PER_PX)

    @classmethod
    def decode(cls, data: bytes, constants: DensePoseConstants) -> Self:
        """The stored I, U, V. Raises `ClipError` for another set of parts."""
        if constants != DensePoseConstants():
            raise ClipError(f"densepose: there are {PART_COUNT} parts, the constants say {constants.part_count}")
        return cls(cls.decode_planes(data, np.uint8, 3))

    def to_rgb(self) -> np.ndarray:
        """float32 [T, H, W, 3]: the parts' colours."""
        return part_colours()[self.array[..., 0]]

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, constants: DensePoseConstants | None = None) -> Self:
        """The part whose colour is nearest; U and V are 0."""
        colours = part_colours()
        half_norms = np.square(colours).sum(axis=1) / 2
        out = np.zeros((*rgb.shape[:3], 3), np.uint8)
        for target, image in zip(out, rgb, strict=True):  # nearest colour = largest x.c - |c|^2 / 2
            target[..., 0] = np.argmax(image.astype(np.float32, copy=False) @ colours.T - half_norms, axis=-1)
        return cls(out)

    def resize(self, height_px: int, width_px: int) -> Self:
        """I, U and V of the pixel under each new pixel's centre."""
        return replace(self, array=resize_nearest(self.array, height_px, width_px))


@lru_cache(maxsize=1)
def part_colours() -> np.ndarray:
    """float32 [25, 3] in 0..1: the colour of background and of each part."""
    import cv2

    levels = np.arange(PART_COUNT + 1) * 255 // PART_COUNT
    table = cv2.applyColorMap(levels.astype(np.uint8)[:, None], cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]
    colours = table.astype(np.float32) / np.float32(255)
    colours.flags.writeable = False
    return colours


def margin() -> float:
    """Half the smallest RGB distance (0..1 per channel) between two parts' colours."""
    colours = part_colours().astype(np.float64)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    return float(distance.min() / 2)

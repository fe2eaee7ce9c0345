"""Segmentation: which instance each pixel belongs to."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, NamedTuple, Self

import numpy as np

from openuni.manifests.arrays.resample import resize_nearest
from openuni.manifests.contracts.modality import Modality, Payload
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities._compact import downscale_to_budget
from openuni.manifests.video.encode import decode_lossless, encode_lossless

PALETTE_SIZE = 256
COMPACT_BITS_PER_PX = 0.12  # 0.49 MB for 81 frames of 480 x 832
LATTICE_STEPS = np.array([32, 32, 64])  # distance of neighbouring levels per channel, in 1 / 255
LATTICE_TOPS = np.array([7, 7, 3], np.float32)  # highest level per channel
CHUNK_PIXELS = 4096


class SegmentationConstants(NamedTuple):
    """The ids of the clip: decoding a rendering looks for these alone, which widens its margin."""

    ids: list[int]  # increasing


@dataclass(frozen=True, eq=False)
class Segmentation(Modality):
    """Instance ids: uint16 [T, H, W, 1]; 0 is background, an id is one instance through the whole clip.

    `known_ids`: ids of the row this map was read from; kept through take, crop and resize. None: those that occur.
    Stored exactly (FFV1, 8 bits when all ids are below 256). Compact: lossless H.264 for these, where it takes over
    0.12 bits per pixel at half the size (the pixel under each centre), and so on. As RGB: the VOC / DAVIS palette on
    black, for ids up to 255. Back by the nearest colour among the clip's ids: exact under any perturbation shorter
    (Euclidean, in RGB) than half the smallest distance between their colours, see `margin`: 64 / 255 for ids 0..7,
    32 / 255 for ids 0..63, 16 / 255 for all 256.
    """

    known_ids: tuple[int, ...] | None = None

    name: ClassVar[str] = "segmentation"
    prompt: ClassVar[str] = "instance segmentation"
    constants_type: ClassVar[type[SegmentationConstants]] = SegmentationConstants

    def check(self) -> None:
        """Raise `ClipError` unless uint16 with one channel."""
        if self.array.dtype != np.uint16 or self.array.shape[-1] != 1:
            raise ClipError(
                f"segmentation: array must be uint16 [T, H, W, 1], got {self.array.dtype} {self.array.shape}"
            )

    def constants(self) -> SegmentationConstants:
        """The row's ids when the map came from one, else those that occur."""
        if self.known_ids is not None:
            return SegmentationConstants(list(self.known_ids))
        return SegmentationConstants(np.flatnonzero(np.bincount(self.array.ravel())).tolist())

    def encode(self, fps: float) -> Payload:
        """Gray FFV1, 8 bits when all ids fit, else 16; exact."""
        return self._encoded(fps, across_frames=False)

    def encode_compact(self, fps: float) -> Payload:
        """Exact too, each frame coded from the others where 8 bits hold the ids; ragged ids at half the size."""
        fixed = replace(self, known_ids=tuple(self.constants().ids))
        return downscale_to_budget(fixed, lambda ids: ids._encoded(fps, across_frames=True), COMPACT_BITS_PER_PX)

    def _encoded(self, fps: float, *, across_frames: bool) -> Payload:
        constants = replace(self, known_ids=None).constants()
        small = not constants.ids or constants.ids[-1] < PALETTE_SIZE
        planes = self.array.astype(np.uint8) if small else self.array
        return Payload(encode_lossless(planes, fps, across_frames=across_frames), self.suffix, constants)

    @classmethod
    def decode(cls, data: bytes, constants: SegmentationConstants) -> Self:
        """The stored ids."""
        return cls(decode_lossless(data).astype(np.uint16), tuple(constants.ids))

    def to_rgb(self) -> np.ndarray:
        """float32 [T, H, W, 3]: palette colours. Raises `ClipError` for ids above 255."""
        largest = int(self.array.max(initial=0))
        if largest >= PALETTE_SIZE:
            raise ClipError(
                f"segmentation: id {largest} has no colour, the palette ends at {PALETTE_SIZE - 1}: "
                "keep fewer instances or renumber them"
            )
        return palette()[self.array[..., 0]]

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, constants: SegmentationConstants | None = None) -> Self:
        """The nearest palette colour among the ids of `constants`; among all 256 without."""
        ids = np.array(constants.ids if constants else range(PALETTE_SIZE), np.uint16)
        if not len(ids) or int(ids.max()) >= PALETTE_SIZE:
            raise ClipError(f"segmentation: ids of a rendering must be within 0..{PALETTE_SIZE - 1} and not empty")
        allowed = np.isin(np.arange(PALETTE_SIZE), ids)
        out = np.empty((*rgb.shape[:3], 1), np.uint16)
        for target, image in zip(out, rgb, strict=True):
            nearest = _nearest_of_all(image.astype(np.float32, copy=False))
            # Where the nearest of all colours is not the clip's, search among the clip's.
            foreign = ~allowed[nearest]
            nearest[foreign] = _nearest_among(image[foreign].astype(np.float32, copy=False), ids)
            target[..., 0] = nearest
        return cls(out, tuple(constants.ids) if constants else None)

    def resize(self, height_px: int, width_px: int) -> Self:
        """The id under each new pixel's centre."""
        return replace(self, array=resize_nearest(self.array, height_px, width_px))


@lru_cache(maxsize=1)
def palette() -> np.ndarray:
    """float32 [256, 3] in 0..1: the PASCAL VOC colours, also DAVIS'. Bit 3k + j of an id is bit 7 - k of channel j."""
    ids = np.arange(PALETTE_SIZE)
    colours = np.zeros((PALETTE_SIZE, 3), np.uint8)
    for level in range(3):
        for channel in range(3):
            colours[:, channel] |= ((ids >> (3 * level + channel)) & 1).astype(np.uint8) << (7 - level)
    table = colours.astype(np.float32) / np.float32(255)
    table.flags.writeable = False
    return table


@lru_cache(maxsize=1)
def _lattice() -> np.ndarray:
    """uint16 [8, 8, 4]: ids by their colour's red / 32, green / 32 and blue / 64; the 256 colours fill it exactly."""
    levels = np.rint(palette() * 255).astype(np.int64) // LATTICE_STEPS
    table = np.empty((8, 8, 4), np.uint16)
    table[tuple(levels.T)] = np.arange(PALETTE_SIZE)
    return table


def _nearest_of_all(image: np.ndarray) -> np.ndarray:
    """float32 [H, W, 3] -> uint16 [H, W]: rounding each channel to the lattice gives the nearest of all colours."""
    place = np.zeros(image.shape[:2], np.float32)
    for channel, (step, top) in enumerate(zip(LATTICE_STEPS, LATTICE_TOPS, strict=True)):
        level = np.rint(image[..., channel] * np.float32(255 / step))
        place = place * (top + 1) + np.clip(level, 0, top, out=level)
    return _lattice().ravel()[place.astype(np.uint8)]


def _nearest_among(pixels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """float32 [N, 3] -> uint16 [N]: nearest colour = largest x.c - |c|^2 / 2, in chunks to bound the memory."""
    colours = palette()[ids]
    half_norms = (colours**2).sum(axis=1) / 2
    found = np.empty(len(pixels), np.uint16)
    for start in range(0, len(pixels), CHUNK_PIXELS):
        chunk = slice(start, start + CHUNK_PIXELS)
        found[chunk] = ids[np.argmax(pixels[chunk] @ colours.T - half_norms, axis=1)]
    return found


def margin(ids: list[int]) -> float:
    """Half the smallest RGB distance (0..1 per channel) between the colours of these ids; infinite for a single one."""
    colours = palette()[ids].astype(np.float64)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    return float(distance.min() / 2)

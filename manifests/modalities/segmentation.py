"""Segmentation: the instance that each pixel belongs to."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, NamedTuple, Self

import numpy as np

from openuni.manifests.arrays.resample import resize_nearest
from openuni.manifests.contracts.modality import Modality, Payload, check_rendering
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities._compact import CompactStorage
from openuni.manifests.video.encode import encode_lossless

PALETTE_SIZE = 256
COMPACT_BITS_PER_PX = 0.12  # 0.49 MB for 81 frames of 480 x 832
LATTICE_STEPS = np.array([32, 32, 64])  # distance between palette levels per channel, in 1 / 255
LATTICE_TOPS = np.array([7, 7, 3], np.float32)  # maximum level index per channel
CHUNK_PIXELS = 4096


class SegmentationConstants(NamedTuple):
    """The ids of the clip. Only these are candidates when a rendering is converted back, which widens the margin."""

    ids: list[int]  # increasing


@dataclass(frozen=True, eq=False)
class Segmentation(Modality):
    """Instance ids: uint16 [T, H, W, 1]; 0 is background, an id denotes the same instance in all frames of a clip.

    `known_ids`: ids of the row that this map was read from. They persist through take, crop and resize. None: the ids
    in the array.

    Storage: exact (FFV1, 8 bits if all ids are below 256, else 16). Compact storage: lossless H.264 for 8 bits, halved
    in size (nearest neighbour) while above 0.12 bits per pixel.

    Rendering: VOC / DAVIS palette on black, for ids up to 255; converted back to the nearest colour among the clip's
    ids. Exact under any perturbation shorter (Euclidean, in RGB) than half the minimum distance between their colours,
    see `margin`: 64 / 255 for ids 0..7, 32 / 255 for ids 0..63, 16 / 255 for all 256.
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
        """The row's ids if the map was read from one, else the ids in the array."""
        if self.known_ids is not None:
            return SegmentationConstants(list(self.known_ids))
        return SegmentationConstants(np.flatnonzero(np.bincount(self.array.ravel())).tolist())

    @classmethod
    def constants_of(cls, blocks: Iterable[Self]) -> SegmentationConstants:
        """The ids in the maps, which are those to store."""
        found = np.zeros(2**16, bool)
        for block in blocks:
            found |= np.bincount(block.array.ravel(), minlength=len(found)).astype(bool)
        return SegmentationConstants(np.flatnonzero(found).tolist())

    def planes(self, constants: SegmentationConstants) -> np.ndarray:
        """Grey planes, 8 bits if all ids of the clip fit, else 16; exact."""
        fits_8_bits = not constants.ids or constants.ids[-1] < PALETTE_SIZE
        return self.array.astype(np.uint8) if fits_8_bits else self.array

    def encode(self, fps: float) -> Payload:
        """Encode as grey FFV1, 8 bits if all ids fit, else 16; exact."""
        constants = self.constants_of([self])
        return Payload(encode_lossless(self.planes(constants), fps), self.suffix, constants)

    @classmethod
    def compact_storage(cls) -> CompactStorage:
        """With inter-frame prediction if 8 bits hold the ids, downscaled if the bit budget requires it."""
        return CompactStorage(COMPACT_BITS_PER_PX, coding={"across_frames": True})

    @classmethod
    def from_planes(cls, planes: np.ndarray, constants: SegmentationConstants) -> Self:
        """The stored ids."""
        return cls(planes.astype(np.uint16), tuple(constants.ids))

    def to_rgb(self) -> np.ndarray:
        """float32 [T, H, W, 3]: palette colours. Raises `ClipError` for ids above 255."""
        max_id = int(self.array.max(initial=0))
        if max_id >= PALETTE_SIZE:
            raise ClipError(
                f"segmentation: id {max_id} cannot be rendered, ids must be at most {PALETTE_SIZE - 1}. "
                "Keep fewer instances, or renumber them."
            )
        return palette()[self.array[..., 0]]

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, constants: SegmentationConstants | None = None) -> Self:
        """Id with the nearest palette colour, among the ids of `constants`; without constants, among all 256."""
        check_rendering(cls.name, rgb)
        ids = np.array(constants.ids if constants else range(PALETTE_SIZE), np.uint16)
        if not len(ids) or int(ids.max()) >= PALETTE_SIZE:
            got = f"maximum {int(ids.max())}" if len(ids) else "no ids"
            raise ClipError(f"segmentation: ids of a rendering must be within 0..{PALETTE_SIZE - 1}, got {got}")
        allowed = np.isin(np.arange(PALETTE_SIZE), ids)
        out = np.empty((*rgb.shape[:3], 1), np.uint16)
        for target, image in zip(out, rgb, strict=True):
            nearest = _nearest_in_palette(image.astype(np.float32, copy=False))
            # If the nearest palette colour does not belong to the clip, search the clip's colours.
            outside = ~allowed[nearest]
            nearest[outside] = _nearest_among(image[outside].astype(np.float32, copy=False), ids)
            target[..., 0] = nearest
        return cls(out, tuple(constants.ids) if constants else None)

    def resize(self, height_px: int, width_px: int) -> Self:
        """Nearest-neighbour resize: the id under each new pixel's centre."""
        return replace(self, array=resize_nearest(self.array, height_px, width_px))


@lru_cache(maxsize=1)
def palette() -> np.ndarray:
    """The PASCAL VOC and DAVIS colours: float32 [256, 3] in 0..1. Bit 3k + j of an id is bit 7 - k of channel j."""
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
    """Ids by red / 32, green / 32 and blue / 64 of their colour: uint16 [8, 8, 4] (the 256 colours fill it)."""
    levels = np.rint(palette() * 255).astype(np.int64) // LATTICE_STEPS
    table = np.empty((8, 8, 4), np.uint16)
    table[tuple(levels.T)] = np.arange(PALETTE_SIZE)
    return table


def _nearest_in_palette(image: np.ndarray) -> np.ndarray:
    """Id of the nearest palette colour, by rounding each channel to the lattice: float32 [H, W, 3] -> uint16 [H, W]."""
    index = np.zeros(image.shape[:2], np.float32)
    for channel, (step, top) in enumerate(zip(LATTICE_STEPS, LATTICE_TOPS, strict=True)):
        level = np.rint(image[..., channel] * np.float32(255 / step))
        index = index * (top + 1) + np.clip(level, 0, top, out=level)
    return _lattice().ravel()[index.astype(np.uint8)]


def _nearest_among(pixels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Id of the nearest colour among `ids`: float32 [N, 3] -> uint16 [N].

    The nearest colour c of x maximizes x.c - |c|^2 / 2. Computed in chunks to bound the memory.
    """
    colours = palette()[ids]
    half_norms = (colours**2).sum(axis=1) / 2
    nearest = np.empty(len(pixels), np.uint16)
    for start in range(0, len(pixels), CHUNK_PIXELS):
        chunk = slice(start, start + CHUNK_PIXELS)
        nearest[chunk] = ids[np.argmax(pixels[chunk] @ colours.T - half_norms, axis=1)]
    return nearest


def margin(ids: list[int]) -> float:
    """Half the minimum RGB distance (0..1 per channel) between the colours of these ids; infinite for a single id."""
    colours = palette()[ids].astype(np.float64)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    return float(distance.min() / 2)

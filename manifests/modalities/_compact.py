"""Compact storage within a bit budget: the finest quantization that fits, then downscaling if none does."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from openuni.manifests.contracts.modality import FilePayload, Modality, PlanesOfBlocks
from openuni.manifests.video.encode import encode_lossless_to

SAMPLED_FRAMES = 8  # frames are encoded independently, so a few predict the total size
MARGIN = 0.97  # fraction of the budget that the prediction may use

FILE_BYTES, FRAME_BYTES = 4096, 64  # minimum budget per file and per frame, so that small maps are not downscaled


@dataclass(frozen=True)
class CompactStorage:
    """How a modality is stored within a bit budget. Maps come in blocks of frames; one is in memory at a time.

    `bits_per_px`: the budget, per pixel of the maps as they are given; a few kB are always allowed. `steps`: the
    quantization steps to try, finest first; a sample of the frames predicts which fit. `quantized`: the constants of a
    clip for one of the steps. `fixed`: the maps with the clip's constants, which sampled and downscaled maps keep.
    `coding`: options of `encode_lossless`. If the last step does not fit either, the maps are halved in size until it
    does; maps of one pixel are always encoded.
    """

    bits_per_px: float
    steps: Sequence[Any] = (None,)
    quantized: Callable[[Any, Any], Any] = lambda constants, step: constants
    fixed: Callable[[Any, Any], Any] = lambda maps, constants: maps
    coding: Mapping[str, bool] = field(default_factory=dict)

    def encode_blocks(
        self, kind: type[Modality], blocks: Iterable[Modality], fps: float, file: BinaryIO
    ) -> FilePayload:
        """Encode with the first step that fits. `blocks` is iterated several times."""
        constants = kind.constants_of(blocks)
        blocks = MappedBlocks(blocks, lambda maps: self.fixed(maps, constants))
        frames = sum(len(block.array) for block in blocks)
        height_px, width_px = size_px = next(iter(blocks)).size_px
        max_bytes = max(self.bits_per_px * frames * height_px * width_px / 8, FILE_BYTES + frames * FRAME_BYTES)
        while True:
            sample = sampled(blocks, -(-frames // SAMPLED_FRAMES)) if len(self.steps) > 1 else None
            is_one_pixel = max(size_px) == 1
            for step in self.steps:
                must_fit = not (is_one_pixel and step == self.steps[-1])
                if must_fit and sample is not None:
                    nbytes, _ = self._encode(kind, [sample], fps, io.BytesIO(), step)
                    if nbytes > max_bytes * (len(sample.array) / frames) * MARGIN:
                        continue
                nbytes, stored = self._encode(kind, blocks, fps, file, step)
                if nbytes <= max_bytes or not must_fit:
                    return FilePayload(file, kind.suffix, stored, frames, size_px)
            size_px = max(1, size_px[0] // 2), max(1, size_px[1] // 2)
            blocks = MappedBlocks(blocks, _Resize(*size_px))

    def _encode(
        self, kind: type[Modality], blocks: Iterable[Modality], fps: float, file: BinaryIO, step: Any
    ) -> tuple[int, Any]:
        """Write the file from its beginning; its size, and the constants to decode it with."""
        constants = self.quantized(kind.constants_of(blocks), step)
        file.seek(0)
        file.truncate()
        encode_lossless_to(file, PlanesOfBlocks(blocks, constants), fps, **self.coding)
        return file.seek(0, io.SEEK_END), constants


@dataclass(frozen=True)
class _Resize:
    height_px: int
    width_px: int

    def __call__(self, maps: Modality) -> Modality:
        return maps.resize(self.height_px, self.width_px)


class MappedBlocks:
    """A function of each block; can be iterated as often as the blocks."""

    def __init__(self, blocks: Iterable[Modality], function: Callable[[Modality], Modality]) -> None:
        self.blocks, self.function = blocks, function

    def __iter__(self) -> Iterator[Modality]:
        return map(self.function, self.blocks)


def sampled(blocks: Iterable[Modality], step: int) -> Modality:
    """Every `step`-th frame of maps that come in blocks, from the first one on."""
    found, done = [], 0
    for block in blocks:
        count = len(block.array)
        if (first := -done % step) < count:
            found.append(block.take(first, count, step))
        done += count
    return type(found[0]).joined(found)

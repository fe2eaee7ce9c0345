"""Spooled maps: maps of one clip that come in windows, in a temporary file on a local disk until they are encoded."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Generic, NamedTuple, TypeVar, cast

import numpy as np

from openuni.manifests.contracts.modality import FilePayload, Modality
from openuni.manifests.corpus.writer import storage_errors, write_errors
from openuni.manifests.errors import ClipError
from openuni.manifests.storage.store import Store

FREE_SHARE = 0.5  # fraction of the free disk that the maps of one clip may take

M = TypeVar("M", bound=Modality)


class SpooledArray(NamedTuple):
    """Where one array of a block lies in the file."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class SpooledMaps(Generic[M]):
    """The maps of one result field of one clip, appended in blocks of frames and read back block by block.

    They lie as raw values in a temporary file without a name, which the operating system removes with the process. Its
    full size is reserved at the first block. A clip whose maps need more than half of the free disk is a `ClipError`.
    """

    def __init__(self, folder: Path, frame_count: int) -> None:
        self.folder, self.frame_count = folder, frame_count
        self._store = Store(str(folder))  # for messages
        self.frames = 0
        self.template: M | None = None  # the first block, without frames
        self._blocks: list[dict[str, SpooledArray]] = []
        self._file: BinaryIO | None = None
        self._end = 0

    def append(self, maps: M) -> None:
        """Append the maps of the next frames. Raises `ClipError` for other sizes, dtypes, and too many frames."""
        if not len(maps.array):
            return
        fields = {name: getattr(maps, name) for name in maps.frame_fields if getattr(maps, name) is not None}
        if self.template is None:
            with write_errors(self._store):
                self._file = self._reserve(sum(array[0].nbytes for array in fields.values()) * self.frame_count)
            self.template = replace(maps, **{name: array[:0].copy() for name, array in fields.items()})
        self.frames += len(maps.array)
        if self.frames > self.frame_count:
            raise ClipError(f"{maps.name} has more than {self.frames - 1} frames, the clip has {self.frame_count}")
        for name in self.template.frame_fields:
            expected, given = getattr(self.template, name), fields.get(name)
            if (expected is None) != (given is None) or (
                given is not None and (given.dtype, given.shape[1:]) != (expected.dtype, expected.shape[1:])
            ):
                raise ClipError(f"{maps.name}: all windows of a clip must have maps of one size and dtype")
        block = {}
        with write_errors(self._store):  # not of the clip, as which it would become a failed row
            assert self._file is not None
            self._file.seek(self._end)
            for name, array in fields.items():
                block[name] = SpooledArray(self._end, array.dtype, array.shape)
                self._file.write(np.ascontiguousarray(array).data)
                self._end += array.nbytes
            self._file.flush()
        self._blocks.append(block)

    def __iter__(self) -> Iterator[M]:
        """The blocks, as they were appended."""
        for block in self._blocks:
            yield replace(cast(M, self.template), **{name: self._read(place) for name, place in block.items()})

    @property
    def name(self) -> str:
        """Name of the modality."""
        return self.template.name if self.template is not None else "map"

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of the picture that the maps describe."""
        return self.template.size_px if self.template is not None else (0, 0)

    @property
    def nbytes(self) -> int:
        """Size of all maps."""
        return self._end

    def is_streamable(self, compact: bool) -> bool:
        """Whether the maps can be encoded in bounded memory."""
        if self.template is None:
            return False
        is_standard = not compact or type(self.template).encode_compact is Modality.encode_compact
        return self.template.is_streamable() and is_standard

    def whole(self) -> M:
        """All maps in one array."""
        assert self.template is not None
        return type(self.template).joined(list(self))

    def encode(self, fps: float, *, compact: bool) -> FilePayload:
        """Encode all maps into another temporary file, for full or compact storage."""
        assert self.template is not None
        with storage_errors(self._store):
            file = self._temporary_file()
            return type(self.template).encode_blocks(self, fps, file, compact=compact)

    def close(self) -> None:
        """Free the disk."""
        if self._file is not None:
            self._file.close()

    def _read(self, place: SpooledArray) -> np.ndarray:
        assert self._file is not None
        self._file.seek(place.offset)
        array = np.empty(place.shape, place.dtype)
        self._file.readinto(array.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]
        return array

    def _temporary_file(self) -> BinaryIO:
        return cast(BinaryIO, tempfile.TemporaryFile(dir=self.folder))  # closed with the clip

    def _reserve(self, nbytes: int) -> BinaryIO:
        free = shutil.disk_usage(self.folder).free
        if nbytes > free * FREE_SHARE:
            raise ClipError(
                f"the maps of this clip need {nbytes / 1e9:.3g} GB on disk until they are encoded ({self.folder}). "
                f"Allowed: half of the {free / 1e9:.3g} GB that are free. Free some space, or set shorter clips "
                "([ingest] max_s) or a smaller [work] short_side_px."
            )
        file = self._temporary_file()
        try:
            os.posix_fallocate(file.fileno(), 0, nbytes)
        except OSError as error:
            if error.errno == errno.ENOSPC:  # another worker was faster
                file.close()
                raise
        return file

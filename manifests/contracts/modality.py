"""The modality contract: the meaning of a dense signal, its storage, its RGB rendering and the inverse.

A modality is a value: an array with the metadata needed to interpret it. Its file in `manifests/modalities/` is its
only definition, which annotators, importers, viewer, latent encoder, trainer and metrics share.
"""

import io
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, ClassVar, NamedTuple, Protocol, Self

import numpy as np

from openuni.manifests.contracts.discovery import component_names, find_component
from openuni.manifests.errors import ClipError, OpenUniError, unknown_name
from openuni.manifests.video.encode import decode_lossless, encode_lossless, encode_lossless_to, iter_lossless
from openuni.manifests.video.passthrough import PassthroughFiles, is_passthrough


class Payload(NamedTuple):
    """An encoded map: the contents of one file, its suffix, and the constants required to decode it."""

    data: bytes
    suffix: str  # suffix of the shard entry, such as "mkv"
    constants: tuple[Any, ...]  # an instance of the modality's `constants_type`
    size_px: tuple[int, int] | None = None  # height and width if they differ from those of the encoded signal
    frames: int | None = None  # number of frames if the payload was not encoded from a signal


class FilePayload(NamedTuple):
    """An encoded map in an open file, as `Payload` for one that is in memory."""

    file: BinaryIO
    suffix: str
    constants: tuple[Any, ...]
    frames: int
    size_px: tuple[int, int]


class BlockEncoder(Protocol):
    """Encodes maps that come in blocks of frames."""

    def encode_blocks(
        self, kind: "type[Modality]", blocks: "Iterable[Modality]", fps: float, file: BinaryIO
    ) -> FilePayload:
        """Encode into an open file. `blocks` is iterated several times."""


@dataclass(frozen=True, eq=False)
class Modality(ABC):
    """Base of all modalities. `array` is [T, H, W, C]; each subclass defines dtype, range, unit and sign.

    A modality that is stored as lossless video defines `planes`, `from_planes` and, if its constants depend on all
    frames, `constants_of`. `encode`, `decode` and the storage of maps that are too long for the memory follow.
    """

    array: np.ndarray

    name: ClassVar[str]  # name of the file that defines it
    prompt: ClassVar[str]  # modality-type prompt of the in-context learner
    constants_type: ClassVar[type[tuple[Any, ...]]]  # NamedTuple of quantization and rendering constants, in the row
    suffix: ClassVar[str] = "mkv"  # suffix of the stored file; default: lossless video
    invertible: ClassVar[bool] = True  # False: `from_rgb` raises, since renderings cannot be converted back
    is_picture: ClassVar[bool] = False  # True: a natural picture, which tolerates chroma subsampling (4:2:0)
    frame_fields: ClassVar[tuple[str, ...]] = ("array",)  # fields that hold one entry per frame
    coding: ClassVar[Mapping[str, bool]] = {}  # options of `encode_lossless`

    def __post_init__(self) -> None:
        if self.array.ndim != 4:
            raise ClipError(f"{self.name}: array must be [T, H, W, C], got shape {self.array.shape}")
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Raise `ClipError` if dtype, channels, range or finiteness violate this modality's definition."""

    def check_array(self, dtype: type[np.generic], channels: int) -> tuple[float, float]:
        """Minimum and maximum of `array`, both 0 if it is empty.

        Raises `ClipError` unless it has this dtype and number of channels, and only finite values.
        """
        array, expected = self.array, np.dtype(dtype)
        if array.dtype != expected or array.shape[-1] != channels:
            got = f"{array.dtype} {array.shape}"
            raise ClipError(f"{self.name}: array must be {expected} [T, H, W, {channels}], got {got}")
        lo, hi = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not (math.isfinite(lo) and math.isfinite(hi)):
            raise ClipError(f"{self.name}: array has NaN or infinite values")
        return lo, hi

    @abstractmethod
    def constants(self) -> Any:
        """The clip's constants, an instance of `constants_type`: one per clip, never per frame."""

    @classmethod
    def constants_of(cls, blocks: Iterable[Self]) -> Any:
        """The constants of a clip whose maps come in blocks of frames: those of all frames together, exactly.

        `blocks` may be iterated several times. Default: the constants of the first block, for constants that are the
        same for all clips.
        """
        return next(iter(blocks)).constants()

    def planes(self, constants: Any) -> np.ndarray:
        """The stored planes of these frames, uint8 or uint16 [T, H, W, 1 or 3]; each depends on its own frame only."""
        raise NotImplementedError(f"{self.name} is not stored as lossless video")

    @classmethod
    def from_planes(cls, planes: np.ndarray, constants: Any) -> Self:
        """The inverse of `planes`. Raises `ClipError` for planes and constants that `planes` does not give."""
        raise NotImplementedError(f"{cls.name} is not stored as lossless video")

    @classmethod
    def is_streamable(cls) -> bool:
        """Whether maps of any length can be stored and read in bounded memory: those with `planes`."""
        return cls.planes is not Modality.planes

    def encode(self, fps: float) -> Payload:
        """Encode without loss or with a bounded error, which the subclass's docstring states. `fps`: frame rate."""
        constants = self.constants()
        return Payload(encode_lossless(self.planes(constants), fps, **self.coding), self.suffix, constants)

    @classmethod
    def compact_storage(cls) -> "BlockEncoder | None":
        """How maps are encoded for compact storage, see `_compact.py`. Default: None, as for full storage."""
        return None

    @classmethod
    def encode_blocks(cls, blocks: Iterable[Self], fps: float, file: BinaryIO, *, compact: bool = False) -> FilePayload:
        """Encode maps that come in blocks of frames into an open file, as `encode` or `encode_compact` of them all.

        `blocks` is iterated several times; one block is in memory at a time.
        """
        storage = cls.compact_storage() if compact else None
        if storage is not None:
            return storage.encode_blocks(cls, blocks, fps, file)
        constants = cls.constants_of(blocks)
        frames, *size_px = encode_lossless_to(file, PlanesOfBlocks(blocks, constants), fps, **cls.coding)
        return FilePayload(file, cls.suffix, constants, frames, (size_px[0], size_px[1]))

    @classmethod
    def decode_blocks(cls, file: BinaryIO, constants: Any, frames_per_block: int) -> Iterator[Self]:
        """Decode an open file that `encode` or `encode_blocks` wrote, in blocks of frames; one is in memory at a time.

        Raises `ClipError` for damage, at the latest after the last block.
        """
        planes = iter_lossless(file)
        while block := list(itertools.islice(planes, frames_per_block)):
            yield cls.from_planes(np.stack(block), constants)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One map of consecutive parts of a clip; all else is that of the first part."""
        if len(parts) == 1:
            return parts[0]
        fields = {name: [getattr(part, name) for part in parts] for name in cls.frame_fields}
        present = {name: np.concatenate(found) for name, found in fields.items() if found[0] is not None}
        return replace(parts[0], **present)

    def encode_compact(self, fps: float) -> Payload:
        """Encode for compact storage: within the bit budget and error bound that the subclass's docstring states.

        Default: as `compact_storage` says.
        """
        if self.compact_storage() is None:
            return self.encode(fps)
        file = io.BytesIO()
        payload = self.encode_blocks([self], fps, file, compact=True)
        return Payload(file.getvalue(), payload.suffix, payload.constants, payload.size_px)

    @classmethod
    def decode(cls, data: bytes, constants: Any) -> Self:
        """The inverse of `encode`. `constants`: an instance of `constants_type`."""
        return cls.from_planes(decode_lossless(data), constants)

    @classmethod
    def read(cls, data: bytes, constants: Any) -> Self:
        """Decode a payload, whether written by `encode` or stored as passthrough files.

        Raises `ClipError` for damaged data and for values outside this modality's definition.
        """
        if not is_passthrough(data):
            return cls.decode(data, constants)
        files = PassthroughFiles(data, cls.name)
        if files.manifest.reading.coding != "rendering":
            return cls.from_passthrough(files.values(), constants)
        parts = [cls.from_rgb(rendering, constants) for rendering in files.renderings()]
        return replace(parts[0], array=np.concatenate([part.array for part in parts]))

    @classmethod
    def from_passthrough(cls, array: np.ndarray, constants: Any) -> Self:
        """The signal of an array [T, H, W, C] that was read from passthrough files. `constants`: those of the row."""
        return cls(array)

    @classmethod
    def check_planes(cls, planes: np.ndarray, dtype: type[np.generic], channels: int) -> np.ndarray:
        """The same planes [T, H, W, C]. Raises `ClipError` unless they have this dtype and number of channels."""
        if planes.dtype != np.dtype(dtype) or planes.shape[-1] != channels:
            expected = f"{np.dtype(dtype)} with {channels} channels"
            raise ClipError(f"{cls.name}: stored planes must be {expected}, got {planes.dtype} {planes.shape}")
        return planes

    @abstractmethod
    def to_rgb(self) -> np.ndarray:
        """Render as RGB for the video VAE and for viewing: float32 [T, H, W, 3] in 0..1. Uses the clip's constants."""

    @classmethod
    @abstractmethod
    def from_rgb(cls, rgb: np.ndarray, constants: Any | None = None) -> Self:
        """Convert a rendering back: float32 [T, H, W, 3] in 0..1, possibly perturbed.

        Without `constants` (generated renderings have none) the modality's documented default scale is used. Raises
        `ClipError` for NaN and infinite values (`check_rendering`).
        """

    @abstractmethod
    def resize(self, height_px: int, width_px: int) -> Self:
        """Resize with the interpolation that suits the modality; values in pixels are rescaled."""

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of the picture that the signal describes."""
        height, width = self.array.shape[1:3]
        return height, width

    def crop(self, top_px: int, left_px: int, height_px: int, width_px: int) -> Self:
        """Crop to a window."""
        window = self.array[:, top_px : top_px + height_px, left_px : left_px + width_px]
        return replace(self, array=np.ascontiguousarray(window))

    def take(self, start: int, stop: int, step: int = 1) -> Self:
        """Frames `start` to `stop` (half-open), every `step`-th."""
        return replace(self, array=self.array[start:stop:step])

    def take_frames(self, indices: np.ndarray) -> Self:
        """The frames at `indices`, int [n], any of them several times; each with the values that it has here."""
        fields = {name: getattr(self, name) for name in self.frame_fields}
        return replace(self, **{name: value[indices] for name, value in fields.items() if value is not None})

    def fit(self, height_px: int, width_px: int) -> Self:
        """Resize to cover `height_px` x `width_px` with the aspect ratio kept, then crop the centre.

        Latents are encoded from the result.
        """
        height, width = self.size_px
        scale = max(height_px / height, width_px / width)
        cover_height, cover_width = max(height_px, round(height * scale)), max(width_px, round(width * scale))
        resized = self if (cover_height, cover_width) == (height, width) else self.resize(cover_height, cover_width)
        return resized.crop((cover_height - height_px) // 2, (cover_width - width_px) // 2, height_px, width_px)


class PlanesOfBlocks:
    """The stored planes of maps that come in blocks; can be iterated as often as the blocks."""

    def __init__(self, blocks: Iterable[Modality], constants: Any) -> None:
        self.blocks, self.constants = blocks, constants

    def __iter__(self) -> Iterator[np.ndarray]:
        return (block.planes(self.constants) for block in self.blocks)


def check_rendering(name: str, rgb: np.ndarray) -> None:
    """Raise `ClipError` if a rendering, [T, H, W, 3], has NaN or infinite values.

    Every `from_rgb` calls it: a conversion to whole numbers, or to the nearest colour, would hide them.
    """
    if rgb.size and not (math.isfinite(rgb.min()) and math.isfinite(rgb.max())):
        raise ClipError(f"{name}: the rendering has NaN or infinite values")


def picture_levels(name: str, rgb: np.ndarray) -> np.ndarray:
    """A rendering, float [..., H, W, 3] in 0..1, as uint8 levels. Raises `ClipError` for NaN and infinite values."""
    check_rendering(name, rgb)
    return np.rint(np.clip(rgb, 0, 1) * np.float32(255)).astype(np.uint8)


def modality_names() -> list[str]:
    """Names of all modalities: the files of `manifests/modalities/`, and those of installed packages."""
    return component_names("modalities")


def find_modality(name: str) -> type[Modality]:
    """The modality of that name. Raises `OpenUniError` if it is unknown."""
    if name not in modality_names():  # never a dotted path: the name is also a column name and part of file names
        raise OpenUniError(unknown_name("modality", name, modality_names()))
    found: type[Modality] = find_component("modalities", Modality, name)
    return found


def read_rendering(name: str, rgb: np.ndarray) -> Modality:
    """Convert a rendering without constants, float32 [T, H, W, 3] in 0..1, to the modality `name`.

    Renderings of modalities with `invertible = False` are returned as `rgb`.
    """
    modality = find_modality(name)
    return (modality if modality.invertible else find_modality("rgb")).from_rgb(rgb)

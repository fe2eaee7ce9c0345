"""The modality contract: what a dense signal means, how it is stored, how it looks as RGB, and the way back.

A modality is a value: an array with the facts that give it meaning. Its file in `manifests/modalities/` is its only
definition; annotators, importers, viewer, latent encoder, trainer and metrics all use it.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from openuni.manifests.contracts.discovery import component_names, find_component
from openuni.manifests.errors import ClipError, OpenUniError, unknown_name
from openuni.manifests.video.encode import decode_lossless
from openuni.manifests.video.passthrough import PassthroughFiles, is_passthrough


class Payload(NamedTuple):
    """A stored signal: bytes of one file, its suffix, and the row's constants without which the bytes mean nothing."""

    data: bytes
    suffix: str  # of the entry in the shard, such as "mkv"
    constants: tuple[Any, ...]  # the modality's own NamedTuple
    size_px: tuple[int, int] | None = None  # height and width, where they are not those of the signal that was given
    frames: int | None = None  # where no signal was given


@dataclass(frozen=True, eq=False)
class Modality(ABC):
    """Base of all modalities. `array` is [T, H, W, C]; each subclass fixes dtype, range, unit and sign."""

    array: np.ndarray

    name: ClassVar[str]  # the file's name
    prompt: ClassVar[str]  # modality-type text of the in-context learner
    constants_type: ClassVar[type[tuple[Any, ...]]]  # NamedTuple: quantiser and rendering constants kept in the row
    suffix: ClassVar[str] = "mkv"  # of the stored file: lossless video, unless the subclass says otherwise
    invertible: ClassVar[bool] = True  # False: `from_rgb` raises, a rendering can only be looked at
    is_picture: ClassVar[bool] = False  # whether its rendering is one for the eye, which halved colour (4:2:0) keeps

    def __post_init__(self) -> None:
        if self.array.ndim != 4:
            raise ClipError(f"{self.name}: array must be [T, H, W, C], got shape {self.array.shape}")
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Raise `ClipError` when dtype, channels, range or finiteness are not this modality's."""

    def check_array(self, dtype: type[np.generic], channels: int) -> tuple[float, float]:
        """Smallest and largest value, 0 of none; raises `ClipError` unless `array` has this dtype, so many channels,
        and only finite values.
        """
        array, wanted = self.array, np.dtype(dtype)
        if array.dtype != wanted or array.shape[-1] != channels:
            got = f"{array.dtype} {array.shape}"
            raise ClipError(f"{self.name}: array must be {wanted} [T, H, W, {channels}], got {got}")
        lo, hi = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not (math.isfinite(lo) and math.isfinite(hi)):
            raise ClipError(f"{self.name}: array has NaN or infinite values")
        return lo, hi

    @abstractmethod
    def constants(self) -> Any:
        """This clip's `constants_type`: one set per clip, never per frame."""

    @abstractmethod
    def encode(self, fps: float) -> Payload:
        """Lossless or bounded-error bytes (the bound is in the subclass's docstring and tested)."""

    def encode_compact(self, fps: float) -> Payload:
        """Like `encode`, in as few bits as the subclass states, at an error that its docstring and the row state.

        The same as `encode` where a subclass says nothing.
        """
        return self.encode(fps)

    @classmethod
    @abstractmethod
    def decode(cls, data: bytes, constants: Any) -> Self:
        """The inverse of `encode`. `constants`: an instance of `constants_type`."""

    @classmethod
    def read(cls, data: bytes, constants: Any) -> Self:
        """The signal of a payload, however it is stored: coded by `encode`, or kept in the files it came in.

        Raises `ClipError` for damaged bytes and for values that are not this modality's.
        """
        if not is_passthrough(data):
            return cls.decode(data, constants)
        kept = PassthroughFiles(data, cls.name)
        if kept.manifest.reading.coding != "rendering":
            return cls.from_passthrough(kept.values(), constants)
        parts = [cls.from_rgb(rendering, constants) for rendering in kept.renderings()]
        return replace(parts[0], array=np.concatenate([part.array for part in parts]))

    @classmethod
    def from_passthrough(cls, array: np.ndarray, constants: Any) -> Self:
        """The signal whose array [T, H, W, C] was read from kept files. `constants`: of the row."""
        return cls(array)

    @classmethod
    def decode_planes(cls, data: bytes, dtype: type[np.generic], channels: int) -> np.ndarray:
        """[T, H, W, C] of a stored lossless video; raises `ClipError` unless it has this dtype and so many channels."""
        planes = decode_lossless(data)
        if planes.dtype != np.dtype(dtype) or planes.shape[-1] != channels:
            wanted = f"{np.dtype(dtype)} with {channels} channels"
            raise ClipError(f"{cls.name}: stored planes must be {wanted}, got {planes.dtype} {planes.shape}")
        return planes

    @abstractmethod
    def to_rgb(self) -> np.ndarray:
        """float32 [T, H, W, 3] in 0..1: what the video VAE and people see. Uses the clip's constants."""

    @classmethod
    @abstractmethod
    def from_rgb(cls, rgb: np.ndarray, constants: Any | None = None) -> Self:
        """Back from a rendering, float32 [T, H, W, 3] in 0..1, possibly perturbed.

        Without `constants` (a generated rendering has none) the modality's documented default scale is used.
        """

    @abstractmethod
    def resize(self, height_px: int, width_px: int) -> Self:
        """The same signal at another size, by the interpolation that keeps its meaning; pixel units are rescaled."""

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of the picture this signal describes."""
        height, width = self.array.shape[1:3]
        return height, width

    def crop(self, top_px: int, left_px: int, height_px: int, width_px: int) -> Self:
        """A window of the same signal."""
        window = self.array[:, top_px : top_px + height_px, left_px : left_px + width_px]
        return replace(self, array=np.ascontiguousarray(window))

    def take(self, start: int, stop: int, step: int = 1) -> Self:
        """Frames `start` to `stop` (half-open), every `step`-th."""
        return replace(self, array=self.array[start:stop:step])

    def fit(self, height_px: int, width_px: int) -> Self:
        """Cover `height_px` x `width_px` keeping the aspect ratio, then crop the centre: latents are made of this."""
        height, width = self.size_px
        scale = max(height_px / height, width_px / width)
        tall, wide = max(height_px, round(height * scale)), max(width_px, round(width * scale))
        scaled = self if (tall, wide) == (height, width) else self.resize(tall, wide)
        return scaled.crop((tall - height_px) // 2, (wide - width_px) // 2, height_px, width_px)


def modality_names() -> list[str]:
    """Names of all modalities: the files of `manifests/modalities/`, and those of installed packages."""
    return component_names("modalities")


def find_modality(name: str) -> type[Modality]:
    """The modality of that name; raises `OpenUniError` when there is none."""
    if name not in modality_names():  # never by a dotted path: a modality's name is a column's, and a file's suffix
        raise OpenUniError(unknown_name("modality", name, modality_names()))
    found: type[Modality] = find_component("modalities", Modality, name)
    return found


def read_rendering(name: str, rgb: np.ndarray) -> Modality:
    """A rendering without constants, float32 [T, H, W, 3] in 0..1, as the modality it shows.

    One that cannot be read back (`invertible` is False) stays what it is: a picture, the modality `rgb`.
    """
    modality = find_modality(name)
    return (modality if modality.invertible else find_modality("rgb")).from_rgb(rgb)

"""Skeleton: key points of the body, face and hands of each person."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np

from openuni.manifests.contracts.modality import Modality, Payload
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities._stick_figure import draw

POINT_COUNT = 133  # COCO-WholeBody: 17 body, 6 feet, 68 face, 21 left hand, 21 right hand
TENSOR = "points"  # tensor name in stored files
PLACES, CONFIDENCES = "places", "confidences"  # tensor names in compact files
MAX_SIDE_PX = 65536
COMPACT_STEP_PX = 1 / 16


class SkeletonConstants(NamedTuple):
    """Picture size and storage format; the stored tensors do not contain the picture size."""

    picture_height_px: int
    picture_width_px: int
    person_count: int  # number of persons in the whole clip, including those absent in some frames
    step_px: float = 0.0  # quantization step of compact coordinates; 0: stored exactly


@dataclass(frozen=True, eq=False)
class Skeleton(Modality):
    """Key points of P persons: float32 [T, P, 133, 3] = x_px, y_px, confidence 0..1, in COCO-WholeBody order.

    17 points of the body, 6 of the feet, 68 of the face, 21 of the left hand, 21 of the right hand. Coordinates are in
    pixels with pixel centres at +0.5, finite; estimated points may be outside the picture. Confidence 0 marks a missing
    point, whose x and y must be 0. A person has the same index p in all frames. P may be 0.
    `height_px`, `width_px`: size of the picture.

    Storage: exact (safetensors, tensor "points"; 129 kB per person and 81 frames). Compact storage: 16-bit coordinates
    with a step of 1/16 px (1/8 px above 2047 px, 1/4 px above 4095 px, ...; error <= step / 2) and confidences with a
    step of 1/255 (at least one step if not 0), tensors "places" and "confidences"; 54 kB.

    Rendering: anti-aliased sticks on black in the colours of OpenPose's 18-point body, with hands and face, without
    feet; points with a confidence below 0.3 are not drawn. It cannot be converted back: generated skeletons are
    pictures. `_stick_figure.draw` also supports VACE's style, `_stick_figure.openpose_points` converts to DWPose's 134
    points.
    """

    height_px: int
    width_px: int

    name: ClassVar[str] = "skeleton"
    prompt: ClassVar[str] = "human skeleton"
    constants_type: ClassVar[type[SkeletonConstants]] = SkeletonConstants
    suffix: ClassVar[str] = "safetensors"
    invertible: ClassVar[bool] = False

    def check(self) -> None:
        """Raise `ClipError` unless float32, 133 points, finite, confidence within 0..1 and zeros where that is 0."""
        array = self.array
        if array.dtype != np.float32 or array.shape[2:] != (POINT_COUNT, 3):
            raise ClipError(
                f"skeleton: array must be float32 [T, P, {POINT_COUNT}, 3], got {array.dtype} {array.shape}"
            )
        if not all(0 < side <= MAX_SIDE_PX for side in self.size_px):
            size = f"{self.width_px} x {self.height_px}"
            raise ClipError(f"skeleton: picture sides must be 1..{MAX_SIDE_PX} px, got {size}")
        if not np.isfinite(array).all():
            raise ClipError("skeleton: array has NaN or infinite values. Set missing points to zero.")
        confidence = array[..., 2]
        lo, hi = float(confidence.min(initial=0)), float(confidence.max(initial=0))
        if lo < 0 or hi > 1:
            raise ClipError(f"skeleton: confidence must be within 0..1, got {lo:g} to {hi:g}")
        if array[confidence == 0].any():
            raise ClipError("skeleton: points with confidence 0 must have x = y = 0. Set missing points to zero.")

    def constants(self) -> SkeletonConstants:
        """The picture's size and the number of persons."""
        return SkeletonConstants(self.height_px, self.width_px, self.array.shape[1])

    def encode(self, fps: float) -> Payload:
        """Encode as one float32 tensor, exact."""
        from safetensors.numpy import save

        points = np.ascontiguousarray(self.array, "<f4")
        return Payload(save({TENSOR: points}), self.suffix, self.constants())

    def encode_compact(self, fps: float) -> Payload:
        """Encode with quantized coordinates and confidences; see the class for the error bound."""
        from safetensors.numpy import save

        xy, confidence = self.array[..., :2], self.array[..., 2]
        min_step_px = float(np.abs(xy).max(initial=0.0)) / np.iinfo(np.int16).max
        doublings = max(0, math.ceil(math.log2(min_step_px / COMPACT_STEP_PX))) if min_step_px else 0
        step_px = COMPACT_STEP_PX * 2**doublings
        levels = np.where(confidence > 0, np.maximum(np.rint(confidence * 255), 1), 0)
        tensors = {PLACES: np.rint(xy / np.float32(step_px)).astype("<i2"), CONFIDENCES: levels.astype(np.uint8)}
        return Payload(save(tensors), self.suffix, self.constants()._replace(step_px=step_px))

    @classmethod
    def decode(cls, data: bytes, constants: SkeletonConstants) -> Self:
        """Decode the stored points. Raises `ClipError` if the file is damaged or contradicts the constants."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        if not 0 <= constants.step_px <= MAX_SIDE_PX:
            raise ClipError(f"skeleton: constants must have step_px within 0..{MAX_SIDE_PX}, got {constants.step_px}")
        try:
            tensors = load(data)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ClipError(f"skeleton: stored points are damaged ({error})") from error
        points = _points(tensors, constants.step_px)
        if points is None or points.ndim != 4 or points.shape[1] != constants.person_count:
            got = "none" if points is None else f"{points.shape}"
            expected = f"[T, {constants.person_count}, {POINT_COUNT}, 3]"
            raise ClipError(f'skeleton: stored tensor "{TENSOR}" must be {expected}, got {got}')
        return cls(points, constants.picture_height_px, constants.picture_width_px)

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.height_px, self.width_px

    def to_rgb(self) -> np.ndarray:
        """float32 [T, H, W, 3]: the drawing of `_stick_figure.draw`, at the picture's size."""
        out = np.empty((len(self.array), *self.size_px, 3), np.float32)
        for target, points in zip(out, self.array, strict=True):
            target[:] = draw(points, *self.size_px)
        return out

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, constants: SkeletonConstants | None = None) -> Self:
        """Always raises `ClipError`: drawings do not identify persons or show occluded points."""
        raise ClipError(
            "skeleton: a drawing cannot be converted back to key points. Use it as a picture, or estimate the key "
            "points from the video."
        )

    def resize(self, height_px: int, width_px: int) -> Self:
        """Scale x and y by the size ratio."""
        ratio = np.array([width_px / self.width_px, height_px / self.height_px, 1], np.float32)
        return replace(self, array=self.array * ratio, height_px=height_px, width_px=width_px)

    def crop(self, top_px: int, left_px: int, height_px: int, width_px: int) -> Self:
        """Crop to a window, with coordinates relative to its corner; points outside become missing points."""
        shifted = self.array - np.array([left_px, top_px, 0], np.float32)
        inside = (shifted[..., :2] >= 0) & (shifted[..., :2] < (width_px, height_px))
        array = np.where(inside.all(axis=-1, keepdims=True), shifted, np.float32(0))
        return replace(self, array=array, height_px=height_px, width_px=width_px)


def _points(tensors: dict[str, np.ndarray], step_px: float) -> np.ndarray | None:
    """Key points of a stored file's tensors, float32 [T, P, 133, 3]; None if tensors are missing or shapes differ."""
    if not step_px:
        return tensors.get(TENSOR)
    coordinates, levels = tensors.get(PLACES), tensors.get(CONFIDENCES)
    if coordinates is None or levels is None or coordinates.ndim != 4 or (*levels.shape, 2) != coordinates.shape:
        return None
    xy = coordinates.astype(np.float32) * np.float32(step_px)
    return np.concatenate([xy, levels[..., None].astype(np.float32) / np.float32(255)], axis=-1)

"""Skeleton: where the joints, faces and hands of the people in the picture are."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np

from openuni.manifests.contracts.modality import Modality, Payload
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities._stick_figure import draw

POINT_COUNT = 133  # COCO-WholeBody: 17 body, 6 feet, 68 face, 21 left hand, 21 right hand
TENSOR = "points"  # its name in the stored file
PLACES, CONFIDENCES = "places", "confidences"  # of a compact one
MAX_SIDE_PX = 65536
COMPACT_STEP_PX = 1 / 16


class SkeletonConstants(NamedTuple):
    """The picture that the points lie in; a stored file has no pixels that would tell."""

    picture_height_px: int
    picture_width_px: int
    person_count: int  # through the whole clip, also those who are not there in some frames
    step_px: float = 0.0  # of places that were stored as multiples of it; 0: they were stored exactly


@dataclass(frozen=True, eq=False)
class Skeleton(Modality):
    """Key points of P persons: float32 [T, P, 133, 3] = x_px, y_px, confidence 0..1, in COCO-WholeBody's order.

    17 of the body, 6 of the feet, 68 of the face, 21 of the left hand, 21 of the right hand. Pixel positions with pixel
    centres at +0.5; finite; those of estimated points may lie outside the picture. Confidence 0: not there, x and y are
    0 too. A person keeps the place p through the clip. P may be 0.
    `height_px`, `width_px`: the picture's size.

    Stored exactly (safetensors, tensor "points": 129 kB per person and 81 frames). Compact: places in 16 bits, in steps
    of 1/16 px (coarser beyond 2047 px: 1/8 to 4095, and so on; error <= step / 2), confidences in steps of 1/255 (never
    0 where they were not), tensors "places" and "confidences": 54 kB. As RGB: sticks on black, anti-aliased, in the
    colours of OpenPose's 18-point body with hands and face; points below a confidence of 0.3 are not drawn, feet
    neither. A drawing cannot be read back: where a model makes skeletons, the picture is what it delivers.
    `stick_figure.draw` has VACE's style too, `stick_figure.openpose_points` the 134 points that others exchange.
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
            given = f"{self.width_px} x {self.height_px}"
            raise ClipError(f"skeleton: the picture's sides must be 1..{MAX_SIDE_PX} px, got {given}")
        if not np.isfinite(array).all():
            raise ClipError("skeleton: array has NaN or infinite values; write zeros for points that are not there")
        confidence = array[..., 2]
        lo, hi = float(confidence.min(initial=0)), float(confidence.max(initial=0))
        if lo < 0 or hi > 1:
            raise ClipError(f"skeleton: confidence must be within 0..1, got {lo:g} to {hi:g}")
        if array[confidence == 0].any():
            raise ClipError("skeleton: where confidence is 0, x and y must be 0 too: the point is not there")

    def constants(self) -> SkeletonConstants:
        """The picture's size and the number of persons."""
        return SkeletonConstants(self.height_px, self.width_px, self.array.shape[1])

    def encode(self, fps: float) -> Payload:
        """One float32 tensor, exact."""
        from safetensors.numpy import save

        points = np.ascontiguousarray(self.array, "<f4")
        return Payload(save({TENSOR: points}), self.suffix, self.constants())

    def encode_compact(self, fps: float) -> Payload:
        """See the class."""
        from safetensors.numpy import save

        xy, confidence = self.array[..., :2], self.array[..., 2]
        reach = float(np.abs(xy).max(initial=0.0)) / np.iinfo(np.int16).max
        step_px = (
            COMPACT_STEP_PX * 2 ** max(0, math.ceil(math.log2(reach / COMPACT_STEP_PX))) if reach else COMPACT_STEP_PX
        )
        levels = np.where(confidence > 0, np.maximum(np.rint(confidence * 255), 1), 0)
        tensors = {PLACES: np.rint(xy / np.float32(step_px)).astype("<i2"), CONFIDENCES: levels.astype(np.uint8)}
        return Payload(save(tensors), self.suffix, self.constants()._replace(step_px=step_px))

    @classmethod
    def decode(cls, data: bytes, constants: SkeletonConstants) -> Self:
        """The stored points. Raises `ClipError` when the file is damaged or does not fit the constants."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        if not 0 <= constants.step_px <= MAX_SIDE_PX:
            raise ClipError(f"skeleton: step_px is 0 or above, the constants say {constants.step_px}")
        try:
            tensors = load(data)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ClipError(f"skeleton: stored points are damaged ({error})") from error
        points = _points(tensors, constants.step_px)
        if points is None or points.ndim != 4 or points.shape[1] != constants.person_count:
            found = "none" if points is None else f"{points.shape}"
            wanted = f"[T, {constants.person_count}, {POINT_COUNT}, 3]"
            raise ClipError(f'skeleton: stored tensor "{TENSOR}" must be {wanted}, found {found}')
        return cls(points, constants.picture_height_px, constants.picture_width_px)

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.height_px, self.width_px

    def to_rgb(self) -> np.ndarray:
        """float32 [T, H, W, 3]: the drawing of `stick_figure.draw`, at the picture's size."""
        out = np.empty((len(self.array), *self.size_px, 3), np.float32)
        for target, points in zip(out, self.array, strict=True):
            target[:] = draw(points, *self.size_px)
        return out

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, constants: SkeletonConstants | None = None) -> Self:
        """Always raises `ClipError`: a drawing does not tell who is who, nor what lies beneath."""
        raise ClipError(
            "skeleton: a drawing cannot be read back as key points; use it as a picture, or estimate the "
            "key points from the video itself"
        )

    def resize(self, height_px: int, width_px: int) -> Self:
        """x and y scaled by the ratio of sizes."""
        ratio = np.array([width_px / self.width_px, height_px / self.height_px, 1], np.float32)
        return replace(self, array=self.array * ratio, height_px=height_px, width_px=width_px)

    def crop(self, top_px: int, left_px: int, height_px: int, width_px: int) -> Self:
        """Points of the window, counted from its corner; those outside are not there any more."""
        moved = self.array - np.array([left_px, top_px, 0], np.float32)
        inside = (moved[..., :2] >= 0) & (moved[..., :2] < (width_px, height_px))
        kept = np.where(inside.all(axis=-1, keepdims=True), moved, np.float32(0))
        return replace(self, array=kept, height_px=height_px, width_px=width_px)


def _points(tensors: dict[str, np.ndarray], step_px: float) -> np.ndarray | None:
    """float32 [T, P, 133, 3] of a stored file's tensors; None where they are not there, or do not fit each other."""
    if not step_px:
        return tensors.get(TENSOR)
    places, levels = tensors.get(PLACES), tensors.get(CONFIDENCES)
    if places is None or levels is None or places.ndim != 4 or (*levels.shape, 2) != places.shape:
        return None
    xy = places.astype(np.float32) * np.float32(step_px)
    return np.concatenate([xy, levels[..., None].astype(np.float32) / np.float32(255)], axis=-1)

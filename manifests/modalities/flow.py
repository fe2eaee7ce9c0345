"""Optical flow: displacement of each pixel to the next frame."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from openuni.manifests.arrays.order_statistics import value_at_rank
from openuni.manifests.arrays.resample import resize_nearest, resize_smooth
from openuni.manifests.contracts.modality import Modality, check_rendering
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities._compact import CompactStorage

STEP_PX = 1 / 64
ZERO_LEVEL = 32768  # level of zero in the stored 16-bit planes
FINE_RANGE_PX = 511.0  # maximum component at the finest step
COMPACT_BITS_PER_PX = 3.9  # 15.8 MB for 81 frames of 480 x 832
STEP_FACTORS = (1, 2, 4, 8, 16)  # multiples of the step for compact storage
DIVISOR_PERCENTILE = 99.9
DIVISOR_FLOOR_PX = 0.5  # keeps the noise of still clips from being rendered in saturated colours
DEFAULT_DIVISOR_SHARE = 0.02  # fraction of the diagonal: rendering scale if there are no constants
# Middlebury wheel, red to yellow, green, cyan, blue, magenta, red: (steps, channel that changes, direction).
WHEEL = ((15, 1, 1), (6, 0, -1), (4, 2, 1), (11, 1, -1), (13, 0, 1), (6, 2, -1))


class FlowConstants(NamedTuple):
    """Quantization step and rendering scale of a clip."""

    step_px: float  # quantization step of the stored planes
    divisor_px: float  # speed that is rendered fully saturated, pixels per frame at the map's size
    has_valid: bool  # whether a validity mask is stored


@dataclass(frozen=True, eq=False)
class Flow(Modality):
    """Forward optical flow: float32 [T, H, W, 2], x to the right, y down, pixels per frame at the map's size, finite.

    Frame t is the displacement to frame t + 1. The last frame repeats the one before, so that T equals the clip's; a
    single frame is zero (`from_pairs` does both).
    `valid`: bool [T, H, W, 1] or None; False where the pixel is occluded or out of view at t + 1.
    `divisor_px`: rendering scale of the row that this flow was read from. It persists through take and crop and scales
    with resize, so that all windows of a clip are rendered alike. None: computed from the array.

    Storage: 16 bits per component, FFV1; error <= step / 2 per component. The step is 1/64 px for components up to
    511 px, doubled as often as larger ones require. Compact storage: the finest of 1, 2, 4, 8, 16 times that step that
    fits into 3.9 bits per pixel (on real clips usually 2, at most 4); downscaled if 16 does not fit.

    Rendering: Middlebury wheel; white is no motion, hue is direction, saturation is speed / divisor. The divisor is the
    clip's 99.9th percentile of speed, at least 0.5 px; faster motion saturates with its direction kept. The wheel has a
    seam (0.17 in blue) at motion exactly to the right. End-point error of exact 8 bits: <= 0.01 divisor.
    """

    valid: np.ndarray | None = None
    divisor_px: float | None = None

    name: ClassVar[str] = "flow"
    prompt: ClassVar[str] = "optical flow"
    constants_type: ClassVar[type[FlowConstants]] = FlowConstants
    frame_fields: ClassVar[tuple[str, ...]] = ("array", "valid")

    @classmethod
    def from_pairs(cls, pairs: np.ndarray, valid: np.ndarray | None = None) -> Self:
        """Optical flow of a clip of T frames from the flow of its T - 1 pairs of consecutive frames.

        `pairs`: float32 [T - 1, H, W, 2]. `valid`: bool [T - 1, H, W, 1] or None. Without pairs (T = 1): one zero
        frame.
        """
        if not len(pairs):
            zero = np.zeros((1, *pairs.shape[1:]), np.float32)
            return cls(zero, None if valid is None else np.ones((*zero.shape[:3], 1), bool))
        return cls(np.concatenate([pairs, pairs[-1:]]), None if valid is None else np.concatenate([valid, valid[-1:]]))

    def check(self) -> None:
        """Raise `ClipError` unless float32, two channels, finite, and `valid` of the same size."""
        if self.array.dtype != np.float32 or self.array.shape[-1] != 2:
            raise ClipError(f"flow: array must be float32 [T, H, W, 2], got {self.array.dtype} {self.array.shape}")
        if self.array.size and not (np.isfinite(self.array.min()) and np.isfinite(self.array.max())):
            raise ClipError("flow: array has NaN or infinite values. Set them to 0, and `valid` to False there.")
        if self.valid is not None and (self.valid.dtype != np.bool_ or self.valid.shape != (*self.array.shape[:3], 1)):
            shape = (*self.array.shape[:3], 1)
            raise ClipError(f"flow: valid must be bool {shape}, got {self.valid.dtype} {self.valid.shape}")

    def constants(self) -> FlowConstants:
        """Step for the maximum component; divisor of the row, or of the array if it was not read from a row."""
        return self.constants_of([self])

    @classmethod
    def constants_of(cls, blocks: Iterable[Self]) -> FlowConstants:
        """See `Modality.constants_of`: maximum component and percentile of the speed over all blocks, exact."""
        first = next(iter(blocks))
        max_component, size = 0.0, 0
        for block in blocks:
            max_component, size = max(max_component, max_abs(block.array)), size + block.array.size // 2
        is_large = max_component > FINE_RANGE_PX
        doublings = max(0, math.ceil(math.log2(max_component / FINE_RANGE_PX))) if is_large else 0
        divisor = first.divisor_px or _divisor(blocks, size)
        return FlowConstants(STEP_PX * 2**doublings, divisor, first.valid is not None)

    def planes(self, constants: FlowConstants) -> np.ndarray:
        """16-bit planes with the channels x, y, valid; see the class for the error bound."""
        planes = np.ones((*self.array.shape[:3], 3), np.uint16)
        for plane, field in zip(planes, self.array, strict=True):
            plane[..., :2] = np.rint(field / np.float32(constants.step_px)) + ZERO_LEVEL
        if self.valid is not None:
            planes[..., 2:] = self.valid
        return planes

    @classmethod
    def compact_storage(cls) -> CompactStorage:
        """The same planes with coarser steps; see the class."""
        return CompactStorage(
            COMPACT_BITS_PER_PX,
            STEP_FACTORS,
            lambda constants, factor: constants._replace(step_px=constants.step_px * factor),
            lambda flow, constants: replace(flow, divisor_px=constants.divisor_px),
        )

    @classmethod
    def from_planes(cls, planes: np.ndarray, constants: FlowConstants) -> Self:
        """The stored flow, with the row's divisor."""
        array = (planes[..., :2].astype(np.float32) - ZERO_LEVEL) * np.float32(constants.step_px)
        return cls(array, planes[..., 2:] > 0 if constants.has_valid else None, constants.divisor_px)

    def to_rgb(self) -> np.ndarray:
        """float32 [T, H, W, 3], unquantized; `floor(255 x)` equals torchvision's flow_to_image for the same divisor."""
        divisor = self.constants().divisor_px
        colours = _wheel()
        out = np.empty((*self.array.shape[:3], 3), np.float32)
        for target, field in zip(out, self.array, strict=True):
            radius = np.minimum(np.hypot(field[..., 0], field[..., 1]) / np.float32(divisor), 1)
            angle = np.arctan2(-field[..., 1], -field[..., 0]) / np.float32(np.pi)
            position = (angle + 1) / 2 * (len(colours) - 1)
            first = np.floor(position).astype(np.int64)
            weight = (position - first)[..., None]
            colour = (1 - weight) * colours[first] + weight * colours[(first + 1) % len(colours)]
            target[:] = 1 - radius[..., None] * (1 - colour)
        return out

    @classmethod
    def from_rgb(cls, rgb: np.ndarray, constants: FlowConstants | None = None) -> Self:
        """Flow with the nearest colour (Euclidean); `valid` is not rendered and becomes None.

        Without constants the divisor is 2 % of the map's diagonal, in pixels per frame.
        """
        check_rendering(cls.name, rgb)
        height_px, width_px = rgb.shape[1:3]
        divisor = constants.divisor_px if constants else DEFAULT_DIVISOR_SHARE * math.hypot(height_px, width_px)
        out = np.empty((*rgb.shape[:3], 2), np.float32)
        for target, image in zip(out, rgb, strict=True):
            target[:] = _nearest_flow(image) * np.float32(divisor)
        return cls(out, None, divisor)

    def resize(self, height_px: int, width_px: int) -> Self:
        """Resize by area averaging or bilinear interpolation, values scaled by the size ratio; `valid` by nearest."""
        height, width = self.array.shape[1:3]
        ratio = np.array([width_px / width, height_px / height], np.float32)
        return replace(
            self,
            array=resize_smooth(self.array, height_px, width_px) * ratio,
            valid=None if self.valid is None else resize_nearest(self.valid, height_px, width_px),
            divisor_px=None if self.divisor_px is None else self.divisor_px * math.sqrt(ratio[0] * ratio[1]),
        )

    def crop(self, top_px: int, left_px: int, height_px: int, width_px: int) -> Self:
        """Crop to a window; `valid` still refers to the whole view."""
        window = (slice(None), slice(top_px, top_px + height_px), slice(left_px, left_px + width_px))
        return replace(self, array=np.ascontiguousarray(self.array[window]), valid=_select(self.valid, window))

    def take(self, start: int, stop: int, step: int = 1) -> Self:
        """Frames `start` to `stop`, every `step`-th; each keeps its flow to the frame that originally followed."""
        span = slice(start, stop, step)
        return replace(self, array=self.array[span], valid=_select(self.valid, span))


def _select(valid: np.ndarray | None, window: Any) -> np.ndarray | None:
    return None if valid is None else np.ascontiguousarray(valid[window])


def max_abs(array: np.ndarray) -> float:
    """Maximum absolute value, 0 of an empty array; one frame at a time, without a copy of the array."""
    return max((float(np.abs(frame).max(initial=0.0)) for frame in array), default=0.0)


def _divisor(blocks: Iterable[Flow], size: int) -> float:
    """99.9th percentile of speed over the clip, which has `size` vectors; at least `DIVISOR_FLOOR_PX`."""
    if not size:
        return DIVISOR_FLOOR_PX

    def speeds() -> Iterator[np.ndarray]:
        return (np.hypot(field[..., 0], field[..., 1]) for block in blocks for field in block.array)

    rank = math.ceil(DIVISOR_PERCENTILE / 100 * (size - 1))
    return max(DIVISOR_FLOOR_PX, value_at_rank(speeds, rank))


@lru_cache(maxsize=1)
def _wheel() -> np.ndarray:
    """Fully saturated colours of the wheel: float32 [55, 3] in 0..1; one channel is 1, one is 0, one varies."""
    colours, corner = [], np.array([255.0, 0.0, 0.0])
    for steps, channel, direction in WHEEL:
        for step in range(steps):
            colour = corner.copy()
            colour[channel] += direction * math.floor(255 * step / steps)
            colours.append(colour)
        corner[channel] += direction * 255
    return (np.array(colours) / 255).astype(np.float32)


@lru_cache(maxsize=1)
def _wheel_hues() -> np.ndarray:
    """Hue of each wheel colour: float32 [55], 0..6 (red 0, yellow 1, ...), increasing."""
    return _hue(1 - _wheel())


def _hue(complement: np.ndarray) -> np.ndarray:
    """Hue 0..6 of complements (1 - rgb), [..., 3], whose minimum channel is 0; 0 where all channels are 0."""
    red, green, blue = np.moveaxis(complement, -1, 0)
    maximum = complement.max(axis=-1)
    scale = np.divide(1, maximum, out=np.zeros_like(maximum), where=maximum > 0)
    no_blue, no_red = blue == maximum, red == maximum  # the channel that is weakest in the colour
    hue = np.where(
        no_blue,
        1 + (red - green) * scale,  # between red and green
        np.where(no_red, 3 + (green - blue) * scale, 5 + (blue - red) * scale),
    )
    return hue % 6


def _nearest_flow(image: np.ndarray) -> np.ndarray:
    """Flow with the nearest colour, in units of the divisor: float32 [H, W, 3] in 0..1 -> float32 [H, W, 2].

    The colours of all flows form a surface: white minus radius times a complement with one channel 0 and one 1. In
    complements this is the union of three faces of the unit cube. The nearest point therefore sets the minimum channel
    to 0; the maximum is the radius and the remaining channel gives the hue. This needs no table and no search.
    """
    complement = np.clip(1 - image.astype(np.float32, copy=False), 0, 1)
    complement = np.where(complement == complement.min(axis=-1, keepdims=True), 0, complement)
    radius = complement.max(axis=-1)
    hues = _wheel_hues()
    # hues beyond the last one map to the last
    position = np.interp(_hue(complement), hues, np.arange(len(hues), dtype=np.float32))
    angle = (position / (len(hues) - 1) * 2 - 1) * np.pi
    return np.stack([-radius * np.cos(angle), -radius * np.sin(angle)], axis=-1).astype(np.float32)

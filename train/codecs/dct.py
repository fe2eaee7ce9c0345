"""Latent codec without weights: an orthonormal space-time DCT of small blocks, truncated to low frequencies."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Interval

from openuni.manifests.errors import ClipError
from openuni.training.codec import LatentCodec

FRAMES, SIDE = 4, 8  # of one block: four frames of 8 x 8 pixels, as in Wan's VAE
COEFFICIENTS = 3 * FRAMES * SIDE * SIDE

# Orthonormal opponent colours: luminance, red-blue, green-magenta.
COLOURS = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]]) / np.sqrt([[3.0], [2.0], [6.0]])

# The analytic model of a block's coefficients, for pixels in -1..1. Amplitudes of natural images fall as
# 1 / frequency^FALL; colour differences are about a quarter of luminance; change in time is
# weaker than detail in space.
MEAN_STD = 10.0  # standard deviation of a block's mean luminance (16 sqrt(3) times about 0.36 per pixel)
FALL = 1.5
COLOUR_STD = (1.0, 0.25, 0.25)
TIME_WEIGHT = 3.0  # one step in temporal frequency counts as this many steps in spatial frequency
DETAIL = 4.0  # ratio of a block's mean to its first spatial frequency


@dataclass(frozen=True)
class Dct(LatentCodec):
    """Blocks of 4 frames x 8 x 8 pixels -> their `channels` lowest cosine coefficients, divided by fixed scales.

    The first frame is encoded as a static block, so that it has the same statistics as the others. The codec is linear:
    decoding an encoded video gives its orthogonal projection, exact if `channels` is 768. Coefficients are sorted by
    decreasing standard deviation in the analytic model above (ties: by colour, time, row, column) and divided by that
    standard deviation. Nothing is fitted to data.
    """

    stride: ClassVar[tuple[int, int, int]] = (FRAMES, SIDE, SIDE)
    origin: ClassVar[str] = "discrete cosine transform (Ahmed, Natarajan and Rao, 1974), in three dimensions"

    channels: Annotated[int, "number of coefficients per block", Interval(ge=1, le=COEFFICIENTS)] = 48

    def encode(self, model: Any, rgb: np.ndarray) -> np.ndarray:
        """float32 [T, H, W, 3] in 0..1 -> float32 [channels, (T - 1) / 4 + 1, H / 8, W / 8]."""
        check_video(rgb, self.stride)
        basis, scale = _basis(self.channels)
        still = np.concatenate([np.repeat(rgb[:1], FRAMES - 1, axis=0), rgb]) * 2.0 - 1.0
        blocks = _to_blocks(still.astype(np.float32))
        return np.ascontiguousarray(np.moveaxis(blocks @ (basis / scale[:, None]).T, -1, 0))

    def decode(self, model: Any, latents: np.ndarray) -> np.ndarray:
        """float32 [channels, T', H', W'] -> float32 [4 T' - 3, 8 H', 8 W', 3], clipped to 0..1."""
        return np.clip(self.synthesise(latents), 0.0, 1.0)

    def synthesise(self, latents: np.ndarray) -> np.ndarray:
        """As `decode`, without clipping: the exact transpose of the encoder, values around 0..1."""
        if latents.ndim != 4 or latents.shape[0] != self.channels:
            raise ClipError(f"dct: latents must be [{self.channels}, T, H, W], got {latents.shape}")
        basis, scale = _basis(self.channels)
        blocks = np.moveaxis(latents.astype(np.float32), 0, -1) @ (basis * scale[:, None])
        video = _from_blocks(blocks)
        first = video[:FRAMES].mean(axis=0, keepdims=True)  # only the static part belongs to the first frame
        return (np.concatenate([first, video[FRAMES:]]) + 1.0) / 2.0


def check_video(rgb: np.ndarray, stride: tuple[int, int, int]) -> None:
    """Raise `ClipError` unless `rgb` is float [T, H, W, 3] with T = 4k + 1 and H, W multiples of the stride."""
    if rgb.ndim != 4 or rgb.shape[-1] != 3 or not np.issubdtype(rgb.dtype, np.floating):
        raise ClipError(f"video must be float32 [T, H, W, 3] in 0..1, got {rgb.dtype} {rgb.shape}")
    frames, height, width = rgb.shape[:3]
    if frames % stride[0] != 1 or height % stride[1] or width % stride[2]:
        raise ClipError(
            f"{frames} frames of {height}x{width} px: number of frames must be {stride[0]}k + 1, height a multiple of "
            f"{stride[1]}, width a multiple of {stride[2]}"
        )


def _cosines(size: int) -> np.ndarray:
    """Orthonormal DCT-II, float64 [frequency, position]."""
    position = np.arange(size) + 0.5
    rows = np.cos(np.pi / size * np.arange(size)[:, None] * position) * np.sqrt(2.0 / size)
    rows[0] /= np.sqrt(2.0)
    return rows


@lru_cache(maxsize=8)
def _basis(channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal rows over (colour, frame, row, column), float32 [channels, 768], and their scales [channels]."""
    rows = np.einsum("ac,tk,yu,xv->atyxckuv", COLOURS, _cosines(FRAMES), _cosines(SIDE), _cosines(SIDE))
    rows = rows.reshape(COEFFICIENTS, COEFFICIENTS)
    time, row, column = np.meshgrid(np.arange(FRAMES), np.arange(SIDE), np.arange(SIDE), indexing="ij")
    frequency = np.sqrt((TIME_WEIGHT * time) ** 2 + row**2 + column**2)
    fall = MEAN_STD / np.where(frequency == 0, 1.0, DETAIL * np.maximum(frequency, 1.0) ** FALL)
    scale = (np.array(COLOUR_STD)[:, None, None, None] * fall).ravel()
    order = np.argsort(-scale, kind="stable")[:channels]
    return rows[order].astype(np.float32), scale[order].astype(np.float32)


def _to_blocks(video: np.ndarray) -> np.ndarray:
    """float32 [4 T', 8 H', 8 W', 3] -> [T', H', W', 768] over (colour, frame, row, column)."""
    frames, height, width = (n // s for n, s in zip(video.shape[:3], (FRAMES, SIDE, SIDE), strict=True))
    split = video.reshape(frames, FRAMES, height, SIDE, width, SIDE, 3)
    return split.transpose(0, 2, 4, 6, 1, 3, 5).reshape(frames, height, width, COEFFICIENTS)


def _from_blocks(blocks: np.ndarray) -> np.ndarray:
    """The inverse of `_to_blocks`."""
    frames, height, width = blocks.shape[:3]
    split = blocks.reshape(frames, height, width, 3, FRAMES, SIDE, SIDE).transpose(0, 4, 1, 5, 2, 6, 3)
    return split.reshape(frames * FRAMES, height * SIDE, width * SIDE, 3)

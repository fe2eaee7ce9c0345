"""Small pictures whose motion is known exactly."""

import cv2
import numpy as np


def texture(height_px: int, width_px: int, seed: int = 0, grain_px: float = 3.0) -> np.ndarray:
    """uint8 [H, W, 3]: smooth random grey, without a direction and without a flat spot."""
    noise = np.random.default_rng(seed).standard_normal((height_px, width_px)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), grain_px)
    grey = (smooth - smooth.min()) / np.ptp(smooth) * 255
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=-1)


def panned(offsets_px: list[tuple[int, int]], height_px: int = 120, width_px: int = 180) -> np.ndarray:
    """uint8 [T, H, W, 3]: one texture whose content lies `offsets_px` (right, down) of where it was first."""
    reach = 1 + max(max(abs(right), abs(down)) for right, down in offsets_px)
    big = texture(height_px + 2 * reach, width_px + 2 * reach)
    return np.stack([big[reach - down :, reach - right :][:height_px, :width_px].copy() for right, down in offsets_px])


def zoomed(ratios: list[float], height_px: int = 120, width_px: int = 180) -> np.ndarray:
    """uint8 [T, H, W, 3]: one texture enlarged `ratios` times about the centre of the frame."""
    pad = 40
    big = texture(height_px + 2 * pad, width_px + 2 * pad)
    centre_x, centre_y = (width_px - 1) / 2, (height_px - 1) / 2
    frames = []
    for ratio in ratios:
        # output pixel p shows big at (p - centre) / ratio + centre + pad
        matrix = np.array(
            [[1 / ratio, 0, centre_x * (1 - 1 / ratio) + pad], [0, 1 / ratio, centre_y * (1 - 1 / ratio) + pad]]
        )
        frames.append(cv2.warpAffine(big, matrix, (width_px, height_px), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP))
    return np.stack(frames)


def square_on_texture(lefts_px: list[int], side_px: int = 40, height_px: int = 120, width_px: int = 180) -> np.ndarray:
    """uint8 [T, H, W, 3]: a textured square at `lefts_px`, in the middle rows of a texture that stands still."""
    frames = np.repeat(texture(height_px, width_px)[None], len(lefts_px), axis=0)
    square = texture(side_px, side_px, seed=1)
    top = (height_px - side_px) // 2
    for frame, left in zip(frames, lefts_px, strict=True):
        frame[top : top + side_px, left : left + side_px] = square
    return frames

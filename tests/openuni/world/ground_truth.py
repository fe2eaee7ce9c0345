"""What the tests of ground truth share."""

from functools import cache

import numpy as np

from openuni.world import WorldClip, make_clip

SIZE = {"frames": 4, "height_px": 72, "width_px": 96}
PERSON_SEEDS, ROOM_SEEDS, LAYER_SEEDS = (0, 3, 5), (0, 1, 4), (0, 2, 5)


@cache
def clip(preset: str, seed: int) -> WorldClip:
    return make_clip(seed, preset=preset, **SIZE)


def arrays(preset: str, seed: int) -> dict[str, np.ndarray]:
    """Copies that a test may damage."""
    return {name: modality.array.copy() for name, modality in clip(preset, seed).modalities.items()}


def sampled(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear samples of [H, W, C] at pixel positions (centres at +0.5)."""
    height, width = image.shape[:2]
    x, y = np.clip(x - 0.5, 0, width - 1), np.clip(y - 0.5, 0, height - 1)
    left, top = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    x, y = (x - left)[..., None], (y - top)[..., None]
    upper = image[top, left] * (1 - x) + image[top, left + 1] * x
    lower = image[top + 1, left] * (1 - x) + image[top + 1, left + 1] * x
    return upper * (1 - y) + lower * y


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels' centres, [H, W]."""
    return np.broadcast_to(np.arange(width) + 0.5, (height, width)), np.broadcast_to(
        np.arange(height)[:, None] + 0.5, (height, width)
    )

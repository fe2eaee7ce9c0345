"""What comes back from a modality's rendering: after rounding to 8 bits, and after what a video VAE does to it.

    python -m tests.benchmarks.renderings

Maps are the world's ground truth, 5 frames of 240 x 320. The VAE stands in as a blur over one pixel (Gaussian, sigma
0.7 px) and noise (sigma 3 levels of 255), rounded to 8 bits: about what Wan's leaves at high quality. Maps are read
back with the clip's constants. No figure here is a bound; bounds stand in the modalities' docstrings and are tested.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from openuni.manifests.contracts.modality import Modality
from openuni.world.clips import make_clip

FRAMES, HEIGHT_PX, WIDTH_PX = 5, 240, 320
BLUR_PX, NOISE = 0.7, 3 / 255
CLIPS = {"persons": ("depth", "flow", "segmentation", "densepose"), "interiors": ("normal", "albedo", "irradiance")}
CLIPS |= {"layers": ("alpha", "foreground", "background")}


def eight_bits(rgb: np.ndarray) -> np.ndarray:
    """float32 [T, H, W, 3] in 0..1, rounded to levels."""
    return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.float32) / np.float32(255)


def through_a_vae(rgb: np.ndarray) -> np.ndarray:
    """The same, blurred and noisy."""
    noise = np.random.default_rng(0).normal(0, NOISE, rgb.shape).astype(np.float32)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), BLUR_PX) for frame in rgb])
    return eight_bits(blurred + noise)


def _angle_deg(found: Any, true: Any) -> np.ndarray:
    surface = np.linalg.norm(true.array, axis=-1) > 0.5
    cosine = np.clip((found.array * true.array).sum(axis=-1)[surface], -1, 1)
    return np.degrees(np.arccos(cosine))


def _inverse_depth(found: Any, true: Any) -> np.ndarray:
    near, far = 1 / true.array.min(), 1 / true.array.max()
    return np.abs(1 / found.array - 1 / true.array) / (near - far)


def _absolute(found: Any, true: Any) -> np.ndarray:
    return np.abs(found.array.astype(np.float64) - true.array)


# modality -> what the error is, in which unit
ERRORS: dict[str, tuple[str, Callable[[Any, Any], np.ndarray]]] = {
    "depth": ("share of the range of 1 / metres", _inverse_depth),
    "flow": ("end-point error, px", lambda found, true: np.linalg.norm(found.array - true.array, axis=-1)),
    "segmentation": ("share of wrong pixels", lambda found, true: found.array != true.array),
    "densepose": ("share of pixels with a wrong part", lambda found, true: found.array[..., 0] != true.array[..., 0]),
    "normal": ("degrees", _angle_deg),
    "albedo": ("linear, 0..1", _absolute),
    "irradiance": ("share of white", lambda found, true: _absolute(found, true) / true.constants().white),
    "alpha": ("0..1", _absolute),
    "foreground": ("levels of 255", _absolute),
    "background": ("levels of 255", _absolute),
}


def row(name: str, true: Modality) -> str:
    """One line of the table."""
    unit, error = ERRORS[name]
    cells = []
    for perturb in (eight_bits, through_a_vae):
        errors = error(type(true).from_rgb(perturb(true.to_rgb()), true.constants()), true)
        mean = f"{errors.mean():.4f}"  # of what is right or wrong, there is nothing else to say
        cells.append(mean if errors.dtype == bool else f"{mean}, {np.percentile(errors, 99):.4f}")
    return f"| {name} | {unit} | {cells[0]} | {cells[1]} |"


def main() -> None:
    """The table, as it stands in manifests/README.md."""
    print("| modality | error | 8 bits: mean, 99 % | VAE-like: mean, 99 % |")
    print("| --- | --- | --- | --- |")
    for preset, names in CLIPS.items():
        clip = make_clip(1, preset=preset, frames=FRAMES, height_px=HEIGHT_PX, width_px=WIDTH_PX, modalities=names)
        for name in names:
            print(row(name, clip.modalities[name]))


if __name__ == "__main__":
    main()

"""Errors of alpha mattes, with the scales of video matting papers."""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, ClassVar, NamedTuple

import numpy as np

from openuni.manifests.modalities.alpha import Alpha
from openuni.training.metric import LOWER, Metric

GRADIENT_SIGMA_PX = 1.4
CONNECTIVITY_STEPS = 10
MIN_DISCONNECTED = 0.15  # smaller differences from the connected level do not count


class MatteErrors(NamedTuple):
    """Means over the frames of a clip; dtssd over pairs of adjacent frames."""

    mad_e3: Annotated[float, "mean absolute difference, times 1,000", LOWER]
    mse_e3: Annotated[float, "mean squared difference, times 1,000", LOWER]
    grad: Annotated[float, "squared difference of gradient magnitudes, summed over the frame, divided by 1,000", LOWER]
    conn: Annotated[float, "connectivity error, summed over the frame, divided by 1,000", LOWER]
    dtssd_e2: Annotated[float | None, "root mean squared difference of the change over time, times 100", LOWER]


@dataclass(frozen=True)
class AlphaMetric(Metric):
    """Errors of alpha mattes over whole frames.

    grad and conn are sums over a frame: compare them at one frame size only. One frame has no dtssd.
    """

    modalities: ClassVar[tuple[str, ...]] = ("alpha",)
    origin: ClassVar[str] = (
        "Rhemann et al. 2009 (CVPR) and Erofeev et al. 2015 (BMVC), scaled as in Robust Video Matting"
    )

    def compare(self, predicted: Alpha, true: Alpha) -> MatteErrors:
        """Compare coverage."""
        return matte_errors(predicted.array[..., 0], true.array[..., 0])


def matte_errors(predicted: np.ndarray, true: np.ndarray) -> MatteErrors:
    """Errors between mattes, float32 [T, H, W] in 0..1."""
    difference = predicted.astype(np.float64) - true
    frames = list(zip(predicted, true, strict=True))
    changes = [np.sqrt(np.square(after - before).mean()) for before, after in pairwise(difference)]
    return MatteErrors(
        float(np.abs(difference).mean() * 1e3),
        float(np.square(difference).mean() * 1e3),
        float(np.mean([_gradient_error(*pair) for pair in frames])),
        float(np.mean([_connectivity_error(*pair) for pair in frames])),
        float(np.mean(changes) * 1e2) if changes else None,
    )


def _gradient_error(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(np.square(_gradient(predicted) - _gradient(true)).sum() / 1000)


def _gradient(matte: np.ndarray) -> np.ndarray:
    """Magnitude of the gradient by derivatives of a Gaussian, of the matte stretched to 0..1."""
    import cv2

    low, high = float(matte.min()), float(matte.max())
    stretched = (matte.astype(np.float64) - low) / (high - low) if high > low else np.zeros(matte.shape)
    along, across = _gaussian_derivative()
    x, y = (cv2.filter2D(stretched, -1, kernel, borderType=cv2.BORDER_REPLICATE) for kernel in (along, across))
    magnitude: np.ndarray = np.hypot(x, y)
    return magnitude


@cache
def _gaussian_derivative() -> tuple[np.ndarray, np.ndarray]:
    """Kernels of the derivative of a Gaussian along x and y, of unit norm, as wide as its weights exceed 1 %."""
    sigma = GRADIENT_SIGMA_PX
    reach = int(np.ceil(sigma * np.sqrt(-2 * np.log(np.sqrt(2 * np.pi) * sigma * 1e-2))))
    place = np.arange(-reach, reach + 1)
    weight = np.exp(-np.square(place) / (2 * sigma**2))
    kernel = np.outer(weight, -place * weight)
    kernel /= np.linalg.norm(kernel)
    return kernel, kernel.T


def _connectivity_error(predicted: np.ndarray, true: np.ndarray) -> float:
    """Difference of how much of each pixel is connected to the largest region that is opaque in both."""
    import cv2

    connected = np.full(true.shape, -1.0)  # highest level at which the pixel belongs to that region
    levels = np.arange(CONNECTIVITY_STEPS + 1) * (1 / CONNECTIVITY_STEPS)
    for below, level in pairwise(levels):
        both = ((true >= level) & (predicted >= level)).astype(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(both, connectivity=4)
        sizes = stats[1:, cv2.CC_STAT_AREA]
        region = labels == 1 + int(np.argmax(sizes)) if len(sizes) else np.zeros(true.shape, bool)
        connected[(connected == -1) & ~region] = below
    connected[connected == -1] = 1.0

    def disconnected(matte: np.ndarray) -> np.ndarray:
        excess = matte.astype(np.float64) - connected
        return np.where(excess >= MIN_DISCONNECTED, excess, 0.0)

    return float(np.abs(disconnected(predicted) - disconnected(true)).sum() / 1000)

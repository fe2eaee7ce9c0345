"""The sRGB transfer function (IEC 61966-2-1), between linear light and display-encoded values."""

import numpy as np

LINEAR_KNEE, SRGB_KNEE = 0.0031308, 0.04045  # end of the linear segment
SLOPE, OFFSET, EXPONENT = 12.92, 0.055, 2.4
MAX_DECODING_SLOPE = EXPONENT / (1 + OFFSET)  # slope of `srgb_to_linear` at 1: the maximum amplification of an error


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Convert linear light to sRGB values: float of any shape, 0..1 to 0..1, same dtype.

    Values are not clipped: above 1 the curve is extrapolated, below 0 its linear segment.
    """
    curve = (1 + OFFSET) * np.maximum(linear, LINEAR_KNEE) ** (1 / EXPONENT) - OFFSET
    return np.where(linear <= LINEAR_KNEE, linear * SLOPE, curve)


def srgb_to_linear(srgb: np.ndarray) -> np.ndarray:
    """Convert sRGB values to linear light, the inverse of `linear_to_srgb`: float of any shape, same dtype."""
    curve = ((np.maximum(srgb, SRGB_KNEE) + OFFSET) / (1 + OFFSET)) ** EXPONENT
    return np.where(srgb <= SRGB_KNEE, srgb / SLOPE, curve)

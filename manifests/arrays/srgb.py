"""The sRGB transfer function (IEC 61966-2-1): between linear light and the values that screens and files hold."""

import numpy as np

LINEAR_KNEE, SRGB_KNEE = 0.0031308, 0.04045  # where the straight part ends
SLOPE, OFFSET, EXPONENT = 12.92, 0.055, 2.4
MAX_DECODING_SLOPE = EXPONENT / (1 + OFFSET)  # slope of `srgb_to_linear` at 1: what an error in 0..1 grows by, at most


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light -> sRGB values; float of any shape, 0..1 to 0..1, dtype kept. Nothing is clipped: above 1 the curve
    goes on, below 0 its straight part does.
    """
    curve = (1 + OFFSET) * np.maximum(linear, LINEAR_KNEE) ** (1 / EXPONENT) - OFFSET
    return np.where(linear <= LINEAR_KNEE, linear * SLOPE, curve)


def srgb_to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB values -> linear light, the inverse of `linear_to_srgb`; float of any shape, 0..1 to 0..1, dtype kept."""
    curve = ((np.maximum(srgb, SRGB_KNEE) + OFFSET) / (1 + OFFSET)) ** EXPONENT
    return np.where(srgb <= SRGB_KNEE, srgb / SLOPE, curve)

"""Lengths and rescaling of three-component vector fields."""

import numpy as np


def vector_lengths(vectors: np.ndarray) -> np.ndarray:
    """Euclidean lengths of a vector field: float32 [..., W, 3] -> float32 [..., W]."""
    import cv2

    rows = vectors.reshape(-1, *vectors.shape[-2:])
    squares = cv2.transform(cv2.multiply(rows, rows), np.ones((1, 3), np.float32))
    return np.sqrt(squares).reshape(vectors.shape[:-1])


def rescale_vectors(vectors: np.ndarray, length: np.ndarray, to_length: float, min_length: float = 0.0) -> np.ndarray:
    """Rescale all vectors, float32 [..., W, 3], to `to_length`.

    `length`: their current lengths, float32 [..., W]. Vectors of length 0 or below `min_length` become zero.
    """
    import cv2

    rows = vectors.reshape(-1, *vectors.shape[-2:])
    with np.errstate(divide="ignore"):
        factor = np.float32(to_length) / length
    factor[(length < min_length) | (length == 0)] = 0
    factor = factor.reshape(rows.shape[:2])
    return cv2.multiply(rows, cv2.merge((factor, factor, factor))).reshape(vectors.shape)

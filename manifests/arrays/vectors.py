"""Fields of three-component vectors: their lengths, and all brought to one length."""

import numpy as np


def vector_lengths(vectors: np.ndarray) -> np.ndarray:
    """float32 [..., W, 3] -> [..., W]."""
    import cv2

    rows = vectors.reshape(-1, *vectors.shape[-2:])
    squares = cv2.transform(cv2.multiply(rows, rows), np.ones((1, 3), np.float32))
    return np.sqrt(squares).reshape(vectors.shape[:-1])


def rescale_vectors(vectors: np.ndarray, length: np.ndarray, to_length: float, shortest: float = 0.0) -> np.ndarray:
    """float32 [..., W, 3], `length` of each [..., W] -> all of one length; zero where `length` is 0 or < `shortest`."""
    import cv2

    rows = vectors.reshape(-1, *vectors.shape[-2:])
    with np.errstate(divide="ignore"):
        factor = np.float32(to_length) / length
    factor[(length < shortest) | (length == 0)] = 0
    factor = factor.reshape(rows.shape[:2])
    return cv2.multiply(rows, cv2.merge((factor, factor, factor))).reshape(vectors.shape)

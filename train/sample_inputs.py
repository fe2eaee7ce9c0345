"""Inputs of sampling: checks of captions and of the arrays of conditions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from openuni.manifests.errors import OpenUniError

OVERSHOOT = 1e-3  # tolerated excess of a condition rendering over 0..1, as interpolation and video codecs cause it


def check_captions(captions: Sequence[str]) -> None:
    """Raise `OpenUniError` unless these are strings that UTF-8 can encode, at least one."""
    if isinstance(captions, str) or not len(captions) or not all(isinstance(text, str) for text in captions):
        raise OpenUniError(f"captions must be a non-empty list of strings, one per sample, got {captions!r}")
    for text in captions:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise OpenUniError(
                f"caption {text!r} is not valid Unicode from character {error.start} on. Encode it as UTF-8."
            ) from error


def as_rendering(name: str, value: Any) -> np.ndarray:
    """A condition array as float32 [T, H, W, 3] in 0..1. Raises `OpenUniError` for anything else than a rendering."""
    allowed = f"condition {name} must be a Modality, or an array [T, H, W, 3], uint8 or float in 0..1"
    if not isinstance(value, np.ndarray):
        raise OpenUniError(f"{allowed}, got {type(value).__name__}")
    whole = value.dtype == np.uint8
    if value.ndim != 4 or value.shape[-1] != 3 or not value.size or not (whole or value.dtype.kind == "f"):
        raise OpenUniError(f"{allowed}, got {value.dtype} {list(value.shape)}")
    if whole:
        return value.astype(np.float32) / 255.0
    lo, hi = float(value.min()), float(value.max())
    if not (lo >= -OVERSHOOT and hi <= 1 + OVERSHOOT):  # also rejects NaN
        raise OpenUniError(f"{allowed}, got values from {lo:g} to {hi:g}. Rescale them, or pass uint8.")
    return np.clip(value.astype(np.float32), 0, 1)

"""Compact storage within a bit budget: the finest quantization that fits, then downscaling if none does."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from openuni.manifests.contracts.modality import Modality, Payload

SAMPLED_FRAMES = 8  # frames are encoded independently, so a few predict the total size
MARGIN = 0.97  # fraction of the budget that the prediction may use

FILE_BYTES, FRAME_BYTES = 4096, 64  # minimum budget per file and per frame, so that small maps are not downscaled

M = TypeVar("M", bound=Modality)
S = TypeVar("S", int, float)


def finest_within_budget(
    signal: M, encode: Callable[[M, S], Payload], steps: Sequence[S], bits_per_px: float
) -> Payload:
    """Encode with the first of `steps`, finest first, that needs at most `bits_per_px` bits per pixel of `signal`.

    A few kB are always allowed. If the last step does not fit either, the map is halved in size until it does; a map of
    one pixel is always encoded.
    """
    frames = len(signal.array)
    max_bytes = _byte_budget(signal, bits_per_px)
    while True:
        sample = signal.take(0, frames, -(-frames // SAMPLED_FRAMES))
        sampled_share = len(sample.array) / frames
        is_one_pixel = max(signal.size_px) == 1
        for step in steps:
            must_fit = not (is_one_pixel and step == steps[-1])
            if must_fit and len(encode(sample, step).data) > max_bytes * sampled_share * MARGIN:
                continue
            payload = encode(signal, step)
            if len(payload.data) <= max_bytes or not must_fit:
                return payload._replace(size_px=signal.size_px)
        height_px, width_px = signal.size_px
        signal = signal.resize(max(1, height_px // 2), max(1, width_px // 2))


def downscale_to_budget(signal: M, encode: Callable[[M], Payload], bits_per_px: float) -> Payload:
    """Encode the map, halved in size until it needs at most `bits_per_px` bits per pixel of `signal`.

    A few kB are always allowed; a map of one pixel is always encoded.
    """
    max_bytes = _byte_budget(signal, bits_per_px)
    while len((payload := encode(signal)).data) > max_bytes and max(signal.size_px) > 1:
        height_px, width_px = signal.size_px
        signal = signal.resize(max(1, height_px // 2), max(1, width_px // 2))
    return payload._replace(size_px=signal.size_px)


def _byte_budget(signal: Modality, bits_per_px: float) -> float:
    frames, (height_px, width_px) = len(signal.array), signal.size_px
    return max(bits_per_px * frames * height_px * width_px / 8, FILE_BYTES + frames * FRAME_BYTES)

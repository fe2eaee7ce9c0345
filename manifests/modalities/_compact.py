"""Maps in a bounded number of bits: the finest steps that fit, and only then a smaller map."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from openuni.manifests.contracts.modality import Modality, Payload

SAMPLED_FRAMES = 8  # the codec codes frames one by one, so that a few tell the size of all
MARGIN = 0.97  # of the bound: for what the sample does not show

FILE_BYTES, FRAME_BYTES = 4096, 64  # what a file and a frame in it take at least: small maps are not made smaller

M = TypeVar("M", bound=Modality)
S = TypeVar("S", int, float)


def finest_within_budget(
    signal: M, encode: Callable[[M, S], Payload], steps: Sequence[S], bits_per_px: float
) -> Payload:
    """`encode(signal, step)` with the first of `steps`, finest first, that takes at most `bits_per_px` bits per pixel.

    Pixels are those of `signal` as it is given; a few kB are always allowed. Where not even the last step fits, the map
    is halved in size until it does (a map of one pixel is coded whatever it takes).
    """
    frames = len(signal.array)
    most = _byte_budget(signal, bits_per_px)
    while True:
        sample = signal.take(0, frames, -(-frames // SAMPLED_FRAMES))
        share = len(sample.array) / frames
        is_last = max(signal.size_px) == 1
        for step in steps:
            if len(encode(sample, step).data) > most * share * MARGIN and not (is_last and step == steps[-1]):
                continue
            payload = encode(signal, step)
            if len(payload.data) <= most or (is_last and step == steps[-1]):
                return payload._replace(size_px=signal.size_px)
        height_px, width_px = signal.size_px
        signal = signal.resize(max(1, height_px // 2), max(1, width_px // 2))


def downscale_to_budget(signal: M, encode: Callable[[M], Payload], bits_per_px: float) -> Payload:
    """`encode(signal)`, or that of a map of half the size, and so on, until it takes at most `bits_per_px`.

    Pixels are those of `signal` as it is given; a few kB are always allowed, and a map of one pixel whatever it takes.
    """
    most = _byte_budget(signal, bits_per_px)
    while len((payload := encode(signal)).data) > most and max(signal.size_px) > 1:
        height_px, width_px = signal.size_px
        signal = signal.resize(max(1, height_px // 2), max(1, width_px // 2))
    return payload._replace(size_px=signal.size_px)


def _byte_budget(signal: Modality, bits_per_px: float) -> float:
    frames, (height_px, width_px) = len(signal.array), signal.size_px
    return max(bits_per_px * frames * height_px * width_px / 8, FILE_BYTES + frames * FRAME_BYTES)

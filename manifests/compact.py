"""Maps in a bounded number of bits: the finest steps that fit, and only then a smaller map."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from manifests.modality import Modality, Payload

SAMPLED_FRAMES = 8  # the codec codes frames one by one, so that a few tell the size of all
MARGIN = 0.97  # of the bound: for what the sample does not show

M = TypeVar("M", bound=Modality)
S = TypeVar("S", int, float)


def within(signal: M, encode: Callable[[M, S], Payload], steps: Sequence[S], bits_per_px: float) -> Payload:
    """`encode(signal, step)` with the first of `steps`, finest first, that takes at most `bits_per_px` bits per pixel.

    Pixels are those of `signal` as it is given. Where not even the last step fits, the map is halved in size until
    it does (a map of one pixel is coded whatever it takes).
    """
    frames, (height_px, width_px) = len(signal.array), signal.size_px
    most = bits_per_px * frames * height_px * width_px / 8
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

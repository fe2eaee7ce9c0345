"""Videos whose every frame says which one it is, encoded on the spot: exactness can be read off the pixels."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.thread_priority import ordinary_priority

WIDTH_PX, HEIGHT_PX = 64, 48
BITS = 8


def picture(number: int) -> np.ndarray:
    """uint8 [48, 64, 3]: the number in eight vertical bars, bright for 1, lowest bit at the left."""
    bars = np.array([220 if number >> bit & 1 else 30 for bit in range(BITS)], np.uint8)
    row = np.repeat(bars, WIDTH_PX // BITS)
    return np.broadcast_to(row[None, :, None], (HEIGHT_PX, WIDTH_PX, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames of any size show; a blend of two frames or a wrong colour is not a number."""
    height_px, width_px = frames.shape[1:3]
    centres = ((np.arange(BITS) + 0.5) * width_px / BITS).astype(int)
    bars = frames[:, height_px // 2, centres].mean(axis=-1)
    assert ((bars < 70) | (bars > 180)).all(), f"bars are neither dark nor bright: {bars}"
    return [int(((bar > 125) << np.arange(BITS)).sum()) for bar in bars]


def encode(
    path: Path,
    codec: str = "libx264",
    times: Sequence[int] = range(40),
    options: dict[str, str] | None = None,
    unit: Fraction = Fraction(1, 25),
    rotation: tuple[float, bool, bool] | None = None,
    pictures: Sequence[np.ndarray] | None = None,
) -> Path:
    """One frame per entry of `times` (in `unit` seconds), showing 0, 1, 2, ... unless `pictures` says otherwise.

    `options`: the encoder's; `pix_fmt` and `sar` (sample aspect ratio) among them are the stream's.
    """
    options = dict(options or {})
    pix_fmt, sar = options.pop("pix_fmt", "yuv420p"), options.pop("sar", "")
    images = [picture(number) for number in range(len(times))] if pictures is None else pictures
    with ordinary_priority(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1 / unit, options=options)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = unit
        if sar:
            stream.codec_context.sample_aspect_ratio = Fraction(sar)
        if rotation is not None:
            stream.set_display_rotation(*rotation)
        for packet in _packets(stream, images, times, unit):
            container.mux(packet)
    return path


def _packets(
    stream: "av.VideoStream", images: Sequence[np.ndarray], times: Sequence[int], unit: Fraction
) -> Iterator["av.Packet"]:
    for image, tick in zip(images, times, strict=True):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = tick, unit
        yield from stream.encode(frame)
    yield from stream.encode(None)


def write_tone(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path

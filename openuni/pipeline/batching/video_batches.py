"""Videos that a latent codec encodes together: the modalities of one clip, and those of several clips."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.modality import Modality
from openuni.pipeline.batching.halving import results_in_halves
from openuni.pipeline.phases import ClipItem
from openuni.training.codec import LatentCodec


class EncodedStream(NamedTuple):
    """One stream of one clip."""

    array: np.ndarray  # float32: latents [C, T', H', W'], of several windows [N, C, T', H', W'], or embeddings [L, D]
    dtype: str  # to store it in
    frames: int | None  # of the video behind it, or behind a window
    ms: float
    psnr_db: float | None = None  # of pictures decoded from the latents, if they were decoded


class VideoBatches:
    """The clips whose videos wait, and how the codec encodes these together.

    Videos wait as maps (uint8 or float32), and become RGB when it is their turn.
    """

    def __init__(self, codec: LatentCodec, model: Any, size: int) -> None:
        self.codec, self.model = codec, model
        self.size = size  # videos in a batch; halved when the GPU's memory does not suffice
        self.waiting: list[tuple[ClipItem, dict[str, Modality]]] = []

    @property
    def is_full(self) -> bool:
        """Whether as many videos of one shape wait as are encoded together, or twice as many of any."""
        shapes = Counter(_shape(signal) for _, videos in self.waiting for signal in videos.values())
        return max(shapes.values(), default=0) >= self.size or shapes.total() >= 2 * self.size

    def run(self) -> list[tuple[ClipItem, dict[str, EncodedStream | Exception]]]:
        """The latents of the clips that wait, or the error of each video. Then none waits."""
        clips, self.waiting = self.waiting, []
        by_key = {(item.key, name): signal for item, videos in clips for name, signal in videos.items()}
        encoded = self.encode(by_key)
        return [(item, {name: encoded[item.key, name] for name in videos}) for item, videos in clips]

    def encode(self, videos: Mapping[Any, Modality]) -> dict[Any, EncodedStream | Exception]:
        """The latents of videos of any size and length, under the keys given, or the error of each."""
        found: dict[Any, EncodedStream | Exception] = {}
        for shape in sorted({_shape(signal) for signal in videos.values()}):
            keys = [key for key, signal in videos.items() if _shape(signal) == shape]
            while keys:
                batch, keys = keys[: self.size], keys[self.size :]
                started = time.perf_counter()
                results = results_in_halves(self._latents, [videos[key] for key in batch], self._shrink)
                ms = (time.perf_counter() - started) * 1000 / len(batch)
                for key, one in zip(batch, results, strict=True):
                    found[key] = one if isinstance(one, Exception) else EncodedStream(one, "float16", shape[0], ms)
        return found

    def _latents(self, signals: Sequence[Modality]) -> list[np.ndarray]:
        return self.codec.encode_batch(self.model, [signal.to_rgb() for signal in signals])

    def _shrink(self, size: int) -> None:
        self.size = min(self.size, size)


def _shape(signal: Modality) -> tuple[int, ...]:
    """Frames, height and width: what videos of a batch have in common."""
    return len(signal.array), *signal.size_px

"""A latent codec that takes several videos at a time, notes which, and fails as it is told."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from openuni.manifests.contracts.options import Execution
from openuni.manifests.errors import ClipError
from openuni.training.codecs.dct import Dct


class OutOfMemoryError(RuntimeError):
    """As PyTorch calls it."""


@dataclass(frozen=True)
class BatchingCodec(Dct):
    """`dct` in batches."""

    videos: Annotated[int, "videos in a batch", Execution()] = 1
    most: Annotated[int, "videos that fit into memory; 0: any number", Execution()] = 0
    dark: Annotated[float, "videos with a darker mean cannot be encoded", Execution()] = 0.0
    broken: Annotated[float, "videos with a darker mean raise an error that is not the clip's", Execution()] = 0.0
    log: Annotated[str, "file that gets a line per batch: videos, frames", Execution()] = ""

    def videos_per_batch(self, model: Any, height_px: int, width_px: int) -> int:
        """See `LatentCodec.videos_per_batch`."""
        return self.videos

    def encode_batch(self, model: Any, videos: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `LatentCodec.encode_batch`."""
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{len(videos)} {len({one.shape for one in videos})} {len(videos[0])}\n")
        if self.most and len(videos) > self.most:
            raise OutOfMemoryError("no memory is left")
        for one in videos:
            if one.mean() < self.broken:
                raise RuntimeError("a kernel failed")
            if one.mean() < self.dark:
                raise ClipError("too dark")
        return [self.encode(model, one) for one in videos]

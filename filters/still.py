"""Frozen and black frames of a clip."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from openuni.filters._samples import sample_pairs
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import Filter
from openuni.manifests.contracts.options import UNIT_INTERVAL
from openuni.manifests.contracts.windows import WindowedRun, run_at_once

BLOCK_PX = 16


class Scores(NamedTuple):
    """Frozen and black frames among the sampled frames."""

    frozen_share: Annotated[
        float | None, "fraction of sampled pairs of adjacent frames that are equal, 0 to 1; null for a single frame"
    ]
    longest_frozen_s: Annotated[float, "maximum time over which all sampled frames are equal, seconds"]
    black_share: Annotated[float, "fraction of black frames, 0 to 1"]


@dataclass(frozen=True)
class Still(Filter):
    """Frozen and black frames.

    Two frames are equal if no block of 16 x 16 pixels changes by more than `noise` on average. This detects small
    moving objects in a static image, but ignores camera and codec noise. A static scene with a static camera also
    counts as frozen if its noise is that low. `longest_frozen_s` compares sampled frames only: changes between two
    samples that revert are missed. A frame is black if all but `bright_share` of its pixels are below `black_below`.
    """

    pairs_per_s: Annotated[float, "pairs of adjacent frames per second of the clip", Gt(0)] = 2.0
    max_pairs: Annotated[int, "maximum number of pairs per clip, evenly spaced", Ge(1)] = 32
    noise: Annotated[float, "maximum mean grey-value change of a block in equal frames", UNIT_INTERVAL] = 0.01
    black_below: Annotated[float, "grey value below which a pixel is black", UNIT_INTERVAL] = 0.1
    bright_share: Annotated[float, "maximum fraction of brighter pixels in a black frame", UNIT_INTERVAL] = 0.02

    origin: ClassVar[str] = "thresholds for black as in FFmpeg's blackdetect; frozen frames similar to its freezedetect"

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Pairs of adjacent frames: entries 2k and 2k + 1 are one pair. For a clip of one frame, that frame."""
        return sample_pairs(times_s, self.pairs_per_s, self.max_pairs)

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Scores over the pairs (2k, 2k + 1) of the frames, in the order of `sample`."""
        return run_at_once(self.start_windows(model), clip)

    def start_windows(self, model: Any) -> "StillWindows":
        """See `Operator.start_windows`."""
        return StillWindows(self)

    def same(self, one: np.ndarray, other: np.ndarray) -> bool:
        """Whether two greyscale frames uint8 [H, W] are equal up to noise."""
        import cv2

        change = cv2.absdiff(one, other)
        blocks_wide, blocks_high = (max(1, side // BLOCK_PX) for side in change.shape[::-1])
        blocks = cv2.resize(change.astype(np.float32), (blocks_wide, blocks_high), interpolation=cv2.INTER_AREA)
        return bool(blocks.max() <= self.noise * 255)


class StillWindows(WindowedRun[Scores]):
    """Compares each frame with the one before, and with the first one of the run of equal frames.

    The comparison with the first frame of the run detects slow changes.
    """

    def __init__(self, still: Still) -> None:
        self.still = still
        self.same: list[bool] = []  # of each frame but the first: whether it equals the one before
        self.black: list[bool] = []
        self.before: np.ndarray | None = None  # grey
        self.first: tuple[np.ndarray, float] | None = None  # of the run: grey, time
        self.longest_s = 0.0

    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """See `WindowedRun.add`."""
        import cv2

        for frame, time_s in zip(window.new_frames, window.times_s[window.overlap_frames :].tolist(), strict=True):
            grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
            self.black.append(bool((grey >= self.still.black_below * 255).mean() <= self.still.bright_share))
            if self.before is not None:
                self.same.append(self.still.same(self.before, grey))
            if self.first is not None and self.still.same(self.first[0], grey):
                self.longest_s = max(self.longest_s, time_s - self.first[1])
            else:
                self.first = grey, time_s
            self.before = grey
        return {}

    def result(self) -> Scores:
        """See `WindowedRun.result`."""
        return Scores(
            frozen_share=float(np.mean(self.same[::2])) if self.same else None,
            longest_frozen_s=self.longest_s,
            black_share=float(np.mean(self.black)),
        )

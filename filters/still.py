"""Frozen and black frames of a clip."""

import itertools
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from openuni.filters._samples import sample_pairs
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Filter
from openuni.manifests.contracts.options import UNIT_INTERVAL

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
        import cv2

        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip.frames]
        same = [self._same(before, after) for before, after in itertools.pairwise(grey)]
        black = [(one >= self.black_below * 255).mean() <= self.bright_share for one in grey]
        return Scores(
            frozen_share=float(np.mean(same[::2])) if same else None,
            longest_frozen_s=self._longest_s(grey, clip.times_s),
            black_share=float(np.mean(black)),
        )

    def _same(self, one: np.ndarray, other: np.ndarray) -> bool:
        """Whether two greyscale frames uint8 [H, W] are equal up to noise."""
        import cv2

        change = cv2.absdiff(one, other)
        blocks_wide, blocks_high = (max(1, side // BLOCK_PX) for side in change.shape[::-1])
        blocks = cv2.resize(change.astype(np.float32), (blocks_wide, blocks_high), interpolation=cv2.INTER_AREA)
        return bool(blocks.max() <= self.noise * 255)

    def _longest_s(self, grey: list[np.ndarray], times_s: np.ndarray) -> float:
        """Longest run of equal frames. Frames are compared with the first of the run, so slow changes are detected."""
        first, longest_s = 0, 0.0
        for index in range(1, len(grey)):
            if self._same(grey[first], grey[index]):
                longest_s = max(longest_s, float(times_s[index] - times_s[first]))
            else:
                first = index
        return longest_s

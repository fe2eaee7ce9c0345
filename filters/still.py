"""Whether a clip stands still or is black, for how much of its time."""

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
    """Frozen and black frames among those sampled."""

    frozen_share: Annotated[
        float | None, "share of adjacent frames that show the same picture, 0 to 1; null for a clip of one frame"
    ]
    longest_frozen_s: Annotated[float, "longest time over which all sampled frames show the same picture, seconds"]
    black_share: Annotated[float, "share of black frames, 0 to 1"]


@dataclass(frozen=True)
class Still(Filter):
    """Frozen pictures and black frames.

    Two frames show the same picture when no block of 16 x 16 pixels changes by more than `noise` in the mean: a small
    thing that moves in a large picture at rest is seen, the noise of a camera or codec is not. A shot of things at rest
    by a camera at rest is frozen too where its noise is that low. `longest_frozen_s` follows one picture over the
    samples: a change and return between two of them is not seen. A frame is black when all but `bright_share` of its
    pixels are darker than `black_below`.
    """

    pairs_per_s: Annotated[float, "pairs of adjacent frames compared per second of the clip", Gt(0)] = 2.0
    max_pairs: Annotated[int, "most pairs compared per clip, spread over its whole length", Ge(1)] = 32
    noise: Annotated[float, "mean change of a block's grey values that still counts as none", UNIT_INTERVAL] = 0.01
    black_below: Annotated[float, "grey value under which a pixel is black", UNIT_INTERVAL] = 0.1
    bright_share: Annotated[float, "share of pixels of a black frame that may be brighter", UNIT_INTERVAL] = 0.02

    origin: ClassVar[str] = "thresholds for black as in FFmpeg's blackdetect; for frozen compare its freezedetect"

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Pairs of adjacent frames: entries 2k and 2k + 1 are one pair. A clip of one frame gives that frame."""
        return sample_pairs(times_s, self.pairs_per_s, self.max_pairs)

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Scores over the pairs (2k, 2k + 1) of the frames given, as `sample` orders them."""
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
        """Whether two uint8 [H, W] show the same picture."""
        import cv2

        change = cv2.absdiff(one, other)
        blocks_wide, blocks_high = (max(1, side // BLOCK_PX) for side in change.shape[::-1])
        blocks = cv2.resize(change.astype(np.float32), (blocks_wide, blocks_high), interpolation=cv2.INTER_AREA)
        return bool(blocks.max() <= self.noise * 255)

    def _longest_s(self, grey: list[np.ndarray], times_s: np.ndarray) -> float:
        """Each picture is compared with the first of its run, so that a slow change is a change."""
        first, longest_s = 0, 0.0
        for index in range(1, len(grey)):
            if self._same(grey[first], grey[index]):
                longest_s = max(longest_s, float(times_s[index] - times_s[first]))
            else:
                first = index
        return longest_s

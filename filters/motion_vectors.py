"""Amount of motion from the codec's motion vectors: a fast score for ranking."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from openuni.filters._samples import sample_pairs
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.operator import Filter
from openuni.manifests.contracts.windows import WindowedRun, run_at_once
from openuni.manifests.errors import Unavailable
from openuni.manifests.video.motion_vectors import CODECS, MotionVectors

PATCH_PX = 256
CELL_PX = 4  # minimum block size


class Scores(NamedTuple):
    """Length of the motion vectors, averaged over the sampled frames that have any."""

    length_sides: Annotated[
        float | None,
        "mean length of the motion vectors, in units of frame width + height; null if no sampled frame is predicted",
    ]
    least_patch_sides: Annotated[
        float | None,
        "mean length in the patch (about 256 x 256 px) with the least motion, same unit; null as for length_sides",
    ]
    predicted_share: Annotated[float, "fraction of the image area with motion vectors, over all sampled frames, 0 to 1"]


@dataclass(frozen=True)
class CodecMotion(Filter):
    """Length of the motion vectors stored in the video file; suited for ranking clips, not for measuring motion.

    Vectors may refer to reference frames several frames away, and encoders select them for compression, not for
    accuracy. Compare only clips of the same encoder, or use `motion`. Areas without vectors count as static. The unit
    is that of NVIDIA's Cosmos Curate, which drops clips below 0.00098 (`length_sides`) or 0.000001
    (`least_patch_sides`, there from point samples instead of means). Motion vectors can be read from H.264, MPEG-4,
    MPEG-1, MPEG-2, H.263, FLV1 and Windows Media. For HEVC, VP9, AV1 and all others the filter is `unavailable`: its
    scores are null and the clip does not fail.
    """

    pairs_per_s: Annotated[float, "pairs of adjacent frames per second of the clip", Gt(0)] = 2.0
    max_pairs: Annotated[int, "maximum number of pairs per clip, evenly spaced", Ge(1)] = 32

    requires_motion_vectors: ClassVar[bool] = True
    origin: ClassVar[str] = "motion filter of nvidia-cosmos/cosmos-curate; vectors as FFmpeg exports them"

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Pairs of adjacent frames, so that a keyframe (without vectors) is always paired with a predicted frame.

        With equal options, these are the same frames as those of `motion`, so no further frames are decoded.
        """
        return sample_pairs(times_s, self.pairs_per_s, self.max_pairs)

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Scores of `clip.vectors`. Raises `Unavailable` where the codec's vectors cannot be read."""
        return run_at_once(self.start_windows(model), clip)

    def start_windows(self, model: Any) -> "VectorWindows":
        """See `Operator.start_windows`."""
        return VectorWindows()


class VectorWindows(WindowedRun[Scores]):
    """Adds up the lengths of the motion vectors per cell."""

    def __init__(self) -> None:
        self.frames = 0
        self.total: np.ndarray | None = None
        self.covered: list[float] = []  # per frame with vectors: fraction of its area that has some

    def add(self, window: DecodedClip) -> Mapping[str, Modality]:
        """See `WindowedRun.add`."""
        if window.vectors is None or window.clip.codec not in CODECS:
            raise Unavailable(f"motion vectors of {window.clip.codec} cannot be read; `motion` supports any codec")
        new = window.vectors[window.overlap_frames :]
        self.frames += len(new)
        for lengths in (lengths_sides(vectors) for vectors in new if vectors is not None):
            self.covered.append(float(np.isfinite(lengths).mean()))
            filled = np.nan_to_num(lengths)
            self.total = filled if self.total is None else self.total + filled
        return {}

    def result(self) -> Scores:
        """See `WindowedRun.result`."""
        if self.total is None:
            return Scores(length_sides=None, least_patch_sides=None, predicted_share=0.0)
        mean = self.total / len(self.covered)
        return Scores(
            length_sides=float(mean.mean()),
            least_patch_sides=min_patch_motion(mean),
            predicted_share=float(np.sum(self.covered)) / self.frames,
        )


def lengths_sides(vectors: MotionVectors) -> np.ndarray:
    """Vector length per cell, float64 [H / 4, W / 4], in units of frame width + height; NaN without a vector.

    Cells with several vectors (bidirectional prediction) have their mean.
    """
    rows, columns = -(-vectors.height_px // CELL_PX), -(-vectors.width_px // CELL_PX)
    total, count = np.zeros((rows, columns)), np.zeros((rows, columns))
    lengths = np.hypot(*vectors.shifts_px.T.astype(np.float64)) / (vectors.width_px + vectors.height_px)
    corners = (vectors.centres_px - vectors.sizes_px // 2) // CELL_PX
    for width_px, height_px in np.unique(vectors.sizes_px, axis=0):
        chosen = (vectors.sizes_px == (width_px, height_px)).all(axis=1)
        for down in range(max(1, height_px // CELL_PX)):
            for right in range(max(1, width_px // CELL_PX)):
                row, column = corners[chosen, 1] + down, corners[chosen, 0] + right
                inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
                np.add.at(total, (row[inside], column[inside]), lengths[chosen][inside])
                np.add.at(count, (row[inside], column[inside]), 1)
    with np.errstate(invalid="ignore"):
        return total / np.where(count > 0, count, np.nan)


def min_patch_motion(lengths: np.ndarray) -> float:
    """Minimum over patches of about 256 x 256 px of the mean length; a smaller image is one patch."""
    down, right = (max(1, round(side * CELL_PX / PATCH_PX)) for side in lengths.shape)
    rows = np.array_split(lengths, down, axis=0)
    return float(min(patch.mean() for row in rows for patch in np.array_split(row, right, axis=1)))

"""How much a clip moves by the motion vectors in its video file: a rank that costs next to nothing."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from openuni.filters._samples import sample_pairs
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Filter
from openuni.manifests.errors import Unavailable
from openuni.manifests.video.motion_vectors import CODECS, MotionVectors

PATCH_PX = 256
CELL_PX = 4  # no block is smaller


class Scores(NamedTuple):
    """Length of the vectors over the picture, averaged over the sampled frames that have any."""

    length_sides: Annotated[
        float | None,
        "mean length of the vectors, in widths plus heights of the picture; null where no sampled frame is predicted",
    ]
    least_patch_sides: Annotated[
        float | None, "the same in that patch of about 256 x 256 px which moves least; null as above"
    ]
    predicted_share: Annotated[float, "share of the picture that has vectors, over all sampled frames, 0 to 1"]


@dataclass(frozen=True)
class CodecMotion(Filter):
    """Length of the codec's motion vectors, as stored in the file: to rank clips by, not to measure them.

    A vector leads to whatever frame the encoder predicted from, which may lie several frames off, and encoders choose
    vectors that compress, not those that are true: compare clips of one encoder, or use `motion`. Areas without a
    vector count as at rest. The unit is that of NVIDIA's curators, who drop clips under 0.00098 (`length_sides`) or
    under 0.000001 (`least_patch_sides`, there by point samples in place of means). H.264, MPEG-4, MPEG-1, MPEG-2,
    H.263, FLV1 and Windows Media files have vectors that can be read; for HEVC, VP9, AV1 and all others this filter is
    `unavailable`: its scores are null, and no clip fails for it.
    """

    pairs_per_s: Annotated[float, "pairs of adjacent frames looked at per second of the clip", Gt(0)] = 2.0
    max_pairs: Annotated[int, "most pairs looked at per clip, spread over its whole length", Ge(1)] = 32

    requires_motion_vectors: ClassVar[bool] = True
    origin: ClassVar[str] = "motion filter of nvidia-cosmos/cosmos-curate; vectors as FFmpeg exports them"

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Pairs, so that a key frame, which has no vectors, is always looked at together with one that has them.

        They are the frames that `motion` asks for with the same options: beside it nothing more is decoded.
        """
        return sample_pairs(times_s, self.pairs_per_s, self.max_pairs)

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Scores of `clip.vectors`. Raises `Unavailable` where the codec's vectors cannot be read."""
        if clip.vectors is None or clip.clip.codec not in CODECS:
            raise Unavailable(f"motion vectors of {clip.clip.codec} cannot be read; motion measures any codec")
        painted = [lengths_sides(vectors) for vectors in clip.vectors if vectors is not None]
        if not painted:
            return Scores(length_sides=None, least_patch_sides=None, predicted_share=0.0)
        mean = np.mean([np.nan_to_num(lengths) for lengths in painted], axis=0)
        covered = float(np.sum([np.isfinite(lengths).mean() for lengths in painted]))
        return Scores(
            length_sides=float(mean.mean()),
            least_patch_sides=min_patch_motion(mean),
            predicted_share=covered / len(clip.vectors),
        )


def lengths_sides(vectors: MotionVectors) -> np.ndarray:
    """Length of each cell's vector, float64 [H / 4, W / 4] in widths plus heights; NaN where there is none.

    A cell that is predicted from an earlier and a later frame has the mean of both.
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
    """The least mean over patches of about 256 px a side; one patch where the picture is smaller."""
    down, right = (max(1, round(side * CELL_PX / PATCH_PX)) for side in lengths.shape)
    rows = np.array_split(lengths, down, axis=0)
    return float(min(patch.mean() for row in rows for patch in np.array_split(row, right, axis=1)))

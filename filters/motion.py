"""Amount of motion in a clip, split into camera and object motion."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from openuni.filters._samples import sample_pairs
from openuni.manifests.arrays.dense_inverse_search import dis_estimator
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.window_filter import WindowFilter

MOVING_PX = 0.5
GRID_POINTS = 40  # points of the camera fit along the longer side
FIT_TOLERANCE = 0.001  # inlier distance of the camera fit, in frame diagonals


class Scores(NamedTuple):
    """Motion between adjacent frames, averaged over the sampled pairs. Diagonals make frame sizes comparable."""

    speed_diag_per_s: Annotated[float, "mean length of the optical flow, frame diagonals per second"]
    moving_share: Annotated[float, "fraction of pixels that move more than 0.5 px between adjacent frames, 0 to 1"]
    camera_share: Annotated[
        float | None, "fraction of the speed explained by pan, zoom and roll, 0 to 1; null without motion"
    ]
    residual_diag_per_s: Annotated[float, "mean speed after removal of camera motion, frame diagonals per second"]


@dataclass(frozen=True)
class Motion(WindowFilter):
    """Speed of image motion from DIS optical flow, split into camera and objects.

    Flow is computed between *adjacent* frames, at evenly spaced times, and divided by the time step of each pair.
    Speeds are therefore independent of frame rate and frame size, also for variable frame rates. Camera motion is a
    similarity transform (shift, zoom, roll) fitted to the flow by RANSAC; an object that fills most of the image is
    mistaken for the camera. For a clip of one frame, speeds and fractions are 0 and `camera_share` is null.
    """

    pairs_per_s: Annotated[float, "pairs of adjacent frames per second of the clip", Gt(0)] = 2.0
    max_pairs: Annotated[int, "maximum number of pairs per clip, evenly spaced", Ge(1)] = 32
    preset: Annotated[
        Literal["ultrafast", "fast", "medium"],
        "DIS preset; medium is about 4 times as accurate and 5 times as slow as the others",
    ] = "fast"

    origin: ClassVar[str] = "DIS optical flow, Kroeger et al. 2016 (arXiv:1603.03590), as in OpenCV"

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Pairs of adjacent frames: entries 2k and 2k + 1 are one pair. For a clip of one frame, that frame."""
        return sample_pairs(times_s, self.pairs_per_s, self.max_pairs)

    def window_step(self) -> int:
        """Windows hold whole pairs."""
        return 2

    def measure(self, model: Any, clip: DecodedClip) -> Sequence[tuple[float, float, float]]:
        """Speed, moving pixels and speed without the camera, of the pairs (2k, 2k + 1) of the frames.

        Raises `ClipError` for frames with a side below 8 px or both sides below 12 px.
        """
        import cv2

        frames, times_s = clip.new_frames, clip.times_s[clip.overlap_frames :]
        height_px, width_px = frames.shape[1:3]
        if len(frames) < 2:
            return []
        estimator = dis_estimator(self.preset, height_px, width_px, "motion")
        measured = []
        for first in range(0, len(frames) - 1, 2):
            before, after = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames[first : first + 2])
            flow = estimator.calc(before, after, np.zeros((height_px, width_px, 2), np.float32))
            length_px = _length(flow)
            per_s = 1.0 / (times_s[first + 1] - times_s[first]) / clip.diagonal_px
            left_px = _without_camera(flow, clip.diagonal_px)
            measured.append((length_px.mean() * per_s, (length_px > MOVING_PX).mean(), left_px * per_s))
        return measured

    def summarize(self, measured: Sequence[tuple[float, float, float]]) -> Scores:
        """Scores over the pairs, in the order of `sample`."""
        if not measured:
            return Scores(speed_diag_per_s=0.0, moving_share=0.0, camera_share=None, residual_diag_per_s=0.0)
        speed, moving, residual = np.mean(measured, axis=0).tolist()
        residual = min(residual, speed)
        return Scores(
            speed_diag_per_s=speed,
            moving_share=moving,
            camera_share=1.0 - residual / speed if speed > 0 else None,
            residual_diag_per_s=residual,
        )


def _without_camera(flow: np.ndarray, diagonal_px: float) -> float:
    """Mean residual length in pixels of `flow`, float32 [H, W, 2], after removal of a global similarity transform."""
    import cv2

    height_px, width_px = flow.shape[:2]
    step = max(1, max(height_px, width_px) // GRID_POINTS)
    rows, columns = np.mgrid[step // 2 : height_px : step, step // 2 : width_px : step]
    points = np.stack([columns, rows], axis=-1).reshape(-1, 2).astype(np.float32)
    moved = points + flow[rows, columns].reshape(-1, 2)
    cv2.setRNGSeed(0)  # OpenCV does not document a fixed seed for RANSAC
    tolerance_px = max(MOVING_PX, FIT_TOLERANCE * diagonal_px)
    matrix, _ = cv2.estimateAffinePartial2D(points, moved, method=cv2.RANSAC, ransacReprojThreshold=tolerance_px)
    if matrix is None:  # no fit: none of the motion is explained
        return float(_length(flow).mean())
    (xx, xy, shift_x), (yx, yy, shift_y) = (matrix - np.eye(2, 3)).astype(np.float32)  # displacement = target - source
    x = np.arange(width_px, dtype=np.float32)
    y = np.arange(height_px, dtype=np.float32)[:, None]
    camera = np.stack([xx * x + xy * y + shift_x, yx * x + yy * y + shift_y], axis=-1)
    return float(_length(flow - camera).mean())


def _length(vectors: np.ndarray) -> np.ndarray:
    """Lengths, float32 [H, W], of float32 [H, W, 2]."""
    import cv2

    lengths: np.ndarray = cv2.magnitude(*cv2.split(vectors))
    return lengths

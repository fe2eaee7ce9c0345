"""Sharpness and blur of a clip."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Gt

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import sample_evenly
from openuni.manifests.contracts.window_filter import WindowFilter

BLUR_PX = 11  # length of the reference blur


class Scores(NamedTuple):
    """Sharpness of the sampled frames."""

    blur: Annotated[
        float | None,
        "blur, 0 (sharp) to 1 (no detail), independent of contrast, mean over frames; null if all frames are flat",
    ]
    worst_blur: Annotated[float | None, "maximum blur over the frames that are not flat; null if all frames are flat"]
    laplacian_variance: Annotated[float, "variance of the Laplacian of grey values 0..1, mean over frames; 0: flat"]


@dataclass(frozen=True)
class Sharpness(WindowFilter):
    """Blur by the re-blurring method (a blurred image hardly changes when blurred again), and Laplacian variance.

    `blur` compares differences of adjacent pixels before and after a strong blur along each axis and takes the worse
    axis, so motion blur is measured. It is independent of contrast and brightness. Both scores depend on the image
    size: downscaling sharpens. They are measured at the working size (`[work] short_side_px`), so sources of at least
    that size are comparable; smaller sources are not upscaled and not comparable. Fine texture and noise count as
    sharp, a shallow depth of field as blurred. `laplacian_variance` also grows with the square of the contrast.
    """

    frames_per_s: Annotated[float, "sampled frames per second of the clip", Gt(0)] = 2.0

    origin: ClassVar[str] = "Crete et al. 2007 (doi:10.1117/12.702790); Pech-Pacheco et al. 2000"

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Evenly spaced frames."""
        return sample_evenly(times_s, self.frames_per_s)

    def measure(self, model: Any, clip: DecodedClip) -> Sequence[tuple[float | None, float]]:
        """Blur, and variance of the Laplacian, of every frame."""
        import cv2

        found = []
        for frame in clip.new_frames:
            grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
            laplacian = cv2.Laplacian(grey, cv2.CV_32F, borderType=cv2.BORDER_REFLECT_101)
            found.append((blur_of(grey), float(laplacian.var())))
        return found

    def summarize(self, measured: Sequence[tuple[float | None, float]]) -> Scores:
        """Scores of the frames, with equal weight."""
        blurs = [blur for blur, _ in measured if blur is not None]
        laplacian = [variance for _, variance in measured]
        return Scores(
            blur=float(np.mean(blurs)) if blurs else None,
            worst_blur=max(blurs) if blurs else None,
            laplacian_variance=float(np.mean(laplacian)),
        )


def blur_of(grey: np.ndarray) -> float | None:
    """Blur of float32 [H, W], 0 to 1; None if adjacent pixels along an axis never differ, or the image is too small."""
    import cv2

    if min(grey.shape) < 3:
        return None
    scores = []
    for axis, kernel in ((0, (1, BLUR_PX)), (1, (BLUR_PX, 1))):
        blurred = cv2.blur(grey, kernel, borderType=cv2.BORDER_REFLECT)
        before, after = (np.abs(_slope(image, axis)) for image in (grey, blurred))
        lost = float(np.maximum(before - after, 0).sum(dtype=np.float64))
        all_of_it = float(before.sum(dtype=np.float64))
        if all_of_it == 0:
            return None
        scores.append(1.0 - lost / all_of_it)
    return max(scores)


def _slope(image: np.ndarray, axis: int) -> np.ndarray:
    """Sobel derivative along an axis, without the border."""
    import cv2

    slope = cv2.Sobel(image, cv2.CV_32F, dx=axis, dy=1 - axis, ksize=3)
    return np.asarray(slope[2:-1, 2:-1])

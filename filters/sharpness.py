"""How sharp a clip is."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Gt

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Filter, sample_evenly

BLUR_PX = 11  # length of the strong blur that a picture is held against


class Scores(NamedTuple):
    """Sharpness of the sampled frames."""

    blur: Annotated[
        float | None, "0 (sharp) to 1 (no detail), the same for any contrast; mean over frames, null where all are flat"
    ]
    worst_blur: Annotated[float | None, "`blur` of the most blurred frame that is not flat; null where all are flat"]
    laplacian_variance: Annotated[float, "variance of the Laplacian of grey values 0..1, mean over frames; 0: flat"]


@dataclass(frozen=True)
class Sharpness(Filter):
    """Blur by blurring again: what is blurred already hardly changes. And the variance of the Laplacian.

    `blur` compares how much neighbouring pixels differ before and after a strong blur along each axis, and takes the
    worse axis, so motion blur shows. It does not depend on contrast or brightness. Both scores depend on size: a
    picture scaled down is sharper. They are measured at the run's working size (`[work] short_side_px`), so sources of
    that size and above compare; smaller ones are not scaled up and do not compare with them. Fine texture and noise
    count as sharp, a shallow depth of field as blurred. `laplacian_variance` grows with the square of the contrast too.
    """

    frames_per_s: Annotated[float, "frames measured per second of the clip", Gt(0)] = 2.0

    origin: ClassVar[str] = "Crete et al. 2007 (doi:10.1117/12.702790); Pech-Pacheco et al. 2000"

    def sample(self, times_s: np.ndarray) -> np.ndarray:
        """Evenly spread."""
        return sample_evenly(times_s, self.frames_per_s)

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Scores of the frames given; every frame weighs the same."""
        import cv2

        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255 for frame in clip.frames]
        blurs = [value for value in map(blur_of, grey) if value is not None]
        laplacian = [float(cv2.Laplacian(one, cv2.CV_32F, borderType=cv2.BORDER_REFLECT_101).var()) for one in grey]
        return Scores(
            blur=float(np.mean(blurs)) if blurs else None,
            worst_blur=max(blurs) if blurs else None,
            laplacian_variance=float(np.mean(laplacian)),
        )


def blur_of(grey: np.ndarray) -> float | None:
    """0 to 1 of float32 [H, W]; None where neighbours along some axis never differ, or the picture is too small."""
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

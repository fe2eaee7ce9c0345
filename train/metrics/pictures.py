"""Similarity of pictures: RGB, albedo, irradiance, and the layers of a matte."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np

from openuni.manifests.contracts.modality import Modality
from openuni.manifests.errors import ClipError
from openuni.training.metric import HIGHER, LOWER, Metric

MAX_PSNR_DB = 100.0  # of equal pictures, so that means over clips stay finite
SSIM_SIGMA_PX, SSIM_WINDOW_PX = 1.5, 11
LINEAR = ("albedo", "irradiance")  # modalities whose arrays are linear light


class PictureErrors(NamedTuple):
    """Over all frames of a clip."""

    psnr_db: Annotated[float, "peak signal-to-noise ratio over all frames together, dB, at most 100", HIGHER]
    ssim: Annotated[float | None, "structural similarity, mean over frames; none for a side below 11 px", HIGHER]
    mae: Annotated[float, "mean absolute difference", LOWER]
    scale_invariant_error: Annotated[
        float, "squared difference after the best scale of each channel, relative to the square of the truth", LOWER
    ]


@dataclass(frozen=True)
class PictureMetric(Metric):
    """Differences between pictures as they are rendered, in 0..1.

    The scale-invariant error multiplies each channel of the prediction by the factor with the least squared error over
    the clip first: albedo and irradiance are only known up to the colour of the light. These two are compared in
    linear values, as light scales those.
    """

    modalities: ClassVar[tuple[str, ...]] = ("rgb", "albedo", "irradiance", "foreground", "background")
    origin: ClassVar[str] = "SSIM: Wang et al. 2004 (IEEE TIP); scale-invariant error: Grosse et al. 2009 (ICCV)"

    def compare(self, predicted: Modality, true: Modality) -> PictureErrors:
        """Raises `ClipError` for clips without frames."""
        if not true.array.size:
            raise ClipError(f"{true.name}: at least one frame is required")
        ours, truth = predicted.to_rgb().astype(np.float64), true.to_rgb().astype(np.float64)
        values = (predicted.array, true.array) if true.name in LINEAR else (ours, truth)
        return PictureErrors(
            psnr_db(ours, truth), ssim(ours, truth), float(np.abs(ours - truth).mean()), scale_invariant_error(*values)
        )


def psnr_db(predicted: np.ndarray, true: np.ndarray) -> float:
    """Peak signal-to-noise ratio, dB, of pictures in 0..1; at most `MAX_PSNR_DB`."""
    mse = float(np.square(predicted - true).mean())
    return min(MAX_PSNR_DB, -10 * float(np.log10(mse))) if mse else MAX_PSNR_DB


def scale_invariant_error(predicted: np.ndarray, true: np.ndarray) -> float:
    """See `PictureErrors`. Arrays [T, H, W, C] of any scale; 0 for an all-black truth that is predicted as such."""
    ours, truth = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (predicted, true))
    power = np.square(ours).sum(axis=0)
    scale = np.divide((ours * truth).sum(axis=0), power, out=np.zeros_like(power), where=power > 0)
    left, total = np.square(scale * ours - truth).sum(), np.square(truth).sum()
    return float(left / total) if total else 0.0


def ssim(predicted: np.ndarray, true: np.ndarray) -> float | None:
    """Mean structural similarity over frames, with the constants of the paper."""
    from skimage.metrics import structural_similarity

    if min(true.shape[1:3]) < SSIM_WINDOW_PX:
        return None
    found = [
        structural_similarity(
            *frames,
            data_range=1.0,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=SSIM_SIGMA_PX,
            use_sample_covariance=False,
        )
        for frames in zip(predicted, true, strict=True)
    ]
    return float(np.mean(found))

"""Retinex decomposition into albedo and smooth irradiance whose product is the image, without a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from annotated_types import Interval, MinLen

from openuni.annotators._temporal_consistency import mean_change, warped_change
from openuni.manifests.arrays.srgb import srgb_to_linear
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.modalities.albedo import Albedo
from openuni.manifests.modalities.irradiance import Irradiance

DARKEST = 0.5 / 255 / 12.92  # largest linear light that 8 bits round to black: lower bound in the logarithm
WHITE_SHARE = 0.995  # fraction of the clip's pixels with an albedo within 0..1 before irradiance is raised
LINEAR_OF_LEVEL = srgb_to_linear(np.arange(256) / 255).astype(np.float32)


class Decomposition(NamedTuple):
    """Albedo and irradiance, whose product is the image in linear light, and quality scores."""

    albedo: Albedo
    irradiance: Irradiance
    raised_share: Annotated[
        float, "fraction of pixels where irradiance was raised to the image's brightness (white albedo), 0 to 1"
    ]
    flow_change: Annotated[
        float | None,
        "change of the albedo along the optical flow, 0 to 1: mean over channels, median over pixels with valid flow, "
        "mean over adjacent frames; 0 is fully consistent; null without valid flow",
    ]


@dataclass(frozen=True)
class Retinex(Annotator):
    """Retinex decomposition: self-consistent, but not physically accurate; hard shadows remain in the albedo.

    In linear light (inverse sRGB transfer function), with L the pixel's brightest channel: irradiance =
    k exp(Gaussian(log L)), grey, averaged in the logarithm over all `scales` (multi-scale Retinex); albedo = RGB /
    irradiance. k is one factor per clip, such that 99.5 % of the pixels have an albedo of at most 1. For the others,
    irradiance is raised to L. Therefore albedo x irradiance equals the image, exactly in float32 and within the bounds
    of storage (0.05 % + 1/131070 of the irradiance).

    Only the product is meaningful everywhere. Under even illumination, albedo is correct up to a factor for texture
    finer than the Gaussians. The light is assumed to be white. Gaussians and k are the same in all frames, so static
    content does not flicker. Maps are linear, at the size of the frames.
    """

    scales: Annotated[
        tuple[float, ...],
        "standard deviations of the Gaussians, as fractions of the frame's shorter side",
        MinLen(1),
        Interval(gt=0, le=4),
    ] = (0.15,)

    origin: ClassVar[str] = "Jobson, Rahman and Woodell 1997 (single-scale and multi-scale Retinex)"

    def run(self, model: Any, clip: DecodedClip) -> Decomposition:
        """Albedo and irradiance, float32 [T, H, W, 3] each, linear, at the size of the frames."""
        std_px = [scale * min(clip.frames.shape[1:3]) for scale in self.scales]
        brightest = LINEAR_OF_LEVEL[clip.frames.max(axis=-1)]
        light = np.stack([smooth_light(image, std_px) for image in brightest])
        ratio = brightest / light
        rank = int(np.ceil(WHITE_SHARE * (ratio.size - 1)))
        light *= max(float(np.partition(ratio.ravel(), rank)[rank]), DARKEST)
        raised = brightest > light
        light = np.maximum(light, brightest)[..., None]
        albedo = Albedo(np.minimum(LINEAR_OF_LEVEL[clip.frames] / light, 1))
        irradiance = Irradiance(np.repeat(light, 3, axis=-1))
        change = warped_change(clip, albedo, mean_change)
        return Decomposition(albedo, irradiance, float(raised.mean()), change)


def smooth_light(brightest: np.ndarray, std_px: Sequence[float]) -> np.ndarray:
    """exp(mean of Gaussians(log)), with mirrored borders: linear light float32 [H, W] -> float32 [H, W] > 0."""
    import cv2

    log = np.log(np.maximum(brightest, np.float32(DARKEST)))
    smooth = [cv2.GaussianBlur(log, (0, 0), std, borderType=cv2.BORDER_REFLECT) for std in std_px]
    light: np.ndarray = np.exp(np.mean(smooth, axis=0))
    return light

"""Albedo and irradiance that multiply to the picture, without a network: smooth light, and what is left."""

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

DARKEST = 0.5 / 255 / 12.92  # linear light that 8 bits round to black: what black counts as in the logarithm
WHITE_SHARE = 0.995  # of the clip's pixels whose reflectance is within 0..1 before the light is raised
LINEAR_OF_LEVEL = srgb_to_linear(np.arange(256) / 255).astype(np.float32)


class Decomposition(NamedTuple):
    """Two maps whose product is the picture in linear light."""

    albedo: Albedo
    irradiance: Irradiance
    raised_share: Annotated[
        float, "share of pixels where the smooth light was raised to the picture's own, 0 to 1: there albedo is white"
    ]
    flow_change: Annotated[
        float | None,
        "change of the albedo along the motion, 0 to 1: median over the pixels that can be followed of the mean over "
        "channels, mean over adjacent frames; 0 is steady; null where nothing can be followed",
    ]


@dataclass(frozen=True)
class Retinex(Annotator):
    """A consistent decomposition by Retinex, not a physical one: shadows with sharp edges stay in the albedo.

    In linear light (the inverse of the sRGB transfer function), with L the pixel's brightest channel: irradiance =
    k exp(Gaussian(log L)), grey, averaged in the logarithm over the Gaussians given (multi-scale Retinex); albedo = rgb
    / irradiance. k is one factor for the clip, such that 99.5 % of its pixels have an albedo of at most 1; where the
    others would have more, the irradiance is raised to L. So albedo x irradiance is the picture, exactly in 32 bits and
    within the bounds of storage (0.05 % + 1/131070 of the irradiance).

    Only the product means something everywhere. Under even light the albedo is right up to one factor, as far as the
    texture is finer than the Gaussians; the colour of the light is taken to be white. Gaussians and k are the same in
    all frames, so what does not move does not flicker. At the size of the frames, linear.
    """

    scales: Annotated[
        tuple[float, ...],
        "standard deviations of the Gaussians as shares of the frame's shorter side",
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
    """exp(mean of Gaussians of log): float32 [H, W] linear light -> float32 [H, W] > 0; the border is mirrored."""
    import cv2

    log = np.log(np.maximum(brightest, np.float32(DARKEST)))
    smooth = [cv2.GaussianBlur(log, (0, 0), std, borderType=cv2.BORDER_REFLECT) for std in std_px]
    light: np.ndarray = np.exp(np.mean(smooth, axis=0))
    return light

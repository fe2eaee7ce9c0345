"""Angular errors of surface normals."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np

from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.normal import Normal
from openuni.training.metric import HIGHER, LOWER, Metric


class NormalErrors(NamedTuple):
    """Over all pixels of a clip that have a surface."""

    mean_deg: Annotated[float, "mean angle between predicted and true normals, degrees", LOWER]
    median_deg: Annotated[float, "median of that angle, degrees", LOWER]
    within_11_25_deg: Annotated[float, "share of pixels with an angle below 11.25 degrees", HIGHER]
    within_22_5_deg: Annotated[float, "share of pixels with an angle below 22.5 degrees", HIGHER]
    within_30_deg: Annotated[float, "share of pixels with an angle below 30 degrees", HIGHER]


@dataclass(frozen=True)
class NormalMetric(Metric):
    """Angles between predicted and true normals, where the truth has a surface.

    A predicted pixel without a surface counts as 90 degrees.
    """

    modalities: ClassVar[tuple[str, ...]] = ("normal",)
    origin: ClassVar[str] = "Fouhey et al. 2013 (ICCV), Data-Driven 3D Primitives"

    def compare(self, predicted: Normal, true: Normal) -> NormalErrors:
        """Raises `ClipError` if no pixel of the true normals has a surface."""
        surface = true.array.any(axis=-1)
        if not surface.any():
            raise ClipError("normal: at least one pixel with a true surface is required")
        ours, truth = predicted.array[surface].astype(np.float64), true.array[surface].astype(np.float64)
        cosines = (ours * truth).sum(axis=-1) / np.maximum(np.linalg.norm(ours, axis=-1), 1e-12)
        cosines /= np.linalg.norm(truth, axis=-1)
        angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
        within = [float((angles < limit).mean()) for limit in (11.25, 22.5, 30.0)]
        return NormalErrors(float(angles.mean()), float(np.median(angles)), *within)

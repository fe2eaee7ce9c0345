"""Agreement of body parts and surface coordinates."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np

from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.densepose import PART_COUNT, DensePose
from openuni.training.metric import HIGHER, LOWER, Metric


class PartAgreement(NamedTuple):
    """Over all pixels of a clip."""

    part_iou: Annotated[float, "IoU of each body part, mean over the parts in the truth", HIGHER]
    person_iou: Annotated[float, "IoU of all body parts together against the background", HIGHER]
    uv_error: Annotated[
        float | None, "mean distance of (U, V), 0..1, where the part is right; none without such pixels", LOWER
    ]


@dataclass(frozen=True)
class DensePoseMetric(Metric):
    """Body parts pixel by pixel, and the place on the part where it is right.

    Geodesic point similarity (GPS) needs the surface of the SMPL body model, whose licence allows no redistribution;
    uv_error stands in its place and is no distance on the body.
    """

    modalities: ClassVar[tuple[str, ...]] = ("densepose",)
    origin: ClassVar[str] = "Güler et al. 2018 (CVPR), DensePose"

    def compare(self, predicted: DensePose, true: DensePose) -> PartAgreement:
        """Raises `ClipError` if no pixel of the truth shows a person."""
        ours, truth = predicted.array[..., 0].ravel(), true.array[..., 0].ravel()
        if not truth.any():
            raise ClipError("densepose: at least one pixel with a true body part is required")
        size = PART_COUNT + 1
        counts = np.bincount(truth * np.int64(size) + ours, minlength=size**2).reshape(size, size)
        area = counts.sum(axis=1)
        union = area + counts.sum(axis=0) - counts.diagonal()
        parts = np.flatnonzero(area[1:]) + 1
        outside = counts[0, 0]
        right = (ours == truth) & (truth > 0)
        apart = (
            predicted.array[..., 1:].reshape(-1, 2)[right] - true.array[..., 1:].reshape(-1, 2)[right].astype(float)
        ) / 255
        return PartAgreement(
            float((counts.diagonal()[parts] / union[parts]).mean()),
            float(counts[1:, 1:].sum() / (len(truth) - outside)),
            float(np.linalg.norm(apart, axis=-1).mean()) if right.any() else None,
        )

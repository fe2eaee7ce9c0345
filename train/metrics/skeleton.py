"""Agreement of key points: object key point similarity and percentage of correct key points of the body."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np

from openuni.manifests.arrays.assignment import linear_assignment
from openuni.manifests.contracts.options import UNIT_INTERVAL
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.skeleton import Skeleton
from openuni.training.metric import HIGHER, Metric

BODY_POINTS = 17
# COCO's per-point constants: standard deviation of human annotation, as a share of the object's scale
SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
AREA_SHARE = 0.53  # of the box of a person's points that counts as the person's area, in place of a mask
FOUND_OKS = 0.5
MIN_AREA_PX = 1.0


class KeyPointAgreement(NamedTuple):
    """Over the persons of a clip, matched one to one by their similarity. A person is one track through all frames."""

    oks: Annotated[float, "object key point similarity of COCO's 17 points, mean over true persons and frames", HIGHER]
    pck: Annotated[
        float,
        "share of true key points of the body that are predicted within 0.2 of the longer side of the box",
        HIGHER,
    ]
    person_recall: Annotated[float, "share of true persons with a match of OKS 0.5 or more", HIGHER]
    person_precision: Annotated[
        float | None, "share of predicted persons with such a match; none without predicted persons", HIGHER
    ]


@dataclass(frozen=True)
class SkeletonMetric(Metric):
    """Predicted persons against true ones by the 17 points of the body.

    A frame in which a true person has no point is left out; one in which the match has none counts as 0. Boxes are
    those of a person's true points. Points below `min_confidence` count as absent in both.
    """

    min_confidence: Annotated[float, "minimum confidence of points that count", UNIT_INTERVAL] = 0.3
    pck_share: Annotated[float, "tolerance of PCK, as a share of the longer side of the box", UNIT_INTERVAL] = 0.2

    modalities: ClassVar[tuple[str, ...]] = ("skeleton",)
    origin: ClassVar[str] = "OKS: COCO key point evaluation; PCK: Yang and Ramanan 2013 (TPAMI)"

    def compare(self, predicted: Skeleton, true: Skeleton) -> KeyPointAgreement:
        """Raises `ClipError` if the truth has no person with points of the body."""
        ours, truth = predicted.array[:, :, :BODY_POINTS], true.array[:, :, :BODY_POINTS]
        truth, shown = self._persons(truth)
        if not shown.size:
            raise ClipError("skeleton: at least one true person with key points of the body is required")
        ours, found = self._persons(ours)
        boxes_px = _box_sides(truth, shown)
        oks, correct = self._pairwise(ours, found, truth, shown, boxes_px)
        matches = linear_assignment(oks, np.finfo(np.float64).tiny)
        matched = sum(oks[pair] >= FOUND_OKS for pair in matches)
        persons, predicted_persons = truth.shape[1], ours.shape[1]
        return KeyPointAgreement(
            sum(oks[pair] for pair in matches) / persons,
            sum(correct[pair] for pair in matches) / int(shown.sum()),
            matched / persons,
            matched / predicted_persons if predicted_persons else None,
        )

    def _persons(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Persons with any point that counts, [T, P, 17, 3], and which of their points count, bool [T, P, 17]."""
        confidence = points[..., 2]
        counts: np.ndarray = np.logical_and(confidence >= self.min_confidence, confidence > 0)
        persons = np.flatnonzero(counts.any(axis=(0, 2)))
        return points[:, persons], np.take(counts, persons, axis=1)

    def _pairwise(
        self, ours: np.ndarray, found: np.ndarray, truth: np.ndarray, shown: np.ndarray, boxes_px: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """OKS and number of correct points of all pairs of persons: float [N, M] each."""
        oks, correct = np.zeros((2, ours.shape[1], truth.shape[1]))
        area = np.maximum(AREA_SHARE * boxes_px.prod(axis=-1), MIN_AREA_PX)[..., None]  # [T, M, 1]
        reach_px = self.pck_share * boxes_px.max(axis=-1)[..., None]
        present = shown.any(axis=-1)  # [T, M]
        for index in range(ours.shape[1]):
            squared = np.square(ours[:, index : index + 1, :, :2] - truth[..., :2]).sum(axis=-1, dtype=np.float64)
            both = found[:, index : index + 1] & shown
            similar = np.exp(-squared / (2 * np.square(2 * SIGMAS) * area)) * both
            per_frame = similar.sum(axis=-1) / np.maximum(shown.sum(axis=-1), 1)
            oks[index] = per_frame.sum(axis=0) / present.sum(axis=0)
            correct[index] = ((squared <= np.square(reach_px)) & both).sum(axis=(0, 2))
        return oks, correct


def _box_sides(points: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Width and height of the box of the shown points: [T, M, 17, 3] -> float [T, M, 2], 0 without points."""
    places = points[..., :2].astype(np.float64)
    low = np.where(shown[..., None], places, np.inf).min(axis=2)
    high = np.where(shown[..., None], places, -np.inf).max(axis=2)
    return np.where(shown.any(axis=2, keepdims=True), high - low, 0.0)

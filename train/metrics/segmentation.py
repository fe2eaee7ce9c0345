"""Agreement of instance masks: region similarity, contour accuracy and average precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np

from openuni.manifests.arrays.assignment import linear_assignment
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.segmentation import Segmentation
from openuni.training.metric import HIGHER, Metric

CONTOUR_TOLERANCE_SHARE = 0.008  # of the frame's diagonal, as in DAVIS
IOU_THRESHOLDS = tuple(np.arange(0.5, 1.0, 0.05).round(2).tolist())


class MaskAgreement(NamedTuple):
    """Over the instances of a clip. An instance is one mask through all frames (a tube)."""

    mean_iou: Annotated[float, "mean over true instances of the tube's IoU with its match; 0 without a match", HIGHER]
    region_j: Annotated[float, "DAVIS J: IoU per frame, mean over all frames and true instances", HIGHER]
    contour_f: Annotated[float, "DAVIS F: F-measure of contours per frame, averaged in the same way", HIGHER]
    j_and_f: Annotated[float, "mean of J and F", HIGHER]
    average_precision: Annotated[
        float, "true positives / (true + predicted instances - true positives), mean over IoU 0.50 to 0.95", HIGHER
    ]


@dataclass(frozen=True)
class SegmentationMetric(Metric):
    """Predicted instances against the true ones, matched one to one by the IoU of their tubes.

    Ids need not agree. Maps have no confidence, so that average precision has one point per IoU threshold, as in
    benchmarks of cell segmentation; it is not COCO's mAP. Background is no instance.
    """

    modalities: ClassVar[tuple[str, ...]] = ("segmentation",)
    origin: ClassVar[str] = "J and F: Perazzi et al. 2016 (CVPR), DAVIS; average precision: Caicedo et al. 2019"

    def compare(self, predicted: Segmentation, true: Segmentation) -> MaskAgreement:
        """Raises `ClipError` if the truth has no instance."""
        ours, truth = predicted.array[..., 0], true.array[..., 0]
        our_ids, true_ids = (np.unique(ids[ids > 0]) for ids in (ours, truth))
        if not len(true_ids):
            raise ClipError("segmentation: at least one true instance is required")
        iou = tube_iou(ours, truth, our_ids, true_ids)
        matched = dict((column, row) for row, column in linear_assignment(iou, np.finfo(np.float64).tiny))
        best = [iou[matched[index], index] if index in matched else 0.0 for index in range(len(true_ids))]
        pairs = [(_mask(ours, our_ids, matched.get(index)), truth == id_) for index, id_ in enumerate(true_ids)]
        region, contour = (
            float(np.mean([measure(*frame) for pair in pairs for frame in zip(*pair, strict=True)]))
            for measure in (frame_iou, contour_f_measure)
        )
        precision = average_precision(best, len(our_ids), len(true_ids))
        return MaskAgreement(float(np.mean(best)), region, contour, (region + contour) / 2, precision)


def tube_iou(predicted: np.ndarray, true: np.ndarray, our_ids: np.ndarray, true_ids: np.ndarray) -> np.ndarray:
    """Intersection over union of all pairs of instances over a clip: ids [T, H, W] each -> float [N, M]."""
    rows, columns = np.searchsorted(our_ids, predicted), np.searchsorted(true_ids, true)
    both = (predicted > 0) & (true > 0)
    joint = np.bincount(rows[both] * len(true_ids) + columns[both], minlength=len(our_ids) * len(true_ids))
    intersection = joint.reshape(len(our_ids), len(true_ids)).astype(np.float64)
    areas = np.bincount(rows[predicted > 0], minlength=len(our_ids))[:, None]
    areas = areas + np.bincount(columns[true > 0], minlength=len(true_ids))
    return intersection / (areas - intersection)


def average_precision(ious: Sequence[float], predicted: int, true: int) -> float:
    """See `MaskAgreement`. `ious`: of each true instance with its match."""
    found = [sum(iou >= threshold for iou in ious) for threshold in IOU_THRESHOLDS]
    return float(np.mean([positives / (predicted + true - positives) for positives in found]))


def contour_f_measure(predicted: np.ndarray, true: np.ndarray) -> float:
    """F-measure of the contours of two masks, bool [H, W], within 0.8 % of the diagonal; 1 if both are empty."""
    import cv2

    reach = int(np.ceil(CONTOUR_TOLERANCE_SHARE * np.hypot(*true.shape)))
    square = np.square(np.arange(-reach, reach + 1))
    disk = (square[:, None] + square <= reach**2).astype(np.uint8)
    contours = [_contour(mask) for mask in (predicted, true)]
    near = [cv2.dilate(contour.astype(np.uint8), disk).astype(bool) for contour in contours]
    counts = [int(contour.sum()) for contour in contours]
    if not all(counts):
        return float(not any(counts))
    precision = (contours[0] & near[1]).sum() / counts[0]
    recall = (contours[1] & near[0]).sum() / counts[1]
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _contour(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their neighbour to the right, below, or both, as DAVIS defines contours."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    contour: np.ndarray = (here != padded[:-1, 1:]) | (here != padded[1:, :-1]) | (here != padded[1:, 1:])
    contour[-1, -1] = False
    return contour


def _mask(ids: np.ndarray, known: np.ndarray, index: int | None) -> np.ndarray:
    return np.zeros(ids.shape, bool) if index is None else ids == known[index]


def frame_iou(predicted: np.ndarray, true: np.ndarray) -> float:
    """Intersection over union of two masks, bool [H, W]; 1 if both are empty."""
    union = (predicted | true).sum()
    return float((predicted & true).sum() / union) if union else 1.0

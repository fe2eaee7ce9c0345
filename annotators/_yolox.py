"""Person detection by YOLOX: letterboxing of the input, decoding of the output.

Input conventions of the network: BGR, levels 0..255 as numbers, the frame in the top left corner of a grey square.
"""

from functools import lru_cache

import numpy as np

from openuni.manifests.errors import OpenUniError

STRIDES_PX = (8, 16, 32)
GREY = 114
PERSON = 0  # COCO class index
PERSON_COLUMNS = 6  # up to the score of the first class, which is that of persons
FIRST_CLASS = 5  # index of the first class score, after x, y, width, height and objectness


def letterbox(frame: np.ndarray, height_px: int, width_px: int) -> tuple[np.ndarray, float]:
    """Resize and pad a frame: uint8 [H, W, 3] -> uint8 [height, width, 3], and the scale factor.

    The channel order is kept. Bilinear, without antialiasing; sides are truncated to whole pixels; the padding to the
    right and below is grey.
    """
    import cv2

    ratio = min(height_px / frame.shape[0], width_px / frame.shape[1])
    tall, wide = max(1, int(frame.shape[0] * ratio)), max(1, int(frame.shape[1] * ratio))
    square = np.full((height_px, width_px, 3), GREY, np.uint8)
    square[:tall, :wide] = cv2.resize(frame, (wide, tall), interpolation=cv2.INTER_LINEAR)
    return square, ratio


def anchor_count(height_px: int, width_px: int) -> int:
    """Number of cells in the three grids."""
    return sum((height_px // stride) * (width_px // stride) for stride in STRIDES_PX)


@lru_cache(maxsize=8)
def _grid(height_px: int, width_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Corner x, y of every cell of the three grids, in cells, int64 [A, 2], and its side in pixels, [A, 1]."""
    corners, cells = [], []
    for stride in STRIDES_PX:
        down, across = np.mgrid[: height_px // stride, : width_px // stride]
        corners.append(np.stack([across.ravel(), down.ravel()], axis=1))
        cells.append(np.full((corners[-1].shape[0], 1), stride))
    return np.concatenate(corners), np.concatenate(cells)


def boxes_of(raw: np.ndarray, height_px: int, width_px: int, wanted: np.ndarray | None = None) -> np.ndarray:
    """Decode the output, float32 [A, 5 + classes], into boxes float32 [A, 4]: left, top, right, bottom in input pixels.

    Each cell predicts the offset of the box centre from its corner and the logarithm of the box's sides, both in cells.
    `wanted`: bool [A], cells to decode; None for all.
    """
    corner, cell = _grid(height_px, width_px)
    if wanted is not None:
        raw, corner, cell = raw[wanted], corner[wanted], cell[wanted]
    with np.errstate(over="ignore", invalid="ignore"):
        centre = ((raw[:, :2] + corner) * cell).astype(np.float32)
        half = (np.exp(raw[:, 2:4]) * cell).astype(np.float32) / 2
        boxes: np.ndarray = np.concatenate([centre - half, centre + half], axis=1)
    return boxes


def persons(
    raw: np.ndarray, size_px: tuple[int, int], ratio: float, min_score: float, nms_iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Person boxes in pixels of the frame, float32 [n, 4], and scores float32 [n], best first.

    `raw`: the network's output for one frame; `size_px`: height and width of its input; `ratio`: scale factor from
    `letterbox`. Detections need a score above `min_score`; duplicates are removed by non-maximum suppression with
    threshold `nms_iou`. Raises `OpenUniError` for an output of another shape.
    """
    count = anchor_count(*size_px)
    if raw.ndim != 2 or raw.shape[0] != count or raw.shape[1] <= FIRST_CLASS:
        raise OpenUniError(
            f"the detector returned {raw.shape} for an input of {size_px[0]} x {size_px[1]} px; expected ({count}, 85) "
            "from YOLOX without built-in NMS. Use such an export."
        )
    scores = raw[:, FIRST_CLASS - 1] * raw[:, FIRST_CLASS + PERSON]
    sure = scores > min_score
    boxes, scores = boxes_of(raw, *size_px, sure) / np.float32(ratio), scores[sure]
    good = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    boxes, scores = boxes[good], scores[good]
    kept = non_max_suppression(boxes, scores, nms_iou)
    return boxes[kept], scores[kept].astype(np.float32)


def non_max_suppression(boxes: np.ndarray, scores: np.ndarray, nms_iou: float) -> list[int]:
    """Indices of the boxes that survive non-maximum suppression, best score first.

    Sides are inclusive pixel counts, as in the authors' code.
    """
    corner, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + 1
    areas = sides.prod(axis=1)
    left = np.argsort(-scores, kind="stable")
    kept = []
    while left.size:
        best, left = left[0], left[1:]
        kept.append(int(best))
        high = np.minimum(boxes[best, 2:], boxes[left, 2:])
        common = np.maximum(high - np.maximum(corner[best], corner[left]) + 1, 0).prod(axis=1)
        left = left[common / (areas[best] + areas[left] - common) <= nms_iou]
    return kept

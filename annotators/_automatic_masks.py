"""Masks of everything in a picture, by asking a promptable network about a grid of points, as Segment Anything does."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple, Protocol

import numpy as np

EDGE_PX = 20  # a mask whose box comes so near to the edge of a crop is cut off there
CROP_OVERLAP = 512 / 1500  # of the crops of the first layer, as a share of the picture's shorter side


class MaskRules(NamedTuple):
    """What is asked and what is kept; the names of Segment Anything's generator stand behind."""

    points_per_side: int = 32
    points_per_batch: int = 64
    least_predicted_iou: float = 0.88  # pred_iou_thresh
    least_stability: float = 0.95  # stability_score_thresh
    stability_offset: float = 1.0  # stability_score_offset, in logits
    nms_iou: float = 0.7  # box_nms_thresh and crop_nms_thresh
    crop_layers: int = 0  # crop_n_layers
    min_region_px: int = 0  # min_mask_region_area


class Masks(NamedTuple):
    """Masks of one picture, which may overlap, the most confident first."""

    masks: np.ndarray  # bool [N, H, W]
    predicted_iou: np.ndarray  # float64 [N], about 0 to 1: what the network thinks of its mask
    stability: np.ndarray  # float64 [N], 0..1: IoU of the masks cut a little above and a little below the threshold
    boxes_px: np.ndarray  # int64 [N, 4]: first and last column and row, x0, y0, x1, y1; of a larger crop's mask
    points_px: np.ndarray  # float64 [N, 2]: x, y of the point that was asked


class PromptableNetwork(Protocol):
    """A network that is shown a picture once and then asked about points in it."""

    def set_image(self, image: np.ndarray) -> None:
        """Look at a picture, uint8 [h, w, 3] RGB."""

    def predict_points(self, points_px: np.ndarray) -> tuple[Any, Any]:
        """float64 [N, 2] x, y -> small logits, float32 [N, M, s, s], and predicted IoU, float32 [N, M]: tensors."""

    def upscale(self, logits: Any) -> Any:
        """Small logits [K, s, s] -> float32 [K, h, w], at the picture's size."""


class _Candidates(NamedTuple):
    """Tensors of what is left of a crop; logits stay small until it is clear which masks are kept."""

    logits: Any  # float32 [K, s, s]
    predicted_iou: Any  # float32 [K]
    stability: Any  # float32 [K]
    boxes: Any  # int64 [K, 4], in the crop
    points: Any  # float64 [K, 2], in the crop

    def take(self, kept: Any) -> "_Candidates":
        return _Candidates(*(field[kept] for field in self))


def automatic_masks(network: PromptableNetwork, image: np.ndarray, rules: MaskRules) -> Masks:
    """Masks of everything that `network` finds in `image`, uint8 [H, W, 3] RGB.

    The same masks in the same order as Segment Anything's automatic generator with these settings gives (its
    downscale of points per layer is 1). A mask without a pixel above the threshold has stability 0, not NaN.
    """
    height_px, width_px = image.shape[:2]
    grid = point_grid(rules.points_per_side)
    found: list[Masks] = []
    areas: list[np.ndarray] = []
    for x0, y0, x1, y1 in crop_boxes(height_px, width_px, rules.crop_layers):
        crop = _masks_of_crop(network, image, (x0, y0, x1, y1), grid, rules)
        found.append(crop)
        areas.append(np.full(len(crop.masks), float((x1 - x0) * (y1 - y0))))
    together = Masks(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    if len(found) > 1:  # masks of smaller crops are the finer ones
        together = _select(together, _nms(together.boxes_px, 1 / np.concatenate(areas), rules.nms_iou))
    if rules.min_region_px > 0:
        together = clean_masks(together, rules.min_region_px, rules.nms_iou)
    return together


def point_grid(points_per_side: int) -> np.ndarray:
    """float64 [n * n, 2]: x, y in 0..1, the centres of n by n cells, row by row."""
    steps = np.linspace(1 / (2 * points_per_side), 1 - 1 / (2 * points_per_side), points_per_side)
    x, y = np.meshgrid(steps, steps)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def crop_boxes(height_px: int, width_px: int, layers: int) -> list[tuple[int, int, int, int]]:
    """x0, y0, x1, y1 (half-open) of the whole picture and, for layer 1, 2, .., of 4, 16, .. overlapping parts."""
    boxes = [(0, 0, width_px, height_px)]
    for layer in range(1, layers + 1):
        parts = 2**layer
        overlap = int(CROP_OVERLAP * min(height_px, width_px) * 2 / parts)
        wide, tall = (math.ceil((overlap * (parts - 1) + side) / parts) for side in (width_px, height_px))
        for column, row in product(range(parts), range(parts)):
            x0, y0 = (wide - overlap) * column, (tall - overlap) * row
            boxes.append((x0, y0, min(x0 + wide, width_px), min(y0 + tall, height_px)))
    return boxes


def _masks_of_crop(
    network: PromptableNetwork, image: np.ndarray, box: tuple[int, int, int, int], grid: np.ndarray, rules: MaskRules
) -> Masks:
    """The masks of one crop, in the coordinates of the whole picture."""
    import torch

    x0, y0, x1, y1 = box
    height_px, width_px = image.shape[:2]
    network.set_image(image[y0:y1, x0:x1])
    points = grid * (x1 - x0, y1 - y0)
    batches = [
        _candidates(network, points[start : start + rules.points_per_batch], rules)
        for start in range(0, len(points), rules.points_per_batch)
    ]
    all_of_it = _Candidates(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    all_of_it = all_of_it.take(~_cut_off(all_of_it.boxes, box, (height_px, width_px)))
    kept = all_of_it.take(_nms_indices(all_of_it.boxes, all_of_it.predicted_iou, rules.nms_iou))
    masks = np.zeros((len(kept.logits), height_px, width_px), bool)
    for part in _parts(len(masks), rules.points_per_batch):
        masks[part, y0:y1, x0:x1] = (network.upscale(kept.logits[part]) > 0).cpu().numpy()
    return Masks(
        masks,
        kept.predicted_iou.double().cpu().numpy(),
        kept.stability.double().cpu().numpy(),
        kept.boxes.cpu().numpy() + np.array([x0, y0, x0, y0]),
        kept.points.cpu().numpy() + np.array([x0, y0]),
    )


def _candidates(network: PromptableNetwork, points_px: np.ndarray, rules: MaskRules) -> _Candidates:
    """What the network says about some points, without what it doubts and what the threshold moves."""
    import torch

    logits, predicted = network.predict_points(points_px)
    per_point = logits.shape[1]
    logits, predicted = logits.flatten(0, 1), predicted.flatten()
    points = torch.from_numpy(np.repeat(points_px, per_point, axis=0)).to(logits.device)
    if rules.least_predicted_iou > 0:
        sure = predicted > rules.least_predicted_iou
        logits, predicted, points = logits[sure], predicted[sure], points[sure]
    full = network.upscale(logits)
    inner = (full > rules.stability_offset).sum((-2, -1))
    outer = (full > -rules.stability_offset).sum((-2, -1))
    stability = inner / outer.clamp(min=1)
    kept = stability >= rules.least_stability
    return _Candidates(logits[kept], predicted[kept], stability[kept], _boxes(full[kept] > 0), points[kept])


def _boxes(masks: Any) -> Any:
    """bool [K, H, W] -> int64 [K, 4]: first and last column and row; zeros for an empty mask."""
    import torch

    sides = []
    for axis in (-2, -1):  # which columns, then which rows, have a pixel
        there = masks.any(dim=axis)
        last = there.shape[-1] - 1
        count = torch.arange(there.shape[-1], device=masks.device)
        sides.append((torch.where(there, count, last).amin(-1), torch.where(there, count, 0).amax(-1)))
    (left, right), (top, bottom) = sides
    boxes = torch.stack([left, top, right, bottom], dim=-1)
    return boxes * masks.flatten(1).any(dim=1)[:, None]


def _cut_off(boxes: Any, crop: tuple[int, int, int, int], size: tuple[int, int]) -> Any:
    """bool [K]: whether a box comes near a side of the crop that is no side of the picture."""
    import torch

    x0, y0, _, _ = crop
    placed = boxes.double() + torch.tensor([x0, y0, x0, y0], device=boxes.device)
    sides = torch.tensor(crop, device=boxes.device)
    whole = torch.tensor([0, 0, size[1], size[0]], device=boxes.device)
    return (((placed - sides).abs() <= EDGE_PX) & ((placed - whole).abs() > EDGE_PX)).any(dim=1)


def _nms_indices(boxes: Any, scores: Any, iou: float) -> Any:
    """int64 indices, best score first, of the boxes that overlap no better one by more than `iou`."""
    from torchvision.ops import nms

    return nms(boxes.float(), scores, iou)


def _nms(boxes_px: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    import torch

    kept: np.ndarray = _nms_indices(torch.from_numpy(boxes_px), torch.from_numpy(scores).float(), iou).numpy()
    return kept


def _select(masks: Masks, rows: np.ndarray) -> Masks:
    return Masks(*(field[rows] for field in masks))


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def clean_masks(masks: Masks, min_region_px: int, nms_iou: float) -> Masks:
    """Without holes and islands smaller than `min_region_px`; of masks that thereby become alike, the untouched."""
    if not len(masks.masks):
        return masks
    clean = np.stack([remove_islands(fill_holes(mask, min_region_px), min_region_px) for mask in masks.masks])
    boxes = np.stack([box_of(mask) for mask in clean])
    untouched = (clean == masks.masks).all(axis=(1, 2))
    kept = _nms(boxes, untouched.astype(np.float64), nms_iou)
    return _select(masks._replace(masks=clean, boxes_px=boxes), kept)


def fill_holes(mask: np.ndarray, min_px: int) -> np.ndarray:
    """bool [H, W] -> bool [H, W] with the holes of less than `min_px` pixels filled (8 neighbours)."""
    regions, areas = _regions(~mask)
    return mask | np.isin(regions, 1 + np.flatnonzero(areas < min_px))


def remove_islands(mask: np.ndarray, min_px: int) -> np.ndarray:
    """bool [H, W] -> bool [H, W] without its parts of less than `min_px` pixels; the largest part always stays."""
    regions, areas = _regions(mask)
    small = np.flatnonzero(areas < min_px)
    return mask & ~np.isin(regions, 1 + small[small != np.argmax(areas)]) if len(small) else mask


def box_of(mask: np.ndarray) -> np.ndarray:
    """bool [H, W] -> int64 [4]: first and last column and row, x0, y0, x1, y1; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]] if len(rows) else [0] * 4, np.int64)


def _regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected parts of a mask: int32 [H, W], 0 outside of it, and the areas of parts 1, 2, .., pixels."""
    import cv2

    _, regions, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return regions, stats[1:, cv2.CC_STAT_AREA]

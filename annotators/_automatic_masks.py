"""Automatic mask generation: a promptable network is given a grid of point prompts, as in Segment Anything."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple, Protocol

import numpy as np

EDGE_PX = 20  # a mask whose box is at most this far from a crop edge is considered truncated
CROP_OVERLAP = 512 / 1500  # overlap of first-layer crops, as a fraction of the image's shorter side


class MaskRules(NamedTuple):
    """Prompt grid and mask selection. The comments give the names used by Segment Anything's generator."""

    points_per_side: int = 32
    points_per_batch: int = 64
    min_predicted_iou: float = 0.88  # pred_iou_thresh
    min_stability: float = 0.95  # stability_score_thresh
    stability_offset: float = 1.0  # stability_score_offset, in logits
    nms_iou: float = 0.7  # box_nms_thresh and crop_nms_thresh
    crop_layers: int = 0  # crop_n_layers
    min_region_px: int = 0  # min_mask_region_area


class Masks(NamedTuple):
    """Masks of one image, sorted by descending confidence. They may overlap."""

    masks: np.ndarray  # bool [N, H, W]
    predicted_iou: np.ndarray  # float64 [N], about 0 to 1: the network's own estimate of mask quality
    stability: np.ndarray  # float64 [N], 0..1: IoU of the masks at a slightly higher and a slightly lower threshold
    boxes_px: np.ndarray  # int64 [N, 4]: x0, y0, x1, y1, inclusive: first and last column and row, before clean-up
    points_px: np.ndarray  # float64 [N, 2]: x, y of the point prompt


class PromptableNetwork(Protocol):
    """A network that embeds an image once and then predicts masks for point prompts."""

    def set_image(self, image: np.ndarray) -> None:
        """Embed an image, uint8 [h, w, 3] RGB."""

    def predict_points(self, points_px: np.ndarray) -> tuple[Any, Any]:
        """Tensors for points float64 [N, 2] (x, y): low-resolution logits float32 [N, M, s, s], IoU float32 [N, M]."""

    def upscale(self, logits: Any) -> Any:
        """Low-resolution logits [K, s, s] -> float32 [K, h, w], at image size."""


class _Candidates(NamedTuple):
    """Tensors of one crop's candidate masks. Logits stay at low resolution until the masks are selected."""

    logits: Any  # float32 [K, s, s]
    predicted_iou: Any  # float32 [K]
    stability: Any  # float32 [K]
    boxes: Any  # int64 [K, 4], in the crop
    points: Any  # float64 [K, 2], in the crop

    def take(self, kept: Any) -> "_Candidates":
        return _Candidates(*(field[kept] for field in self))


def automatic_masks(network: PromptableNetwork, image: np.ndarray, rules: MaskRules) -> Masks:
    """Masks of all objects that `network` detects in `image`, uint8 [H, W, 3] RGB.

    Masks and their order equal those of Segment Anything's automatic generator with the same settings (and
    crop_n_points_downscale_factor = 1). A mask without a pixel above the threshold has stability 0, not NaN.
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
    if len(found) > 1:  # prefer masks of smaller crops: they are more detailed
        together = _select(together, _nms(together.boxes_px, 1 / np.concatenate(areas), rules.nms_iou))
    if rules.min_region_px > 0:
        together = clean_masks(together, rules.min_region_px, rules.nms_iou)
    return together


def point_grid(points_per_side: int) -> np.ndarray:
    """Cell centres of an n x n grid, row by row: float64 [n * n, 2], x and y in 0..1."""
    steps = np.linspace(1 / (2 * points_per_side), 1 - 1 / (2 * points_per_side), points_per_side)
    x, y = np.meshgrid(steps, steps)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def crop_boxes(height_px: int, width_px: int, layers: int) -> list[tuple[int, int, int, int]]:
    """Crops x0, y0, x1, y1 (half-open): the full image, then 4 overlapping crops for layer 1, 16 for layer 2, ..."""
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
    """Masks of one crop, in coordinates of the full image."""
    import torch

    x0, y0, x1, y1 = box
    height_px, width_px = image.shape[:2]
    network.set_image(image[y0:y1, x0:x1])
    points = grid * (x1 - x0, y1 - y0)
    batches = [
        _candidates(network, points[start : start + rules.points_per_batch], rules)
        for start in range(0, len(points), rules.points_per_batch)
    ]
    candidates = _Candidates(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    candidates = candidates.take(~_truncated(candidates.boxes, box, (height_px, width_px)))
    kept = candidates.take(_nms_indices(candidates.boxes, candidates.predicted_iou, rules.nms_iou))
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
    """Masks for a batch of points that pass the predicted-IoU and stability thresholds."""
    import torch

    logits, predicted = network.predict_points(points_px)
    per_point = logits.shape[1]
    logits, predicted = logits.flatten(0, 1), predicted.flatten()
    points = torch.from_numpy(np.repeat(points_px, per_point, axis=0)).to(logits.device)
    if rules.min_predicted_iou > 0:
        sure = predicted > rules.min_predicted_iou
        logits, predicted, points = logits[sure], predicted[sure], points[sure]
    full = network.upscale(logits)
    inner = (full > rules.stability_offset).sum((-2, -1))
    outer = (full > -rules.stability_offset).sum((-2, -1))
    stability = inner / outer.clamp(min=1)
    kept = stability >= rules.min_stability
    return _Candidates(logits[kept], predicted[kept], stability[kept], _boxes(full[kept] > 0), points[kept])


def _boxes(masks: Any) -> Any:
    """Inclusive boxes int64 [K, 4] (x0, y0, x1, y1) of masks bool [K, H, W]; zeros for an empty mask."""
    import torch

    sides = []
    for axis in (-2, -1):  # non-empty columns, then non-empty rows
        there = masks.any(dim=axis)
        last = there.shape[-1] - 1
        count = torch.arange(there.shape[-1], device=masks.device)
        sides.append((torch.where(there, count, last).amin(-1), torch.where(there, count, 0).amax(-1)))
    (left, right), (top, bottom) = sides
    boxes = torch.stack([left, top, right, bottom], dim=-1)
    return boxes * masks.flatten(1).any(dim=1)[:, None]


def _truncated(boxes: Any, crop: tuple[int, int, int, int], size: tuple[int, int]) -> Any:
    """Whether each box is close to a crop edge that is not also an image edge: bool [K]."""
    import torch

    x0, y0, _, _ = crop
    placed = boxes.double() + torch.tensor([x0, y0, x0, y0], device=boxes.device)
    sides = torch.tensor(crop, device=boxes.device)
    whole = torch.tensor([0, 0, size[1], size[0]], device=boxes.device)
    return (((placed - sides).abs() <= EDGE_PX) & ((placed - whole).abs() > EDGE_PX)).any(dim=1)


def _nms_indices(boxes: Any, scores: Any, iou: float) -> Any:
    """Indices (int64, best score first) that survive non-maximum suppression at threshold `iou`."""
    import torch
    from torchvision.ops import batched_nms  # as Segment Anything calls it: ties among many boxes are ordered alike

    return batched_nms(boxes.float(), scores, torch.zeros(len(boxes), device=boxes.device), iou)


def _nms(boxes_px: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    import torch

    kept: np.ndarray = _nms_indices(torch.from_numpy(boxes_px), torch.from_numpy(scores).float(), iou).numpy()
    return kept


def _select(masks: Masks, rows: np.ndarray) -> Masks:
    return Masks(*(field[rows] for field in masks))


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def clean_masks(masks: Masks, min_region_px: int, nms_iou: float) -> Masks:
    """Remove holes and islands smaller than `min_region_px`, then duplicates; unchanged masks are preferred.

    As in Segment Anything, a mask counts as changed if it had any such hole or island, even if it is its only part,
    which stays. Masks without come first; otherwise the order is kept.
    """
    if not len(masks.masks):
        return masks
    cleaned, untouched = [], []
    for mask in masks.masks:
        filled, had_holes = _without_small_holes(mask, min_region_px)
        clean_mask, had_islands = _without_small_islands(filled, min_region_px)
        cleaned.append(clean_mask)
        untouched.append(not (had_holes or had_islands))
    clean = np.stack(cleaned)
    boxes = np.stack([box_of(mask) for mask in clean])
    kept = _nms(boxes, np.array(untouched, np.float64), nms_iou)
    return _select(masks._replace(masks=clean, boxes_px=boxes), kept)


def fill_holes(mask: np.ndarray, min_px: int) -> np.ndarray:
    """Fill holes with fewer than `min_px` pixels (8-connectivity): bool [H, W] -> bool [H, W]."""
    return _without_small_holes(mask, min_px)[0]


def remove_islands(mask: np.ndarray, min_px: int) -> np.ndarray:
    """Remove components with fewer than `min_px` pixels, except the largest: bool [H, W] -> bool [H, W]."""
    return _without_small_islands(mask, min_px)[0]


def _without_small_holes(mask: np.ndarray, min_px: int) -> tuple[np.ndarray, bool]:
    """See `fill_holes`; also whether there was a small hole."""
    regions, areas = _regions(~mask)
    small = np.flatnonzero(areas < min_px)
    return (mask | np.isin(regions, 1 + small), True) if len(small) else (mask, False)


def _without_small_islands(mask: np.ndarray, min_px: int) -> tuple[np.ndarray, bool]:
    """See `remove_islands`; also whether there was a small component, be it the only one."""
    regions, areas = _regions(mask)
    small = np.flatnonzero(areas < min_px)
    if not len(small):
        return mask, False
    removed = small if len(small) < len(areas) else small[small != np.argmax(areas)]
    return mask & ~np.isin(regions, 1 + removed), True


def box_of(mask: np.ndarray) -> np.ndarray:
    """Inclusive box int64 [4] (x0, y0, x1, y1) of a mask bool [H, W]; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]] if len(rows) else [0] * 4, np.int64)


def _regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected components of a mask: labels int32 [H, W] (0 outside) and areas of components 1, 2, ... in pixels."""
    import cv2

    _, regions, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return regions, stats[1:, cv2.CC_STAT_AREA]

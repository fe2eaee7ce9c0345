"""Automatic mask generation: a promptable network is given a grid of point prompts, as in Segment Anything."""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple, Protocol

import numpy as np

EDGE_PX = 20  # a mask whose box is at most this far from a crop edge is considered truncated
ROUND_BATCHES = 16  # batches of points whose low-resolution logits are on the device at once: 805 MB at the defaults
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
    """A network that embeds images once and then predicts masks for point prompts in one of them."""

    device: Any  # of the network: torch.device or its name

    def embed(self, images: Sequence[np.ndarray]) -> Sequence[Any]:
        """Embed images, uint8 [h, w, 3] RGB, in one forward pass: one embedding per image, whatever their sizes."""

    def use(self, embedding: Any) -> None:
        """Select the image that the following calls refer to."""

    def predict_points(self, points_px: Any) -> tuple[Any, Any]:
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


class PackedMasks(NamedTuple):
    """The selected masks of one crop of an image, as they leave the device: one bit per pixel."""

    bits: np.ndarray  # uint8 [N, ceil(h * w / 8)], as `np.packbits` orders them
    facts: np.ndarray  # float64 [N, 8]: predicted IoU, stability, box (4) and point (2) in the crop
    crop: tuple[int, int, int, int]  # x0, y0, x1, y1 in the image, half-open
    size_px: tuple[int, int]  # height and width of the image

    def unpacked(self) -> Masks:
        """The masks in coordinates of the image."""
        x0, y0, x1, y1 = self.crop
        masks = unpacked_bits(self.bits, (y1 - y0, x1 - x0))
        if masks.shape[1:] != self.size_px:
            whole = np.zeros((len(masks), *self.size_px), bool)
            whole[:, y0:y1, x0:x1] = masks
            masks = whole
        predicted, stability, boxes, points = np.split(self.facts, [1, 2, 6], axis=1)
        return Masks(
            masks,
            predicted[:, 0],
            stability[:, 0],
            boxes.astype(np.int64) + np.array([x0, y0, x0, y0]),
            points + np.array([x0, y0]),
        )


def automatic_masks(network: PromptableNetwork, image: np.ndarray, rules: MaskRules) -> Masks:
    """Masks of all objects that `network` detects in `image`, uint8 [H, W, 3] RGB.

    Masks and their order equal those of Segment Anything's automatic generator with the same settings (and
    crop_n_points_downscale_factor = 1). A mask without a pixel above the threshold has stability 0, not NaN.
    """
    (crops,) = detected(network, [image], rules, 1)
    return assembled(crops, rules)


def detected(
    network: PromptableNetwork, images: Sequence[np.ndarray], rules: MaskRules, images_per_batch: int
) -> Iterator[list[PackedMasks]]:
    """For every image, uint8 [H, W, 3] RGB, the masks of its crops, for `assembled`.

    `images_per_batch` images or crops are embedded in one forward pass. Work is queued on the device without waiting
    for it, except in `_masks_of_crop`.
    """
    grid = point_grid(rules.points_per_side)
    jobs = [(image, box) for image in images for box in crop_boxes(image.shape[0], image.shape[1], rules.crop_layers)]
    per_image = len(jobs) // len(images)
    crops: list[PackedMasks] = []
    for part in _parts(len(jobs), images_per_batch):
        embeddings = network.embed([image[y0:y1, x0:x1] for image, (x0, y0, x1, y1) in jobs[part]])
        for (image, box), embedding in zip(jobs[part], embeddings, strict=True):
            network.use(embedding)
            crops.append(_masks_of_crop(network, box, (image.shape[0], image.shape[1]), grid, rules))
            if len(crops) == per_image:
                yield crops
                crops = []


def assembled(crops: Sequence[PackedMasks], rules: MaskRules) -> Masks:
    """The masks of an image from those of its crops, without duplicates, cleaned up. Computed on the host."""
    found = [crop.unpacked() for crop in crops]
    together = Masks(*(np.concatenate(parts) for parts in zip(*found, strict=True))) if len(found) > 1 else found[0]
    if len(found) > 1:  # prefer masks of smaller crops: they are more detailed
        areas = [float((x1 - x0) * (y1 - y0)) for x0, y0, x1, y1 in (crop.crop for crop in crops)]
        scores = 1 / np.repeat(areas, [len(masks.masks) for masks in found])
        together = _select(together, _nms(together.boxes_px, scores, rules.nms_iou))
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
    network: PromptableNetwork,
    box: tuple[int, int, int, int],
    size_px: tuple[int, int],
    grid: np.ndarray,
    rules: MaskRules,
) -> PackedMasks:
    """Masks of one crop, which `network` has embedded.

    The host waits for the device a fixed number of times, whatever the number of points and masks: to upload the
    points, per round (`ROUND_BATCHES`) twice for the number of masks that pass a threshold, for the suppression of
    duplicates, and for the masks and the numbers about them.
    """
    import torch

    x0, y0, x1, y1 = box
    points = torch.from_numpy(grid * (x1 - x0, y1 - y0)).to(network.device)
    rounds = [
        _candidates(network, points[part], box, size_px, rules)
        for part in _parts(len(points), rules.points_per_batch * ROUND_BATCHES)
    ]
    candidates = _Candidates(*(torch.cat(parts) for parts in zip(*rounds, strict=True)))
    kept = candidates.take(_nms_indices(candidates.boxes, candidates.predicted_iou, rules.nms_iou))
    bits = [
        packed_bits(network.upscale(kept.logits[part]) > 0) for part in _parts(len(kept.logits), rules.points_per_batch)
    ]
    facts = [kept.predicted_iou[:, None], kept.stability[:, None], kept.boxes, kept.points]
    return PackedMasks(
        torch.cat(bits).cpu().numpy(), torch.cat([one.double() for one in facts], dim=1).cpu().numpy(), box, size_px
    )


def _candidates(
    network: PromptableNetwork,
    points: Any,
    crop: tuple[int, int, int, int],
    size_px: tuple[int, int],
    rules: MaskRules,
) -> _Candidates:
    """Masks for points, float64 [N, 2], that pass the thresholds of predicted IoU and stability and are whole."""
    import torch

    logits, predicted = _predicted(network, points, rules.points_per_batch)
    per_point = logits.shape[1]
    logits, predicted = logits.flatten(0, 1), predicted.flatten()
    if rules.min_predicted_iou > 0:
        sure = _where(predicted > rules.min_predicted_iou)
        logits, predicted, points = logits[sure], predicted[sure], points[sure // per_point]
    else:
        points = points.repeat_interleave(per_point, dim=0, output_size=len(points) * per_point)
    measured = []
    for part in _parts(len(logits), rules.points_per_batch):
        full = network.upscale(logits[part])
        inner = (full > rules.stability_offset).sum((-2, -1))
        outer = (full > -rules.stability_offset).sum((-2, -1))
        measured.append((inner / outer.clamp(min=1), _boxes(full > 0)))
    stability, boxes = (torch.cat(parts) for parts in zip(*measured, strict=True))
    kept = _where((stability >= rules.min_stability) & ~_truncated(boxes, crop, size_px))
    return _Candidates(logits, predicted, stability, boxes, points).take(kept)


def _predicted(network: PromptableNetwork, points: Any, per_batch: int) -> tuple[Any, Any]:
    """Answers for points, float64 [N, 2], in batches, in tensors that are allocated once."""
    logits = predicted = None
    for part in _parts(len(points), per_batch):
        some_logits, some_predicted = network.predict_points(points[part])
        if logits is None or predicted is None:
            logits = some_logits.new_empty((len(points), *some_logits.shape[1:]))
            predicted = some_predicted.new_empty((len(points), *some_predicted.shape[1:]))
        logits[part], predicted[part] = some_logits, some_predicted
    return logits, predicted


def _where(condition: Any) -> Any:
    """Indices int64 [K] at which bool [N] is true. On a GPU the host waits for their number, once for all fields."""
    return condition.nonzero()[:, 0]


def packed_bits(masks: Any) -> Any:
    """bool [K, h, w] -> uint8 [K, ceil(h * w / 8)], eight pixels per byte, the first in the highest bit."""
    import torch

    flat = masks.flatten(1).to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 8)).unflatten(1, (-1, 8))
    packed = flat[..., 0] << 7
    for place in range(1, 8):  # in place: a product with the powers of two would need a tensor of them on the device
        packed |= flat[..., place] << (7 - place)
    return packed


def unpacked_bits(bits: np.ndarray, size_px: tuple[int, ...]) -> np.ndarray:
    """Masks bool [K, h, w] of `packed_bits`."""
    masks: np.ndarray = np.unpackbits(bits, axis=1, count=size_px[0] * size_px[1]).view(bool)
    return masks.reshape(-1, *size_px)


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


def _truncated(boxes: Any, crop: tuple[int, int, int, int], size_px: tuple[int, int]) -> Any:
    """Whether each box is close to a crop edge that is not also an image edge: bool [K]."""
    import torch

    whole = (0, 0, size_px[1], size_px[0])
    found = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for side in range(4):  # with numbers, not tensors: these would have to be copied to the device
        placed = boxes[:, side] + crop[side % 2]
        found |= ((placed - crop[side]).abs() <= EDGE_PX) & ((placed - whole[side]).abs() > EDGE_PX)
    return found


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
    """Slices of at most `size` that cover `count` items; one empty slice for none."""
    return (slice(start, start + size) for start in range(0, max(1, count), size))


def clean_masks(masks: Masks, min_region_px: int, nms_iou: float) -> Masks:
    """Remove holes and islands smaller than `min_region_px`, then duplicates; unchanged masks are preferred.

    As in Segment Anything, a mask counts as changed if it had any such hole or island, even if it is its only part,
    which stays. Masks without come first; otherwise the order is kept.
    """
    if not len(masks.masks):
        return masks
    clean, untouched = masks.masks.copy(), np.ones(len(masks.masks))
    for row, mask in enumerate(masks.masks):
        filled, had_holes = _without_small_holes(mask, min_region_px)
        clean[row], had_islands = _without_small_islands(filled, min_region_px)
        untouched[row] = not (had_holes or had_islands)
    boxes = np.stack([box_of(mask) for mask in clean])
    kept = _nms(boxes, untouched, nms_iou)
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

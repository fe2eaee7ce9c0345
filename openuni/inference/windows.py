"""Long clips through a model that sees so many frames at a time: windows that overlap, and renderings that join."""

from typing import NamedTuple

import numpy as np

from openuni.manifests.arrays.assignment import linear_assignment
from openuni.manifests.modalities.segmentation import Segmentation

LABEL_MODALITIES = (
    "segmentation",
    "densepose",
)  # their colours are names: between two of them lies a third, not a mean
SAME_INSTANCE_IOU = 0.3  # of an id in the frames that two windows share


class StitchedMaps(NamedTuple):
    """A rendering of the whole clip."""

    rendering: np.ndarray  # float32 [T, H, W, 3] in 0..1
    seam_error: float | None  # mean absolute difference where windows overlap, 0..1; None for a single window


def window_spans(frames: int, length: int, overlap: int) -> list[tuple[int, int]]:
    """Windows (start, stop) of `length` that cover 0..`frames`, which are not fewer.

    Neighbours share `overlap` frames or more (all but one where that is too many); the last window ends with the clip.
    """
    step = max(1, length - overlap)
    last = frames - length
    starts = [*range(0, last, step), last]
    return [(start, start + length) for start in starts]


def stitch(modality: str, renderings: list[np.ndarray], windows: list[tuple[int, int]]) -> StitchedMaps:
    """Renderings float32 [length, H, W, 3] in 0..1 of the windows of `window_spans`, as one."""
    whole = np.empty((windows[-1][1], *renderings[0].shape[1:]), np.float32)
    whole[: windows[0][1]] = renderings[0]
    errors = []
    for (start, stop), (_, before), rendering in zip(windows[1:], windows, renderings[1:], strict=False):
        shared = before - start
        if shared:  # all but windows of one frame
            old = whole[start:before]
            rendering = _like(old, modality, rendering)
            errors.append(float(np.abs(rendering[:shared] - old).mean(dtype=np.float64)))
            share = ((np.arange(shared) + 1) / (shared + 1)).astype(np.float32)[:, None, None, None]
            share = np.round(share) if modality in LABEL_MODALITIES else share
            whole[start:before] = (1 - share) * old + share * rendering[:shared]
        whole[before:stop] = rendering[shared:]
    return StitchedMaps(whole, float(np.mean(errors)) if errors else None)


def _like(before: np.ndarray, modality: str, rendering: np.ndarray) -> np.ndarray:
    """`rendering` as if it went on from `before`, which shows its first frames."""
    if modality == "depth":
        return _fitted(rendering, before)
    return _renamed(rendering, before) if modality == "segmentation" else rendering


def _fitted(rendering: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Grey `rendering` moved by the one scale and shift that bring its first frames nearest to `before`."""
    here, there = rendering[: len(before)].astype(np.float64), before.astype(np.float64)
    spread = here.var()
    covariance = ((here - here.mean()) * (there - there.mean())).mean()
    if spread <= 0 or covariance <= 0:
        return rendering  # nothing to fit by, or the two contradict each other: they are left to the blend
    scale = covariance / spread
    return np.clip(rendering * np.float32(scale) + np.float32(there.mean() - scale * here.mean()), 0, 1)


def _renamed(rendering: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The same picture with the ids of `before` for those instances that are there already."""
    ids = Segmentation.from_rgb(rendering).array
    known = Segmentation.from_rgb(before).array
    shared = ids[: len(known)]
    here, there = np.unique(shared[shared > 0]), np.unique(known[known > 0])
    iou = np.zeros((len(here), len(there)))
    for row, one in enumerate(here):
        for column, other in enumerate(there):
            either = np.count_nonzero((shared == one) | (known == other))
            iou[row, column] = np.count_nonzero((shared == one) & (known == other)) / either
    names = {int(here[row]): int(there[column]) for row, column in linear_assignment(iou, SAME_INSTANCE_IOU)}
    free = iter(sorted(set(range(1, 256)) - set(there.tolist())))
    for one in np.unique(ids[ids > 0]).tolist():
        if one not in names:
            names[one] = next(free, one)
    table = np.zeros(65536, np.uint16)
    for one, name in names.items():
        table[one] = name
    return Segmentation(table[ids]).to_rgb()

"""Overlapping windows over long clips, for models with a fixed number of frames, and stitching of their renderings."""

from typing import NamedTuple

import numpy as np

from openuni.manifests.arrays.assignment import linear_assignment
from openuni.manifests.modalities.segmentation import Segmentation

# their colours encode labels, so the mean of two colours is another label: switch instead of blending
LABEL_MODALITIES = ("segmentation", "densepose")
SAME_INSTANCE_IOU = 0.3  # minimum IoU, in the frames that two windows share, of two masks of one instance


class StitchedMaps(NamedTuple):
    """The rendering of the whole clip."""

    rendering: np.ndarray  # float32 [T, H, W, 3] in 0..1
    seam_error: float | None  # mean absolute difference of overlapping windows, 0..1; None for a single window


def window_spans(frames: int, length: int, overlap: int) -> list[tuple[int, int]]:
    """Windows (start, stop) of `length` frames that cover 0..`frames`; `frames` must be at least `length`.

    Adjacent windows share at least `overlap` frames (at most `length` - 1). The last window ends with the clip.
    """
    step = max(1, length - overlap)
    last = frames - length
    starts = [*range(0, last, step), last]
    return [(start, start + length) for start in starts]


def stitch(modality: str, renderings: list[np.ndarray], windows: list[tuple[int, int]]) -> StitchedMaps:
    """Join the renderings of the windows of `window_spans`, each float32 [length, H, W, 3] in 0..1.

    Overlaps are blended linearly; labels (segmentation, densepose) switch in the middle of the overlap. Depth is first
    aligned with the window before by one scale and shift; instance ids are matched with those of the window before.
    """
    whole = np.empty((windows[-1][1], *renderings[0].shape[1:]), np.float32)
    whole[: windows[0][1]] = renderings[0]
    errors = []
    for (start, stop), (_, before), rendering in zip(windows[1:], windows, renderings[1:], strict=False):
        shared = before - start
        if shared:  # windows of one frame share none
            old = whole[start:before]
            rendering = _aligned(old, modality, rendering)
            errors.append(float(np.abs(rendering[:shared] - old).mean(dtype=np.float64)))
            share = ((np.arange(shared) + 1) / (shared + 1)).astype(np.float32)[:, None, None, None]
            share = np.round(share) if modality in LABEL_MODALITIES else share
            whole[start:before] = (1 - share) * old + share * rendering[:shared]
        whole[before:stop] = rendering[shared:]
    return StitchedMaps(whole, float(np.mean(errors)) if errors else None)


def _aligned(before: np.ndarray, modality: str, rendering: np.ndarray) -> np.ndarray:
    """Align `rendering` with `before`, the rendering of its first frames by the window before."""
    if modality == "depth":
        return _scale_aligned(rendering, before)
    return _with_matched_ids(rendering, before) if modality == "segmentation" else rendering


def _scale_aligned(rendering: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Apply the scale and shift that fit the first frames of a grey rendering to `before` by least squares."""
    here, there = rendering[: len(before)].astype(np.float64), before.astype(np.float64)
    spread = here.var()
    covariance = ((here - here.mean()) * (there - there.mean())).mean()
    if spread <= 0 or covariance <= 0:
        return rendering  # constant or anticorrelated frames: no fit is possible, only blending
    scale = covariance / spread
    return np.clip(rendering * np.float32(scale) + np.float32(there.mean() - scale * here.mean()), 0, 1)


def _with_matched_ids(rendering: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Replace the ids of instances that are also in `before` by their ids there."""
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

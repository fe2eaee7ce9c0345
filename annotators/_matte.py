"""Shared by the matting annotators: result columns, colour estimation for both layers, and quality scores."""

from typing import Annotated, NamedTuple

import numpy as np

from openuni.annotators._guide_flow import GuideFlow, guide_flow, warp
from openuni.manifests.arrays.resample import resize_smooth
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.modalities.alpha import Alpha
from openuni.manifests.modalities.background import Background
from openuni.manifests.modalities.foreground import Foreground

SOFT = 0.02  # alpha in [SOFT, 1 - SOFT] is soft: the pixel belongs to both layers
PURITY = 32  # exponent of coverage in the first colour estimate: only nearly pure pixels contribute
LOOSE_PURITY = 4  # exponent in the second estimate, after the other layer's contribution is removed
ALPHA_STEPS = 1023  # quantization of alpha for its gradient
PLATE_TRUST = 0.01  # regularization with a known background: down-weights the foreground where alpha is below 0.1
PLATE_LEVELS = 4.0  # of 255: tolerance for noise and compression; above it the background moves or changes
SURE = 0.25  # minimum local coverage for a pyramid level to be used alone; below, coarser levels contribute


class MatteOfClip(NamedTuple):
    """Alpha and foreground of every frame, the background if known, and quality scores of the matte."""

    alpha: Alpha
    foreground: Foreground
    background: Background | None
    covered_share: Annotated[float, "mean alpha: fraction of the image that the foreground covers, 0 to 1"]
    soft_share: Annotated[
        float,
        "fraction of soft pixels (alpha from 0.02 to 0.98), 0 to 1; high for fine hair, 0 for a binary mask",
    ]
    edge_rank: Annotated[
        float | None,
        "mean percentile rank of the image gradient at the edges of the matte: 1 is the strongest in the frame, 0.5 is "
        "chance level; low if the matte misses the outline; null if alpha is constant",
    ]
    composite_residual: Annotated[
        float | None,
        "mean difference between the image and the composite of foreground and (known or estimated) background at "
        "soft pixels, as a fraction of white, 0 to 1; high if no valid colours explain alpha; null without soft pixels",
    ]
    alpha_change: Annotated[
        float | None,
        "flicker: mean change of alpha between adjacent frames along the optical flow, at pixels that are soft in "
        "either frame, 0 to 1; null without such pixels or for a clip of one frame",
    ]


class LayerColours(NamedTuple):
    """Both layers of one frame, float32 [H, W, 3] in 0..255."""

    foreground: np.ndarray
    background: np.ndarray


def layer_colours(image: np.ndarray, alpha: np.ndarray, plate: np.ndarray | None = None) -> LayerColours:
    """Straight (not premultiplied) colours of both layers: image = alpha x foreground + (1 - alpha) x background.

    `image`: uint8 [H, W, 3]. `alpha`: float32 [H, W] in 0..1. `plate`: the known background, uint8 [H, W, 3].
    Where alpha is 1, the foreground equals the image; where alpha is 0, it is extrapolated smoothly. The same holds for
    the background. In between, both are initialized from their surroundings and corrected by least squares such that
    the composite equals the image, up to clipping to 0..255. With a plate only the foreground is corrected, regularized
    where alpha is small: there the composite may be off by a few levels. Similar to Forte and Pitie 2021
    (arXiv:2006.14970): a smooth initial estimate, then a correction.
    """
    import cv2

    picture = image.astype(np.float32)
    share = alpha[..., None]
    front, rear = spread(picture, alpha**PURITY), spread(picture, (1 - alpha) ** PURITY)
    front, rear = _corrected(picture, share, front, rear)
    front, rear = spread(front, alpha**LOOSE_PURITY), spread(rear, (1 - alpha) ** LOOSE_PURITY)
    front, rear = _corrected(picture, share, front, rear)
    smooth = []
    for colour, weight in ((front, alpha), (rear, 1 - alpha)):
        total = cv2.blur(weight, (3, 3))[..., None]
        mean = cv2.blur(colour * weight[..., None], (3, 3)) / np.maximum(total, 1e-6)
        smooth.append(np.where(total > 1e-3, mean, colour))
    front, rear = _corrected(picture, share, smooth[0], smooth[1])
    if plate is not None:
        rear = plate.astype(np.float32)
        lacking = picture - share * front - (1 - share) * rear
        front = np.clip(front + share * lacking / (share**2 + PLATE_TRUST), 0, 255)
    return LayerColours(front, rear)


def clean_plate(frames: np.ndarray, alpha: np.ndarray) -> np.ndarray | None:
    """Background of a static camera, uint8 [T, H, W, 3]; None if the clip does not show all of it.

    Each pixel is the mean over the frames in which the foreground does not cover it. The result is None if a pixel is
    covered in all frames, or if a frame deviates from the mean by more than `PLATE_LEVELS` on average. Where a frame
    shows the background, that frame's pixels are used. Shadows of the foreground are not included.
    """
    free = alpha < SOFT
    counts = np.zeros(alpha.shape[1:], np.float32)
    plate = np.zeros(frames.shape[1:], np.float32)
    for image, uncovered in zip(frames, free, strict=True):
        counts += uncovered
        plate += image * uncovered[..., None].astype(np.float32)
    if not counts.all():
        return None
    plate /= counts[..., None]
    for image, uncovered in zip(frames, free, strict=True):
        if uncovered.any() and np.abs(image - plate).mean(axis=-1)[uncovered].mean() > PLATE_LEVELS:
            return None
    return np.where(free[..., None], frames, np.rint(plate).astype(np.uint8))


def spread(colour: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Extrapolate colours float32 [H, W, 3] smoothly from where `weight` [H, W] is high to where it is 0.

    Pyramid-based, from coarse to fine: each level blends its own weighted mean with the next coarser level, according
    to its weight.
    """
    import cv2

    levels = [(colour * weight[..., None], weight)]
    while max(levels[-1][1].shape) > 1:
        summed, total = levels[-1]
        size = ((total.shape[1] + 1) // 2, (total.shape[0] + 1) // 2)
        smaller = [cv2.resize(part, size, interpolation=cv2.INTER_AREA) for part in (summed, total)]
        levels.append((smaller[0].reshape(*size[::-1], 3), smaller[1].reshape(*size[::-1])))
    summed, total = levels[-1]
    filled = summed / np.maximum(total, 1e-12)[..., None]
    for summed, total in levels[-2::-1]:
        height_px, width_px = total.shape
        coarse = cv2.resize(filled, (width_px, height_px), interpolation=cv2.INTER_LINEAR).reshape(summed.shape)
        trust = np.minimum(total / SURE, 1)[..., None]
        filled = trust * (summed / np.maximum(total, 1e-12)[..., None]) + (1 - trust) * coarse
    return filled


def _corrected(
    picture: np.ndarray, share: np.ndarray, front: np.ndarray, rear: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The closest pair of colours within 0..255 whose composite equals the image."""
    lacking = (picture - share * front - (1 - share) * rear) / (share**2 + (1 - share) ** 2)
    return np.clip(front + share * lacking, 0, 255), np.clip(rear + (1 - share) * lacking, 0, 255)


def matte_of_clip(clip: DecodedClip, alpha: np.ndarray, given: np.ndarray | None = None) -> MatteOfClip:
    """Layers and scores of a clip from its alpha, float32 [T, H, W] in 0..1 at the size of the frames.

    `given`: foreground estimated by a network, uint8 [T, H, W, 3]. It is used where alpha is above 0 and extrapolated
    elsewhere.
    """
    foreground, plate = np.empty_like(clip.frames), clean_plate(clip.frames, alpha)
    residual, soft_count = 0.0, 0
    ranks: list[float] = []
    for index, (image, matte) in enumerate(zip(clip.frames, alpha, strict=True)):
        front, rear = layer_colours(image, matte, None if plate is None else plate[index])
        if given is not None:
            own = spread(given[index].astype(np.float32), (matte > 0).astype(np.float32))
            front = np.where(matte[..., None] > 0, given[index], own)
        foreground[index] = np.rint(front)
        soft, share = is_soft(matte), matte[..., None]
        missing = np.abs(image - share * foreground[index] - (1 - share) * rear).mean(axis=-1)
        residual += float(missing[soft].sum(dtype=np.float64))
        soft_count += int(soft.sum())
        rank = edge_rank(image, matte)
        ranks += [] if rank is None else [rank]
    return MatteOfClip(
        alpha=Alpha(alpha[..., None]),
        foreground=Foreground(foreground),
        background=None if plate is None else Background(plate),
        covered_share=float(alpha.mean(dtype=np.float64)),
        soft_share=soft_count / alpha.size,
        edge_rank=float(np.mean(ranks)) if ranks else None,
        composite_residual=residual / soft_count / 255 if soft_count else None,
        alpha_change=alpha_change(alpha, guide_flow(clip)),
    )


def edge_rank(image: np.ndarray, alpha: np.ndarray) -> float | None:
    """Mean percentile rank of the image gradient, weighted by the gradient of alpha; None if alpha has no edge.

    `image`: uint8 [H, W, 3]; its gradient is the maximum over the channels. `alpha`: float32 [H, W].
    """
    steep = _squared_slope(np.rint(alpha * ALPHA_STEPS).astype(np.int16))
    at_edges = steep > 0
    if not at_edges.any():
        return None
    slope = np.max([_squared_slope(channel) for channel in np.moveaxis(image, -1, 0)], axis=0)
    order = np.sort(slope, axis=None)
    found = slope[at_edges]
    ranks = (np.searchsorted(order, found, "left") + np.searchsorted(order, found, "right")) / 2 / slope.size
    return float(np.average(ranks, weights=np.sqrt(steep[at_edges])))


def _squared_slope(plane: np.ndarray) -> np.ndarray:
    """Squared Sobel gradient magnitude int64 [H, W] of uint8 or int16 [H, W]; integers make ranks exact."""
    import cv2

    plane = np.ascontiguousarray(plane)
    right, down = (cv2.Sobel(plane, cv2.CV_16S, *way).astype(np.int64) for way in ((1, 0), (0, 1)))
    squared: np.ndarray = right**2 + down**2
    return squared


def is_soft(alpha: np.ndarray) -> np.ndarray:
    """Pixels that belong to both layers: bool, in the shape of `alpha`."""
    soft: np.ndarray = (alpha >= SOFT) & (alpha <= 1 - SOFT)
    return soft


def alpha_change(alpha: np.ndarray, flow: GuideFlow) -> float | None:
    """Mean |warped alpha(t + 1) - alpha(t)| at soft pixels; None if there are none.

    `alpha`: float32 [T, H, W]; compared at the size of the flow, where the flow is valid.
    """
    total, count = 0.0, 0
    small = resize_smooth(alpha[..., None], *flow.size_px)[..., 0]
    for now, then, way, valid in zip(small[:-1], small[1:], flow.forward, flow.forward_valid, strict=True):
        fetched = warp(then, way)
        counted = valid & (is_soft(now) | is_soft(fetched))
        total += float(np.abs(fetched - now)[counted].sum(dtype=np.float64))
        count += int(counted.sum())
    return total / count if count else None

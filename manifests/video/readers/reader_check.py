"""Check of another reader: three frames of every clip are compared with PyAV's CPU decoder."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from openuni.manifests.video.video_errors import ReaderMismatch


class Difference(NamedTuple):
    """How far two images are from one another, in 8-bit levels."""

    mean: float
    max: int


def sampled_timestamps(wanted_pts: np.ndarray, key_pts: np.ndarray) -> list[int]:
    """Of the frames at `wanted_pts`, those to compare: the first one, and of the keyframes the middle and last one.

    Both arguments: int64, increasing. A keyframe is decoded without others, so these are cheap; they also show a reader
    that lost count on its way there.
    """
    keys = np.intersect1d(wanted_pts, key_pts).tolist()
    return sorted({int(wanted_pts[0]), *([keys[len(keys) // 2], keys[-1]] if keys else [])})


def difference(image: np.ndarray, reference: np.ndarray) -> Difference:
    """Of two images, uint8 [H, W, 3]."""
    levels = np.abs(image.astype(np.int16) - reference)
    return Difference(float(levels.mean()), int(levels.max(initial=0)))


def compared(
    source: str,
    reader: str,
    images: Iterator[np.ndarray],
    wanted_pts: np.ndarray,
    references: Mapping[int, np.ndarray],
    allowed: Difference,
) -> Iterator[np.ndarray]:
    """The same images. Raises `ReaderMismatch` at one that is farther from its reference than allowed.

    `references`: by timestamp, the images that PyAV's CPU decoder gives.
    """
    for image, pts in zip(images, wanted_pts.tolist(), strict=True):
        reference = references.get(pts)
        if reference is not None:
            found = difference(image, reference)
            if found.mean > allowed.mean or found.max > allowed.max:
                raise ReaderMismatch(
                    f"{source}: the frame at timestamp {pts} that {reader} gives is not the CPU decoder's: it differs "
                    f"by {found.mean:.2f} levels of 255 in the mean (allowed: {allowed.mean:g}), {found.max} at most "
                    f'({allowed.max}). Set [work] reader = "pyav".'
                )
        yield image

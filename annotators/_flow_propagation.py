"""Propagation of instance masks along the optical flow between two keyframes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from openuni.annotators._guide_flow import GuideFlow, warp
from openuni.annotators._instances import FrameInstances, iou_of, joint
from openuni.annotators._threads import in_threads

FOLLOWED_SHARE = 0.2  # minimum fraction of an instance's area with valid flow


class FlowInterval:
    """Propagation along the optical flow between two keyframes, in both directions; see `KeyframeInterval`."""

    def __init__(self, labels: np.ndarray, flow: GuideFlow, first: int, last: int) -> None:
        self.labels, self.flow, self.first, self.last = labels, flow, first, last
        self.there = propagate_labels(labels, flow, first, last)
        self.carried = np.where(self.there.sure[-1], self.there.labels[-1], 0).astype(np.uint16)

    def affinity(self, found: FrameInstances, known: int) -> np.ndarray:
        """IoU over pixels with valid flow in both keyframes; detected masks are also propagated backward."""
        self.found, self.back = found, propagate_labels(found.labels, self.flow, self.last, self.first)
        shape = found.total + 1, known + 1
        here = joint(found.labels, self.there.labels[-1], shape, self.there.sure[-1])
        before = joint(self.back.labels[-1], self.labels, shape, self.back.sure[-1])
        return iou_of(here + before)

    def between(self, last: np.ndarray) -> np.ndarray:
        """See `KeyframeInterval.between`."""
        number = np.zeros(self.found.total + 1, np.uint16)
        number[self.found.labels] = last
        number[0] = 0
        in_both = np.zeros(max(int(last.max()), int(self.labels.max())) + 1, bool)
        in_both[np.intersect1d(number[1:], self.labels)] = True
        if self.last - self.first < 2:
            return np.empty((0, *last.shape), np.uint16)
        back = PropagatedLabels(number[self.back.labels[-2::-1]], self.back.sure[-2::-1])
        return between(PropagatedLabels(self.there.labels[:-1], self.there.sure[:-1]), back, in_both)


class PropagatedLabels(NamedTuple):
    """A label map propagated from one frame to others, in order of propagation."""

    labels: np.ndarray  # uint16 [n, H, W]
    sure: np.ndarray  # bool [n, H, W]: where the flow is valid along the whole path


def propagate_labels(labels: np.ndarray, flow: GuideFlow, start: int, stop: int) -> PropagatedLabels:
    """Propagate `labels`, uint16 [H, W], of frame `start` frame by frame to `stop`, which may be earlier.

    Flow is accumulated before labels are sampled: otherwise motion below half a pixel per frame would be lost to
    rounding.
    """
    import cv2

    height_px, width_px = labels.shape
    small = flow.size_px
    way = np.zeros((*small, 2), np.float32)  # from a pixel of the current frame to its position in `start`
    sure = np.ones(small, np.uint8)
    step = 1 if stop > start else -1
    found = np.zeros((abs(stop - start), height_px, width_px), np.uint16)
    certain = np.zeros(found.shape, bool)
    x, y = np.arange(width_px, dtype=np.float32), np.arange(height_px, dtype=np.float32)
    # x and y in turns in one row: NumPy is slow over a last axis of two
    places = np.stack(np.meshgrid(x, y), axis=-1).reshape(height_px, -1)
    scales = np.tile(np.array([width_px / small[1], height_px / small[0]], np.float32), width_px)

    no_map: Any = None  # both coordinates are in the first map

    def steps() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        nonlocal way, sure
        for row in range(len(found)):
            pair = start + row if step > 0 else start - row - 1  # frames `pair` and `pair` + 1
            back, trusted = (
                (flow.backward[pair], flow.backward_valid[pair])
                if step > 0
                else (flow.forward[pair], flow.forward_valid[pair])
            )
            way = back + warp(way, back)
            sure = warp(sure, back, nearest=True) * trusted
            yield row, way, sure

    def sample(accumulated: tuple[int, np.ndarray, np.ndarray]) -> None:
        row, way, sure = accumulated
        whole: Any = cv2.resize(way, (width_px, height_px))
        flat = whole.reshape(height_px, -1)
        flat *= scales
        flat += places
        cv2.remap(labels, whole, no_map, cv2.INTER_NEAREST, found[row])
        certain[row] = cv2.resize(sure, (width_px, height_px), interpolation=cv2.INTER_NEAREST) > 0

    in_threads(sample, steps())
    return PropagatedLabels(found, certain)


def between(before: PropagatedLabels, after: PropagatedLabels, in_both: np.ndarray) -> np.ndarray:
    """Merge the maps propagated from the first and the second keyframe into the maps between them: uint16 [n, H, W].

    Both inputs are in temporal order. `in_both`: bool [1 + largest track number], instances present in both keyframes.
    Where the two disagree, the one with valid flow is used; if both are valid, that of the nearer keyframe. An instance
    that only one keyframe has is shown wherever its flow is valid: in the other keyframe it was missed or occluded.
    """
    count, numbers = len(before.labels), np.arange(len(in_both), dtype=np.uint16)
    result = np.empty_like(before.labels)
    followed = (
        _followed(before, len(in_both)),
        _followed(PropagatedLabels(*(part[::-1] for part in after)), len(in_both))[::-1],
    )

    def merge(row: int) -> None:
        ways = [(before, followed[0]), (after, followed[1])]
        (near, _), (far, _) = ways = ways if 2 * (row + 1) <= count + 1 else ways[::-1]
        labels = np.where(near.sure[row] | ~far.sure[row], near.labels[row], far.labels[row])
        labels = np.where(in_both, numbers, 0)[labels]
        for one, still in ways:
            alone = np.where(still[row] & ~in_both, numbers, 0)[one.labels[row]]
            np.copyto(labels, alone, where=one.sure[row] & (labels == 0))
        result[row] = labels

    in_threads(merge, range(count))
    return result


def _followed(way: PropagatedLabels, numbers: int) -> np.ndarray:
    """Frames up to which enough of an instance has valid flow, from its keyframe on: bool [n, numbers].

    Later frames contain only stray pixels of instances that enter or leave the picture.
    """
    # unsure pixels count as background, which is not followed
    areas = np.stack(
        in_threads(lambda row: np.bincount((row[0] * row[1]).ravel(), minlength=numbers), zip(*way, strict=True))
    )
    enough = areas >= FOLLOWED_SHARE * areas.max(axis=0)
    return np.logical_and.accumulate(enough & (areas > 0), axis=0)

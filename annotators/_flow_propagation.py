"""Masks carried along the motion of a clip, and what lies between two key frames."""

from typing import NamedTuple

import numpy as np

from openuni.annotators._guide_flow import GuideFlow, warp
from openuni.annotators._instances import FrameInstances, iou_of, joint

FOLLOWED_SHARE = 0.2  # of an instance's area


class FlowInterval:
    """The way from one key frame to the next along the optical flow, there and back; see `Stretch`."""

    def __init__(self, labels: np.ndarray, flow: GuideFlow, first: int, last: int) -> None:
        self.labels, self.flow, self.first, self.last = labels, flow, first, last
        self.there = propagate_labels(labels, flow, first, last)
        self.carried = np.where(self.there.sure[-1], self.there.labels[-1], 0).astype(np.uint16)

    def affinity(self, found: FrameInstances, known: int) -> np.ndarray:
        """IoU of pixels whose motion is sure, of both key frames together: the masks found are carried back, too."""
        self.found, self.back = found, propagate_labels(found.labels, self.flow, self.last, self.first)
        shape = found.total + 1, known + 1
        here = joint(found.labels, self.there.labels[-1], shape, self.there.sure[-1])
        before = joint(self.back.labels[-1], self.labels, shape, self.back.sure[-1])
        return iou_of(here + before)

    def between(self, last: np.ndarray) -> np.ndarray:
        """See `between` below."""
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
    """A map of labels moved from its frame to others, in the order of the way."""

    labels: np.ndarray  # uint16 [n, H, W]
    sure: np.ndarray  # bool [n, H, W]: where the motion could be followed all the way


def propagate_labels(labels: np.ndarray, flow: GuideFlow, start: int, stop: int) -> PropagatedLabels:
    """`labels`, uint16 [H, W], of frame `start` at the frames after it up to `stop`, which may lie before `start`.

    The motion is summed up from frame to frame before anything is rounded to pixels: what moves less than half a pixel
    per frame would otherwise stand still.
    """
    import cv2

    height_px, width_px = labels.shape
    small = flow.size_px
    way = np.zeros((*small, 2), np.float32)  # from a pixel of the frame reached to its place in `start`
    sure = np.ones(small, np.uint8)
    step = 1 if stop > start else -1
    found = np.zeros((abs(stop - start), height_px, width_px), np.uint16)
    certain = np.zeros(found.shape, bool)
    x, y = np.meshgrid(np.arange(width_px, dtype=np.float32), np.arange(height_px, dtype=np.float32))
    for row in range(len(found)):
        pair = start + row if step > 0 else start - row - 1  # of frames `pair` and `pair` + 1
        back, trusted = (
            (flow.backward[pair], flow.backward_valid[pair])
            if step > 0
            else (flow.forward[pair], flow.forward_valid[pair])
        )
        way = back + warp(way, back)
        sure = warp(sure, back, nearest=True) * trusted
        whole = cv2.resize(way, (width_px, height_px)) * np.array(
            [width_px / small[1], height_px / small[0]], np.float32
        )
        found[row] = cv2.remap(labels, x + whole[..., 0], y + whole[..., 1], cv2.INTER_NEAREST)
        certain[row] = cv2.resize(sure, (width_px, height_px), interpolation=cv2.INTER_NEAREST) > 0
    return PropagatedLabels(found, certain)


def between(before: PropagatedLabels, after: PropagatedLabels, in_both: np.ndarray) -> np.ndarray:
    """The maps between two key frames, uint16 [n, H, W], from those carried there from the first and from the second.

    Both in the clip's order. `in_both`: bool [1 + largest number], which instances both key frames have. Where the two
    disagree, the one that is sure is right; of two that are, the nearer key frame's; but an instance that only one key
    frame has is seen wherever it was carried for sure: the other did not find it, or it is hidden there.
    """
    count = len(before.labels)
    result = np.empty_like(before.labels)
    followed = (
        _followed(before, len(in_both)),
        _followed(PropagatedLabels(*(part[::-1] for part in after)), len(in_both))[::-1],
    )
    for row in range(count):
        ways = [(before, followed[0]), (after, followed[1])]
        (near, _), (far, _) = ways = ways if 2 * (row + 1) <= count + 1 else ways[::-1]
        labels = np.where(near.sure[row] | ~far.sure[row], near.labels[row], far.labels[row])
        labels = np.where(in_both[labels], labels, 0)
        for one, still in ways:
            alone = one.sure[row] & (still[row] & ~in_both)[one.labels[row]] & (labels == 0)
            labels = np.where(alone, one.labels[row], labels)
        result[row] = labels
    return result


def _followed(way: PropagatedLabels, numbers: int) -> np.ndarray:
    """bool [n, numbers]: how far from its key frame enough of an instance is carried for sure to say that it is there.

    Behind that are the stray pixels of what has just come in, or is about to go.
    """
    areas = np.stack([np.bincount(row[sure], minlength=numbers) for row, sure in zip(*way, strict=True)])
    enough = areas >= FOLLOWED_SHARE * areas.max(axis=0)
    return np.logical_and.accumulate(enough & (areas > 0), axis=0)

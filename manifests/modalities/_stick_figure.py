"""Drawing people's key points as coloured sticks on black, as pose-conditioned video models are shown them."""

import colorsys
from functools import lru_cache
from itertools import pairwise
from math import ceil
from typing import Literal

import numpy as np

MIN_CONFIDENCE = 0.3  # a point below is not drawn, nor what hangs on it
REFERENCE_PX = 512  # shorter side of a picture that is drawn at the widths below
LIMB_PX, FINGER_PX = 4, 2  # width of lines
JOINT_PX, KNUCKLE_PX, FACE_PX = 4, 3, 2  # radius of dots
LIMB_BRIGHTNESS = 0.6  # so that joints stand out on limbs

# Places in the 133 points: COCO's 17 of the body, 6 of the feet, 68 of the face, 21 of each hand.
BODY, FACE, HANDS = slice(0, 17), slice(23, 91), (slice(91, 112), slice(112, 133))
LEFT_SHOULDER, RIGHT_SHOULDER = 5, 6
NECK = 17  # appended to the 17
# OpenPose's 18 points by their place among these: nose, neck, right and left arm, right and left leg, eyes, ears
OPENPOSE = (0, NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
# and its limbs, as chains of those points in the order that they take their colours in
CHAINS = ((1, 2), (1, 5), (2, 3, 4), (5, 6, 7), (1, 8, 9, 10), (1, 11, 12, 13), (1, 0, 14, 16), (0, 15, 17))
REST = slice(17, 133)  # feet, face, hands: after the body in both orders
FINGERS = tuple((0, *range(first, first + 4)) for first in range(1, 21, 4))
BLUE, WHITE = np.array([0, 0, 1], np.float32), np.array([1, 1, 1], np.float32)


NeckRule = Literal["least", "both"]
Style = Literal["openpose", "vace"]


def openpose_points(points: np.ndarray, neck: NeckRule = "least") -> np.ndarray:
    """The 134 points of DWPose: [P, 133, 3] -> [P, 134, 3], of the same type.

    OpenPose's 18 of the body, then feet, face and hands as they were. The neck is halfway between the shoulders. Its
    confidence: `least`, that of the less confident shoulder, as rtmlib has it; `both`, 1 where both shoulders have more
    than 0.3, else 0, as DWPose's authors have it. What is drawn differs only where a shoulder has exactly 0.3.
    """
    shoulders = points[:, [LEFT_SHOULDER, RIGHT_SHOULDER]]
    middle = shoulders.mean(axis=1, keepdims=True)
    if neck == "least":
        middle[..., 2] = shoulders[..., 2].min(axis=1, keepdims=True)
    else:
        middle[..., 2] = (shoulders[..., 2] > MIN_CONFIDENCE).all(axis=1, keepdims=True)
    body = np.concatenate([points[:, BODY], middle], axis=1)[:, list(OPENPOSE)]
    return np.concatenate([body, points[:, REST]], axis=1)


def draw(points: np.ndarray, height_px: int, width_px: int, style: Style = "openpose") -> np.ndarray:
    """One picture of all persons: bodies, then hands, then faces, each in the persons' order.

    `points`: float32 [P, 133, 3] = x_px, y_px, confidence, pixel centres at +0.5. Returns float32 [H, W, 3] in 0..1
    (red green blue).

    The body is OpenPose's 18 points (the neck between the shoulders) and 17 limbs in 18 hues, the hands are sticks in
    20 hues with blue joints, the face white dots; feet are not drawn. Limbs are 4 px wide where the picture's shorter
    side is 512 px, and in proportion elsewhere, at least 1 px; edges are anti-aliased.

    `style`: `vace` is what VACE's models were shown: no hands, and red and blue changed places after drawing.
    """
    points = points.astype(np.float64)
    pen, hues = _Canvas(height_px, width_px), _hues(len(OPENPOSE))
    for body in openpose_points(points)[:, : len(OPENPOSE)]:
        pen.lines(body, CHAINS, LIMB_PX, LIMB_BRIGHTNESS * hues)
        pen.dots(body, JOINT_PX, hues)
    for hand in (person[span] for person in points for span in HANDS if style != "vace"):
        pen.lines(hand, FINGERS, FINGER_PX, _hues(4 * len(FINGERS)))
        pen.dots(hand, KNUCKLE_PX, np.broadcast_to(BLUE, hand.shape))
    for face in points[:, FACE]:
        pen.dots(face, FACE_PX, np.broadcast_to(WHITE, face.shape))
    return pen.picture if style != "vace" else np.ascontiguousarray(pen.picture[..., ::-1])


class _Canvas:
    """Draws on one picture what is confident enough: sticks with round ends, and dots, which are sticks of length 0."""

    def __init__(self, height_px: int, width_px: int) -> None:
        self.picture = np.zeros((height_px, width_px, 3), np.float32)
        self.scale = min(height_px, width_px) / REFERENCE_PX

    def lines(self, points: np.ndarray, chains: tuple[tuple[int, ...], ...], width: float, hues: np.ndarray) -> None:
        """Along each chain of points ([N, 3]), from each to the next, where both are there; hues [links or more, 3]."""
        links = [link for chain in chains for link in pairwise(chain)]
        for (one, other), hue in zip(links, hues, strict=False):  # the body has one hue more than limbs
            self._stick(points[one], points[other], width / 2, hue)

    def dots(self, points: np.ndarray, radius: float, hues: np.ndarray) -> None:
        """Filled circles, where the points ([N, 3]) are there; hues [N, 3]."""
        for point, hue in zip(points, hues, strict=True):
            self._stick(point, point, radius, hue)

    def _stick(self, one: np.ndarray, other: np.ndarray, radius: float, hue: np.ndarray) -> None:
        """All within `radius` (px at the reference size) of the way from point to point.

        A pixel is covered by how far its centre lies within the edge, over one pixel: that is the anti-aliasing.
        """
        if min(one[2], other[2]) < MIN_CONFIDENCE:
            return
        radius = max(0.5, radius * self.scale)
        (x, y), way = one[:2], other[:2] - one[:2]
        left, top = np.maximum(np.minimum(one, other)[:2] - radius - 1, 0)
        right, bottom = np.minimum(np.maximum(one, other)[:2] + radius + 1, self.picture.shape[1::-1])
        if left >= right or top >= bottom:
            return  # out of the picture
        rows, columns = slice(int(top), ceil(bottom)), slice(int(left), ceil(right))
        across = np.arange(columns.start, columns.stop) + 0.5 - x
        down = np.arange(rows.start, rows.stop)[:, None] + 0.5 - y
        length = float(way @ way)
        along = np.clip((across * way[0] + down * way[1]) / length, 0, 1) if length else 0.0
        cover = np.clip(radius + 0.5 - np.hypot(across - along * way[0], down - along * way[1]), 0, 1)
        window = self.picture[rows, columns]
        window += cover.astype(np.float32)[..., None] * (hue - window)


@lru_cache(maxsize=4)
def _hues(count: int) -> np.ndarray:
    """float32 [count, 3] in 0..1: RGB of hues evenly around the circle, red first."""
    return np.array([colorsys.hsv_to_rgb(place / count, 1, 1) for place in range(count)], np.float32)

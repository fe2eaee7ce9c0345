"""Stick-figure drawings of key points on black, the input format of pose-conditioned video models."""

import colorsys
from functools import lru_cache
from itertools import pairwise
from math import ceil
from typing import Literal

import numpy as np

MIN_CONFIDENCE = 0.3  # points below this are not drawn, nor are sticks that end in them
REFERENCE_PX = 512  # shorter side of the picture for which the sizes below apply
LIMB_PX, FINGER_PX = 4, 2  # line widths
JOINT_PX, KNUCKLE_PX, FACE_PX = 4, 3, 2  # dot radii
LIMB_BRIGHTNESS = 0.6  # darker than the joints, so that these stand out

# Indices into the 133 points: COCO's 17 body points, 6 of the feet, 68 of the face, 21 of each hand.
BODY, FACE, HANDS = slice(0, 17), slice(23, 91), (slice(91, 112), slice(112, 133))
LEFT_SHOULDER, RIGHT_SHOULDER = 5, 6
NECK = 17  # index of the neck, appended to the 17 body points
# Indices of OpenPose's 18 points: nose, neck, right and left arm, right and left leg, eyes, ears.
OPENPOSE = (0, NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
# Limbs as chains of OpenPose's points, in the order of their colours.
CHAINS = ((1, 2), (1, 5), (2, 3, 4), (5, 6, 7), (1, 8, 9, 10), (1, 11, 12, 13), (1, 0, 14, 16), (0, 15, 17))
REST = slice(17, 133)  # feet, face and hands, which follow the body in both orders
FINGERS = tuple((0, *range(first, first + 4)) for first in range(1, 21, 4))
BLUE, WHITE = np.array([0, 0, 1], np.float32), np.array([1, 1, 1], np.float32)


NeckRule = Literal["least", "both"]
Style = Literal["openpose", "vace"]


def openpose_points(points: np.ndarray, neck: NeckRule = "least") -> np.ndarray:
    """Convert to the 134 points of DWPose: [P, 133, 3] -> [P, 134, 3], same dtype.

    OpenPose's 18 body points come first, then feet, face and hands unchanged. The neck is the midpoint of the
    shoulders. `neck`: its confidence. "least": the minimum of the shoulders' confidences, as in rtmlib. "both": 1 if
    both are above 0.3, else 0, as in the original DWPose code. Drawings differ only if a shoulder has exactly 0.3.
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
    """Draw all persons in one picture: first bodies, then hands, then faces, each in the order of persons.

    `points`: float32 [P, 133, 3] = x_px, y_px, confidence, with pixel centres at +0.5. Returns float32 [H, W, 3] in
    0..1, RGB.

    Bodies are OpenPose's 18 points and 17 limbs in 18 hues, hands are sticks in 20 hues with blue joints, faces are
    white dots; feet are not drawn. Limbs are 4 px wide if the picture's shorter side is 512 px and scale with it, at
    least 1 px. Edges are anti-aliased.

    `style`: "vace" reproduces the training input of VACE: no hands, and the red and blue channels swapped.
    """
    points = points.astype(np.float64)
    canvas, hues = _Canvas(height_px, width_px), _hues(len(OPENPOSE))
    for body in openpose_points(points)[:, : len(OPENPOSE)]:
        canvas.lines(body, CHAINS, LIMB_PX, LIMB_BRIGHTNESS * hues)
        canvas.dots(body, JOINT_PX, hues)
    for hand in (person[span] for person in points for span in HANDS if style != "vace"):
        canvas.lines(hand, FINGERS, FINGER_PX, _hues(4 * len(FINGERS)))
        canvas.dots(hand, KNUCKLE_PX, np.broadcast_to(BLUE, hand.shape))
    for face in points[:, FACE]:
        canvas.dots(face, FACE_PX, np.broadcast_to(WHITE, face.shape))
    return canvas.picture if style != "vace" else np.ascontiguousarray(canvas.picture[..., ::-1])


class _Canvas:
    """A picture to draw on: sticks with round ends, and dots (sticks of length 0). Skips points of low confidence."""

    def __init__(self, height_px: int, width_px: int) -> None:
        self.picture = np.zeros((height_px, width_px, 3), np.float32)
        self.scale = min(height_px, width_px) / REFERENCE_PX

    def lines(self, points: np.ndarray, chains: tuple[tuple[int, ...], ...], width: float, hues: np.ndarray) -> None:
        """Draw a stick between consecutive points ([N, 3]) of each chain. `hues`: [number of sticks or more, 3]."""
        links = [link for chain in chains for link in pairwise(chain)]
        for (first, second), hue in zip(links, hues, strict=False):  # a body has one more hue than limbs
            self._stick(points[first], points[second], width / 2, hue)

    def dots(self, points: np.ndarray, radius: float, hues: np.ndarray) -> None:
        """Draw a filled circle at each of the points ([N, 3]). `hues`: [N, 3]."""
        for point, hue in zip(points, hues, strict=True):
            self._stick(point, point, radius, hue)

    def _stick(self, start: np.ndarray, end: np.ndarray, radius: float, hue: np.ndarray) -> None:
        """Draw all pixels within `radius` (px at the reference size) of the segment from `start` to `end`.

        Anti-aliasing: the coverage of a pixel falls from 1 to 0 over one pixel across the edge.
        """
        if min(start[2], end[2]) < MIN_CONFIDENCE:
            return
        radius = max(0.5, radius * self.scale)
        (x, y), direction = start[:2], end[:2] - start[:2]
        left, top = np.maximum(np.minimum(start, end)[:2] - radius - 1, 0)
        right, bottom = np.minimum(np.maximum(start, end)[:2] + radius + 1, self.picture.shape[1::-1])
        if left >= right or top >= bottom:
            return  # outside the picture
        rows, columns = slice(int(top), ceil(bottom)), slice(int(left), ceil(right))
        across = np.arange(columns.start, columns.stop) + 0.5 - x
        down = np.arange(rows.start, rows.stop)[:, None] + 0.5 - y
        squared_length = float(direction @ direction)
        along = np.clip((across * direction[0] + down * direction[1]) / squared_length, 0, 1) if squared_length else 0.0
        distance = np.hypot(across - along * direction[0], down - along * direction[1])
        coverage = np.clip(radius + 0.5 - distance, 0, 1)
        window = self.picture[rows, columns]
        window += coverage.astype(np.float32)[..., None] * (hue - window)


@lru_cache(maxsize=4)
def _hues(count: int) -> np.ndarray:
    """RGB of `count` hues evenly spaced around the colour circle, red first: float32 [count, 3] in 0..1."""
    return np.array([colorsys.hsv_to_rgb(index / count, 1, 1) for index in range(count)], np.float32)

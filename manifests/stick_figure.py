"""Drawing people's key points as coloured sticks on black, as pose-conditioned video models are shown them."""

import colorsys
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np

LEAST_CONFIDENCE = 0.3  # a point below is not drawn, nor what hangs on it
REFERENCE_PX = 512  # shorter side of a picture that is drawn at the widths below
LIMB_PX, FINGER_PX = 4, 2  # width of lines
JOINT_PX, FACE_PX = 4, 3  # radius of dots
LIMB_BRIGHTNESS = 0.6  # so that joints stand out on limbs
FRACTION_BITS = 4  # of the positions handed to OpenCV
FARTHEST_PX = 1e6  # points farther off are drawn here: OpenCV counts in 32 bits

# Places in the 133 points: COCO's 17 of the body, 6 of the feet, 68 of the face, 21 of each hand.
BODY, FACE, HANDS = slice(0, 17), slice(23, 91), (slice(91, 112), slice(112, 133))
LEFT_SHOULDER, RIGHT_SHOULDER = 5, 6
NECK = 17  # appended to the 17
# OpenPose's 18 points by their place among these: nose, neck, right and left arm, right and left leg, eyes, ears
OPENPOSE = (0, NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
# and its limbs, as chains of those points in the order that they take their colours in
CHAINS = ((1, 2), (1, 5), (2, 3, 4), (5, 6, 7), (1, 8, 9, 10), (1, 11, 12, 13), (1, 0, 14, 16), (0, 15, 17))
FINGERS = tuple((0, *range(first, first + 4)) for first in range(1, 21, 4))
BLUE, WHITE = (0.0, 0.0, 255.0), (255.0, 255.0, 255.0)


def draw(points: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """One picture of all persons, in their order: bodies, then hands, then faces.

    `points`: float32 [P, 133, 3] = x_px, y_px, confidence, pixel centres at +0.5. Returns uint8 [H, W, 3], RGB.
    The body is OpenPose's 18 points (the neck between the shoulders) and 17 limbs in 18 hues, the hands are sticks in
    20 hues with blue joints, the face white dots; feet are not drawn. Lines are 4 px wide where the picture's shorter
    side is 512 px, and in proportion elsewhere, at least 1 px; edges are anti-aliased.
    """
    pen = _Pen(height_px, width_px)
    for person in points:
        body = _openpose(person[BODY])
        for (one, other), colour in zip(_links(CHAINS), _hues(len(OPENPOSE)), strict=False):
            pen.line(body[one], body[other], LIMB_PX, tuple(LIMB_BRIGHTNESS * level for level in colour))
        for point, colour in zip(body, _hues(len(OPENPOSE)), strict=True):
            pen.dot(point, JOINT_PX, colour)
    for hand in (person[span] for person in points for span in HANDS):
        for (one, other), colour in zip(_links(FINGERS), _hues(4 * len(FINGERS)), strict=True):
            pen.line(hand[one], hand[other], FINGER_PX, colour)
        for point in hand:
            pen.dot(point, JOINT_PX, BLUE)
    for point in (point for person in points for point in person[FACE]):
        pen.dot(point, FACE_PX, WHITE)
    return pen.picture


class _Pen:
    """Draws on one picture what is confident enough."""

    def __init__(self, height_px: int, width_px: int) -> None:
        self.picture = np.zeros((height_px, width_px, 3), np.uint8)
        self.scale = min(height_px, width_px) / REFERENCE_PX

    def line(self, one: np.ndarray, other: np.ndarray, width: float, colour: tuple[float, ...]) -> None:
        """From point to point ([3] each), when both are there."""
        import cv2

        if min(one[2], other[2]) >= LEAST_CONFIDENCE:
            wide = max(1, round(width * self.scale))
            cv2.line(self.picture, _place(one), _place(other), colour, wide, cv2.LINE_AA, FRACTION_BITS)

    def dot(self, point: np.ndarray, radius: float, colour: tuple[float, ...]) -> None:
        """A filled circle, when the point is there."""
        import cv2

        if point[2] >= LEAST_CONFIDENCE:
            size = max(1, round(radius * self.scale * 2**FRACTION_BITS))
            cv2.circle(self.picture, _place(point), size, colour, cv2.FILLED, cv2.LINE_AA, FRACTION_BITS)


def _openpose(body: np.ndarray) -> np.ndarray:
    """[17, 3] of COCO -> [18, 3] of OpenPose."""
    shoulders = body[[LEFT_SHOULDER, RIGHT_SHOULDER]]
    neck = np.append(shoulders[:, :2].mean(axis=0), shoulders[:, 2].min())
    return np.concatenate([body, neck[None]])[list(OPENPOSE)]


def _links(chains: tuple[tuple[int, ...], ...]) -> Iterator[tuple[int, int]]:
    for chain in chains:
        yield from pairwise(chain)


@lru_cache(maxsize=4)
def _hues(count: int) -> list[tuple[float, ...]]:
    """RGB 0..255 of hues evenly around the circle, red first."""
    return [tuple(255 * level for level in colorsys.hsv_to_rgb(place / count, 1, 1)) for place in range(count)]


def _place(point: np.ndarray) -> tuple[int, int]:
    """Position in OpenCV's fixed-point pixels, whose centres are at whole numbers."""
    x, y = np.rint((np.clip(point[:2], -FARTHEST_PX, FARTHEST_PX) - 0.5) * 2**FRACTION_BITS).astype(int)
    return int(x), int(y)

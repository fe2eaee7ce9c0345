"""Classification of text as overlay or scene text, by its behaviour over time."""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

SAME_PLACE_IOU = 0.7
SAME_LOOK = 0.5  # minimum correlation of the grey values within a box
CHANGED_LEVELS = 4.0  # of 255: change above noise, after compensation of brightness and contrast
CHANGED_PICTURE = 0.5  # minimum fraction of changed blocks
BLOCK_PX = 16
MISSED_SAMPLES = 1  # missed detections that a track may contain in a row


class TextKind(IntEnum):
    """Kind of a text box."""

    SCENE = 0  # moves, or is visible only briefly
    OVERLAY = 1  # static while the image around it changes
    UNDECIDED = 2  # static in a static image


@dataclass
class _Track:
    """A static text."""

    rect: tuple[int, int, int, int]
    first: int
    last: int
    boxes: list[tuple[int, int]] = field(default_factory=list)  # frame index, box index within the frame


def classify_text(
    grey: list[np.ndarray], quads: list[list[np.ndarray]], times_s: np.ndarray, min_overlay_s: float
) -> list[list[TextKind]]:
    """Classify each box of each frame.

    `grey`: uint8 [H, W] per frame; `quads`: per frame, float32 [4, 2] each, pixels; `times_s`: float64 [T]. Text is
    static if a box keeps its position and appearance for `min_overlay_s`, or for all of a shorter clip. Static text is
    an overlay if the pixels around it change (beyond brightness and contrast), or most of the image does; otherwise it
    is undecided. Text in a single frame is always undecided.
    """
    found = [[TextKind.SCENE] * len(of_frame) for of_frame in quads]
    if len(grey) < 2:
        return [[TextKind.UNDECIDED] * len(of_frame) for of_frame in quads]
    text = [union_mask(image.shape, of_frame) for image, of_frame in zip(grey, quads, strict=True)]
    enough_s = min(min_overlay_s, float(times_s[-1] - times_s[0]))
    for track in _tracks(grey, quads):
        if track.first == track.last or times_s[track.last] - times_s[track.first] < enough_s - 1e-6:
            continue
        others = sorted({index for index, _ in track.boxes} - {track.first})
        moved = any(_surroundings_change(grey, text, track, other) for other in others)
        for index, number in track.boxes:
            found[index][number] = TextKind.OVERLAY if moved else TextKind.UNDECIDED
    return found


def _tracks(grey: list[np.ndarray], quads: list[list[np.ndarray]]) -> list[_Track]:
    """Track boxes over frames. Boxes are compared with the first box of a track, so slow motion ends a track."""
    tracks: list[_Track] = []
    for index, of_frame in enumerate(quads):
        taken: set[int] = set()
        for number, quad in enumerate(of_frame):
            rect = _rect(quad, grey[index].shape)
            fits = [
                (_iou(track.rect, rect), place)
                for place, track in enumerate(tracks)
                if place not in taken and index - track.last <= 1 + MISSED_SAMPLES
            ]
            overlap, place = max(fits, default=(0.0, -1))
            if overlap >= SAME_PLACE_IOU and _appearance_matches(
                grey[tracks[place].first], grey[index], tracks[place].rect
            ):
                tracks[place].last = index
            else:
                place = len(tracks)
                tracks.append(_Track(rect, index, index))
            tracks[place].boxes.append((index, number))
            taken.add(place)
    return tracks


def _appearance_matches(one: np.ndarray, other: np.ndarray, rect: tuple[int, int, int, int]) -> bool:
    left, top, right, bottom = rect
    correlation, _ = _compare(one[top:bottom, left:right], other[top:bottom, left:right])
    return correlation >= SAME_LOOK


def _surroundings_change(grey: list[np.ndarray], text: list[np.ndarray], track: _Track, other: int) -> bool:
    """Whether non-text pixels change between the first frame of the track and another one."""
    left, top, right, bottom = track.rect
    reach = max(BLOCK_PX // 2, bottom - top)
    around = (slice(max(0, top - reach), bottom + reach), slice(max(0, left - reach), right + reach))
    plain = ~(text[track.first] | text[other])
    near = plain[around]
    if near.any():
        _, left_over = _compare(grey[track.first][around][near], grey[other][around][near])
        if left_over > CHANGED_LEVELS:
            return True
    return _changed_share(grey[track.first], grey[other], plain) > CHANGED_PICTURE


def _compare(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Correlation of two sets of grey values, and the residual deviation (levels) of a linear fit between them."""
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a * a).mean() * (b * b).mean()))
    if spread == 0:
        return 0.0, float(max(a.std(), b.std()))
    correlation = float((a * b).mean()) / spread
    return correlation, float(b.std() * np.sqrt(max(0.0, 1.0 - correlation**2)))


def _changed_share(one: np.ndarray, other: np.ndarray, plain: np.ndarray) -> float:
    """Fraction of text-free blocks that change, after compensation of brightness and contrast, 0 to 1."""
    import cv2

    if not plain.any():
        return 0.0
    before, after = one.astype(np.float32), other.astype(np.float32)
    gain = after[plain].std() / max(float(before[plain].std()), 1e-6)
    lit = (before - before[plain].mean()) * gain + after[plain].mean()
    change = np.abs(after - lit) * plain
    size = tuple(max(1, side // BLOCK_PX) for side in one.shape[::-1])
    weight = cv2.resize(plain.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    blocks = cv2.resize(change, size, interpolation=cv2.INTER_AREA)
    whole = weight > 0.5
    return float((blocks[whole] / weight[whole] > CHANGED_LEVELS).mean()) if whole.any() else 0.0


def union_mask(shape: tuple[int, ...], quads: list[np.ndarray]) -> np.ndarray:
    """Union of quadrilaterals as a mask, bool [H, W]."""
    import cv2

    mask = np.zeros(shape[:2], np.uint8)
    for quad in quads:
        cv2.fillConvexPoly(mask, np.rint(quad).astype(np.int32), 1)
    return mask.astype(bool)


def _rect(quad: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Bounding box (left, top, right, bottom) of a quadrilateral, clipped to the image and not empty."""
    height_px, width_px = shape[:2]
    left, top = np.clip(np.floor(quad.min(axis=0)).astype(int), 0, (width_px - 1, height_px - 1))
    right, bottom = np.clip(np.ceil(quad.max(axis=0)).astype(int), (left + 1, top + 1), (width_px, height_px))
    return int(left), int(top), int(right), int(bottom)


def _iou(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    if wide <= 0 or high <= 0:
        return 0.0
    areas = [(rect[2] - rect[0]) * (rect[3] - rect[1]) for rect in (one, other)]
    return wide * high / (sum(areas) - wide * high)

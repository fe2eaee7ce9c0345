"""Key points of a body in COCO-WholeBody order, and its surface in DensePose's parts.

Available key points: the 17 of the body, the 6 of the feet, and the root of each hand. The 68 face points and the other
hand points are always absent, because bodies have no mouth and no fingers.

DensePose: all 24 parts are used. Trunk (chest, pelvis and neck) and legs have a back and a front half, arms an inner
and an outer one, the head a right and a left one; hands and feet are not divided. U runs across the half (or around the
whole), V along the part's axis, both 0..1, from the part's texture coordinates; DensePose's charts differ in shape.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from openuni.world.figures.body import PARTS, Body, Placed
from openuni.world.figures.gait import apply
from openuni.world.rendering.pose import Vector

POINT_COUNT = 133
LEFT_HAND, RIGHT_HAND = 91, 112  # the roots


class KeyPoint(NamedTuple):
    """A key point fixed to a part, at `at` in its axes, relative to the body height.

    It is visible if the first hit on its ray is one of `owners`, at most `slack` of the body height away.
    """

    number: int  # in COCO-WholeBody's order
    part: str
    at: Vector
    owners: tuple[str, ...]
    slack: float


def _end(part: str, sign: float) -> Vector:
    return (0.0, sign * PARTS[part].half, 0.0)


@lru_cache(maxsize=1)
def key_points() -> tuple[KeyPoint, ...]:
    """All points that a body has."""
    points = [KeyPoint(0, "nose", (0.0, 0.0, 0.004), ("nose", "head"), 0.015)]
    for offset, (side, sign) in enumerate((("left", 1.0), ("right", -1.0))):
        hip, knee, ankle, foot = f"{side}_thigh", f"{side}_shank", f"{side}_shank", f"{side}_foot"
        shoulder, elbow, hand = f"{side}_upper_arm", f"{side}_forearm", f"{side}_hand"
        wrist = KeyPoint(9 + offset, elbow, _end(elbow, -1), (elbow, hand), 0.04)
        toes = PARTS[foot].half + 0.5 * PARTS[foot].high
        points += [
            KeyPoint(1 + offset, f"{side}_eye", (0.0, 0.0, 0.004), (f"{side}_eye", "head"), 0.012),
            KeyPoint(3 + offset, f"{side}_ear", (0.0, 0.0, 0.0), (f"{side}_ear", "head"), 0.015),
            KeyPoint(5 + offset, shoulder, _end(shoulder, 1), (shoulder, "chest"), 0.085),
            KeyPoint(7 + offset, elbow, _end(elbow, 1), (shoulder, elbow), 0.06),
            wrist,
            KeyPoint(11 + offset, hip, _end(hip, 1), (hip, "pelvis"), 0.11),
            KeyPoint(13 + offset, knee, _end(knee, 1), (hip, knee), 0.07),
            KeyPoint(15 + offset, ankle, _end(ankle, -1), (ankle, foot), 0.055),
            KeyPoint(17 + 3 * offset, foot, (-0.009 * sign, toes, 0.0), (foot,), 0.035),
            KeyPoint(18 + 3 * offset, foot, (0.011 * sign, toes - 0.006, 0.0), (foot,), 0.035),
            KeyPoint(19 + 3 * offset, foot, (0.0, -PARTS[foot].half - 0.012, 0.004), (foot, ankle), 0.045),
            wrist._replace(number=(LEFT_HAND, RIGHT_HAND)[offset]),
        ]
    return tuple(points)


def places(body: Body, placed: Placed) -> np.ndarray:
    """World positions of `key_points()`, float64 [T, K, 3], metres."""
    found = []
    for point in key_points():
        rotation, middle = placed[point.part]
        found.append(middle + apply(rotation, np.array(point.at) * body.height_m))
    return np.stack(found, axis=1)


def surface_codes(part: str) -> tuple[int, int, str]:
    """DensePose's numbers of a part: of its back (or right, or inner) and front (left, outer) half; and how it is cut.

    "z": into back and front; "x": into a half to the body's left, which is the second, and one to its right; "": not.
    """
    side, _, rest = part.partition("_")
    right = int(side == "right")
    limbs = {
        "hand": (4 - right, 4 - right, ""),
        "foot": (5 + right, 5 + right, ""),
        "thigh": (8 - right, 10 - right, "z"),
        "shank": (12 - right, 14 - right, "z"),
        "upper_arm": (15 + right, 17 + right, "x"),
        "forearm": (19 + right, 21 + right, "x"),
    }
    if rest in limbs:
        return limbs[rest]
    return (1, 2, "z") if part in ("pelvis", "chest", "neck") else (23, 24, "x")


def densepose(part: str, uv: np.ndarray) -> np.ndarray:
    """I, U * 255, V * 255, uint8 [3, n], at texture coordinates [2, n] of a part."""
    first, second, cut = surface_codes(part)
    if cut == "z":
        around = uv[0]  # 0.5 is the front
    elif cut == "x":
        around = (uv[0] - 0.25) % 1.0  # 0.5 is to the body's left
        if part.startswith("right_"):
            around = (around + 0.5) % 1.0 if "arm" in part else around  # 0.5 is outside
    else:
        return np.stack([np.full_like(uv[0], first), *(np.rint(np.clip(uv, 0, 1) * 255))]).astype(np.uint8)
    in_second = np.abs(around - 0.5) < 0.25
    across = np.where(in_second, around - 0.25, (around + 0.25) % 1.0) * 2.0
    coded = np.rint(np.clip(np.stack([across, uv[1]]), 0, 1) * 255)
    return np.concatenate([np.where(in_second, second, first)[None], coded]).astype(np.uint8)

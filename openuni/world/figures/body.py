"""A person: proportions, a walk, and the positions of all parts and key points over time.

The body is a tree of rigid parts (`PARTS`), each a `Limb` with its own axes: y along the bone, z to the front of the
body, x to its left. `posture` computes all of them for many times at once. Lengths are relative to the body height,
after averages of anthropometric tables.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from openuni.world.figures.gait import Walk, apply, foot, pelvis, turned
from openuni.world.figures.limb import Limb
from openuni.world.rendering.pose import Pose

HIP_ASIDE, SHOULDER_ASIDE = 0.052, 0.107
HIPS_M_PER_M = 0.512  # height of the hips while walking, slightly less than the leg length
THIGH, SHANK, FOOT = 0.245, 0.246, 0.152
UPPER_ARM, FOREARM, HAND = 0.172, 0.148, 0.095
CHEST_UP, NECK_UP, SHOULDER_UP, HEAD_UP = 0.10, 0.325, 0.288, 0.405  # above the hips, along the spine
ARM_SWING_RAD, ELBOW_RAD = 0.5, 0.35


class Part(NamedTuple):
    """One rigid part, in shares of the body's height: radii of the lower and upper end, half length, flatness."""

    low: float
    high: float
    half: float
    flat_x: float = 1.0
    flat_z: float = 1.0


def _both(name: str, part: Part) -> dict[str, Part]:
    return {f"left_{name}": part, f"right_{name}": part}


PARTS: dict[str, Part] = {
    "pelvis": Part(0.062, 0.060, 0.020, 1.38, 1.02),
    "chest": Part(0.057, 0.070, 0.072, 1.36, 0.95),
    "neck": Part(0.032, 0.030, 0.035),
    "head": Part(0.038, 0.055, 0.026, 0.86, 1.0),
    "hair": Part(0.056, 0.057, 0.006, 0.93, 1.0),
    "nose": Part(0.008, 0.005, 0.010),
    "left_eye": Part(0.0075, 0.007, 0.001),
    "right_eye": Part(0.0075, 0.007, 0.001),
    **_both("ear", Part(0.009, 0.012, 0.006, 0.5, 0.8)),
    **_both("upper_arm", Part(0.024, 0.031, UPPER_ARM / 2.0)),
    **_both("forearm", Part(0.0165, 0.024, FOREARM / 2.0)),
    **_both("hand", Part(0.018, 0.019, HAND / 2.0 - 0.018, 0.6, 1.0)),
    **_both("thigh", Part(0.036, 0.056, THIGH / 2.0)),
    **_both("shank", Part(0.023, 0.036, SHANK / 2.0)),
    **_both("foot", Part(0.026, 0.019, FOOT / 2.0 - 0.022, 1.0, 0.85)),
}


@dataclass(frozen=True)
class Body:
    """A person of `height_m` who walks. `build` widens all parts (1 is average)."""

    instance: int
    height_m: float
    build: float
    walk: Walk

    def limb(self, part: str) -> Limb:
        """The shape of a part."""
        low, high, half, flat_x, flat_z = PARTS[part]
        small = part in ("nose", "left_eye", "right_eye", "left_ear", "right_ear", "head", "hair")
        wide = self.height_m * (1.0 if small else self.build)
        return Limb(low * wide, high * wide, half * self.height_m, flat_x, flat_z)


@dataclass(frozen=True)
class PartPath:
    """The path of one part of a body."""

    body: Body
    part: str

    def pose(self, time_s: float) -> Pose:
        """Where the part is at `time_s` seconds after the first frame."""
        rotations, middles = _posture_at(self.body, float(time_s))[self.part]
        return Pose(rotations[0], middles[0])


Placed = dict[str, tuple[np.ndarray, np.ndarray]]


@lru_cache(maxsize=256)  # requested part by part for one instant
def _posture_at(body: Body, time_s: float) -> Placed:
    return posture(body, np.array([time_s]))


def posture(body: Body, times_s: np.ndarray) -> Placed:
    """Per part: rotations float64 [T, 3, 3] and middles [T, 3], world."""
    height, walk = body.height_m, body.walk
    moves = 1.0 if walk.speed_m_per_s else 0.0
    cycle = 2.0 * math.pi * walk.cycle(times_s)
    # standing persons breathe and sway
    idle = 0.05 * (1.0 - moves) * np.sin(1.3 * np.asarray(times_s) + walk.phase * 6.0)
    heading = turned(walk.heading(walk.travelled(times_s)), 1)
    hips = pelvis(walk, times_s, height, (HIPS_M_PER_M if moves else 0.536) * height)
    hip_frame = heading @ turned(-0.09 * moves * np.cos(cycle), 1)
    spine = heading @ turned(0.12 * moves * np.cos(cycle) + idle, 1) @ turned(np.full_like(cycle, 0.045 * moves), 0)
    head_frame = heading @ turned(0.05 * np.sin(cycle / 2.0) * moves + 2.0 * idle, 1)
    placed: Placed = {
        "pelvis": (hip_frame, hips + apply(hip_frame, np.array([0.0, 0.028, -0.004]) * height)),
        "chest": (spine, hips + apply(spine, np.array([0.0, CHEST_UP + 0.088, 0.0]) * height)),
    }
    neck = hips + apply(spine, np.array([0.0, NECK_UP, 0.004]) * height)
    placed["neck"] = (spine, neck)
    _place_head(
        placed, head_frame, neck + apply(head_frame, np.array([0.0, HEAD_UP - NECK_UP, 0.012]) * height), height
    )
    for side, sign in (("left", 1.0), ("right", -1.0)):
        late = 0.0 if sign > 0 else 0.5
        hip = hips + apply(hip_frame, np.array([sign * HIP_ASIDE * height, 0.0, 0.0]))
        _place_leg(placed, body, side, hip, foot(walk, times_s, height, sign * 0.045 * height, late))
        shoulder = hips + apply(spine, np.array([sign * SHOULDER_ASIDE * body.build, SHOULDER_UP, 0.0]) * height)
        back = moves * ARM_SWING_RAD * sign * np.cos(cycle) - 0.06 + idle
        _place_arm(
            placed, body, side, shoulder, spine @ turned(np.full_like(cycle, sign * 0.13), 2) @ turned(back, 0), back
        )
    return placed


def _place_head(placed: Placed, frame: np.ndarray, middle: np.ndarray, height_m: float) -> None:
    """Place the head and its parts at their offsets from its centre (`FEATURES`, relative to the body height)."""
    for part, at in FEATURES.items():
        placed[part] = (frame, middle + apply(frame, np.array(at) * height_m))


FEATURES = {
    "head": (0.0, 0.0, 0.0),
    "hair": (0.0, 0.030, -0.011),
    "nose": (0.0, -0.002, 0.0485),
    "left_eye": (0.0185, 0.013, 0.0425),
    "right_eye": (-0.0185, 0.013, 0.0425),
    "left_ear": (0.0425, -0.001, -0.002),
    "right_ear": (-0.0425, -0.001, -0.002),
}


def _place_arm(
    placed: Placed, body: Body, side: str, shoulder: np.ndarray, frame: np.ndarray, back_rad: np.ndarray
) -> None:
    """Place an arm that hangs from the shoulder; `back_rad`: backward swing, which stretches the elbow."""
    height = body.height_m
    elbow = shoulder + apply(frame, np.array([0.0, -UPPER_ARM * height, 0.0]))
    bend = turned(-(ELBOW_RAD - 0.45 * back_rad * (1.0 if body.walk.speed_m_per_s else 0.0)), 0)
    lower = frame @ bend
    wrist = elbow + apply(lower, np.array([0.0, -FOREARM * height, 0.0]))
    placed[f"{side}_upper_arm"] = (frame, (shoulder + elbow) / 2.0)
    placed[f"{side}_forearm"] = (lower, (elbow + wrist) / 2.0)
    placed[f"{side}_hand"] = (lower, wrist + apply(lower, np.array([0.0, -HAND / 2.0 * height, 0.0])))


def _place_leg(placed: Placed, body: Body, side: str, hip: np.ndarray, stand: tuple[np.ndarray, np.ndarray]) -> None:
    """Place a leg of two bones from hip to ankle, with the knee in front."""
    height = body.height_m
    ankle, foot_frame = stand
    thigh, shank = THIGH * height, SHANK * height
    down = ankle - hip
    length = np.linalg.norm(down, axis=-1, keepdims=True)
    reach = np.minimum(length, 0.9995 * (thigh + shank))
    down /= length
    ankle = hip + down * reach  # if the leg is too short, the foot follows
    left = foot_frame[..., 0]
    ahead = np.cross(left, -down)
    ahead /= np.linalg.norm(ahead, axis=-1, keepdims=True)
    along = (thigh**2 - shank**2 + reach**2) / (2.0 * reach)
    knee = hip + down * along + ahead * np.sqrt(np.maximum(thigh**2 - along**2, 0.0))
    for part, top, bottom in ((f"{side}_thigh", hip, knee), (f"{side}_shank", knee, ankle)):
        up = (top - bottom) / np.linalg.norm(top - bottom, axis=-1, keepdims=True)
        front = np.cross(left, up)
        front /= np.linalg.norm(front, axis=-1, keepdims=True)
        placed[part] = (np.stack([np.cross(up, front), up, front], axis=-1), (top + bottom) / 2.0)
    # a foot's y axis runs from heel to toes, its z axis down
    middle = ankle + apply(foot_frame, np.array([0.0, -0.026, FOOT / 2.0 - 0.042]) * height)
    placed[f"{side}_foot"] = (foot_frame @ turned(np.full(len(hip), math.pi / 2.0), 0), middle)

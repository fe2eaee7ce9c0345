"""A person's 133 key points, made up: for tests that need a skeleton that looks like one."""

import numpy as np

# x, y in heads (the head's height is 1, the neck at 0, 0), in COCO's order: face, shoulders, elbows, wrists, hips, ...
BODY = [
    (0.0, -0.5), (0.15, -0.6), (-0.15, -0.6), (0.3, -0.55), (-0.3, -0.55), (0.8, 0.1), (-0.8, 0.1), (1.2, 1.2),
    (-1.2, 1.2), (1.6, 2.2), (-1.6, 2.2), (0.5, 2.6), (-0.5, 2.6), (0.6, 4.4), (-0.6, 4.4), (0.6, 6.2), (-0.6, 6.2),
]  # fmt: skip
FEET = [(0.8, 6.5), (0.9, 6.4), (0.5, 6.4), (-0.8, 6.5), (-0.9, 6.4), (-0.5, 6.4)]


def standing(neck_px: tuple[float, float], head_px: float) -> np.ndarray:
    """float32 [133, 3] of a person who stands upright and faces the camera; all points are there, confidence 1."""
    turn = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    face = np.stack([0.3 * np.sin(turn), -0.5 + 0.4 * np.cos(turn)], axis=1)
    hand = [(0.0, 0.0)] + [((finger - 2) * 0.05 * joint, 0.12 * joint) for finger in range(5) for joint in range(1, 5)]
    left, right = np.array(hand) + BODY[9], np.array(hand) + BODY[10]
    places = np.concatenate([BODY, FEET, face, left, right]) * head_px + neck_px
    return np.concatenate([places, np.ones((133, 1))], axis=1).astype(np.float32)

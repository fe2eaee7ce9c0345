"""Films cut together on the spot: textured scenes under a moving camera, joined by cuts, dissolves and fades."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import cv2
import numpy as np

from openuni.shots.shot_detector import ShotDetector, Timeline, Transition

WIDTH_PX, HEIGHT_PX = 128, 72
GRADUAL_FRAMES = (8, 30)  # of a dissolve, and of a fade less its black frames
GRAIN = np.random.default_rng(0).normal(0, 2, (16, HEIGHT_PX, WIDTH_PX, 3)).astype(np.float32)  # of the film stock


class Joint(NamedTuple):
    """What joins two shots: the new one alone begins at frame `stop`, the old one alone ends before `start`."""

    start: int
    stop: int
    kind: str  # hard, dissolve, fade


class Scene:
    """A shot without end: a camera pans, zooms and shakes over a painted plane on which things move."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.plane = _painting(rng, 640, 360)
        self.place = rng.uniform(0.25, 0.75, 2) * (640, 360)
        self.velocity = rng.normal(0, rng.choice([0.0, 0.3, 0.8]), 2)  # plane pixels per frame
        self.zoom, self.zoom_rate = rng.uniform(0.8, 1.6), 1 + rng.choice([0, 0, 0.004, -0.003])
        self.shake = rng.choice([0.0, 0.0, 0.6])
        self.things = [_Thing(rng) for _ in range(rng.integers(0, 4))]

    def frame(self) -> np.ndarray:
        """The next picture, float32 [H, W, 3], 0..255."""
        self.place = self.place + self.velocity
        self.zoom = float(np.clip(self.zoom * self.zoom_rate, 0.7, 2.5))
        x, y = self.place + self.rng.normal(0, self.shake, 2)
        matrix = np.array([[1 / self.zoom, 0, x - 64 / self.zoom], [0, 1 / self.zoom, y - 36 / self.zoom]], np.float32)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        image = cv2.warpAffine(self.plane, matrix, (WIDTH_PX, HEIGHT_PX), flags=flags, borderMode=cv2.BORDER_REFLECT)
        for thing in self.things:
            thing.draw(image)
        return image + GRAIN[self.rng.integers(len(GRAIN))]


class _Thing:
    """A disc that wanders, and turns back at the picture's edges."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.place = rng.uniform(0, 1, 2) * (WIDTH_PX, HEIGHT_PX)
        self.velocity = rng.normal(0, 1.2, 2)
        self.radius_px = int(rng.integers(4, 16))
        self.colour = tuple(rng.uniform(0, 255, 3))

    def draw(self, image: np.ndarray) -> None:
        self.place = self.place + self.velocity
        outside = (self.place < 0) | (self.place > (WIDTH_PX, HEIGHT_PX))
        self.velocity = np.where(outside, -self.velocity, self.velocity)
        cv2.circle(image, tuple(int(v) for v in self.place), self.radius_px, self.colour, -1, cv2.LINE_AA)


def _painting(rng: np.random.Generator, width_px: int, height_px: int) -> np.ndarray:
    """float32 [height_px, width_px, 3]: clouds of many sizes in a scene's own colours, with hard-edged patches."""
    image = np.zeros((height_px, width_px, 3), np.float32)
    for size in (3, 6, 12, 24, 48, 96):
        coarse = rng.normal(0, 1, (size * 9 // 16 + 2, size, 3)).astype(np.float32)
        coarse = coarse.mean(axis=-1, keepdims=True) * 1.2 + 0.5 * coarse
        image += cv2.resize(coarse, (width_px, height_px), interpolation=cv2.INTER_CUBIC) * size**-0.45
    image = image / image.std() * rng.uniform(22, 50) + rng.uniform(60, 170) + rng.normal(0, 20, 3).astype(np.float32)
    for _ in range(rng.integers(5, 25)):
        corner = rng.uniform(0, 1, 2) * (width_px, height_px)
        far = corner + rng.uniform(15, 90, 2)
        colour = tuple(rng.uniform(0, 255, 3))
        cv2.rectangle(image, tuple(map(int, corner)), tuple(map(int, far)), colour, -1)
    return np.clip(image, 0, 255).astype(np.float32)


def film(seed: int, kinds: Sequence[str], flashes: int = 2) -> tuple[np.ndarray, list[Joint]]:
    """uint8 [T, 72, 128, 3] RGB, and the joints between its len(kinds) + 1 shots, each of 45 to 100 frames alone.

    `kinds`: hard, dissolve (8 to 30 frames) or fade (out to black and in again, 8 to 33 frames). `flashes`: in those
    shots that have any.
    """
    rng = np.random.default_rng(seed)
    frames: list[np.ndarray] = []
    joints: list[Joint] = []
    scene = Scene(rng)
    for kind in kinds:
        frames += _alone(scene, rng, flashes)
        following, start = Scene(rng), len(frames)
        if kind != "hard":
            length = int(rng.integers(GRADUAL_FRAMES[0], GRADUAL_FRAMES[1] + 1))
            frames += {"dissolve": _dissolve, "fade": _fade}[kind](scene, following, length)
        joints.append(Joint(start, len(frames), kind))
        scene = following
    frames += _alone(scene, rng, flashes)
    return np.clip(np.stack(frames).round(), 0, 255).astype(np.uint8), joints


def _alone(scene: Scene, rng: np.random.Generator, flashes: int) -> list[np.ndarray]:
    """45 to 100 frames of one scene; at some of them a photographer's flash goes off for one or two frames."""
    frames = [scene.frame() for _ in range(int(rng.integers(45, 101)))]
    for place in rng.integers(5, len(frames) - 7, flashes) if rng.random() < 0.4 else ():
        for number in range(place, place + int(rng.integers(1, 3))):
            frames[number] = frames[number] * 0.4 + 150
    return frames


def _dissolve(old: Scene, new: Scene, length: int) -> list[np.ndarray]:
    shares = (np.arange(length) + 1) / (length + 1)
    return [(1 - share) * old.frame() + share * new.frame() for share in shares.astype(np.float32)]


def _fade(old: Scene, new: Scene, length: int) -> list[np.ndarray]:
    """Out to black, a few black frames, and in again."""
    shares = (np.arange(length // 2) + 1) / (length // 2 + 1)
    black = [np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.float32)] * (length % 4)
    out = [(1 - share) * old.frame() for share in shares.astype(np.float32)]
    return out + black + [share * new.frame() for share in shares.astype(np.float32)]


def find(detector: ShotDetector, frames: np.ndarray, model: Any = None) -> list[Transition]:
    """What a detector says of frames at 25 per second, scaled as it asks, given one by one."""
    height_px, width_px = detector.size_px(*frames.shape[1:3])
    scaled = (cv2.resize(frame, (width_px, height_px), interpolation=cv2.INTER_AREA) for frame in frames)
    return detector.transitions(model, scaled, even(len(frames)))


def even(count: int) -> Timeline:
    """`count` frames at 25 per second."""
    return Timeline(np.arange(count + 1), Fraction(1, 25))


def matched(found: Sequence[Transition], joints: Sequence[Joint], tolerance: int = 5) -> list[tuple[Transition, Joint]]:
    """Pairs whose middles are at most `tolerance` frames apart; each is in one pair at most."""
    left, pairs = list(joints), []
    for one in found:
        for joint in left:
            if abs(one.start + one.stop - joint.start - joint.stop) <= 2 * tolerance:
                pairs.append((one, joint))
                left.remove(joint)
                break
    return pairs


def f1(found: Sequence[Sequence[Transition]], joints: Sequence[Sequence[Joint]]) -> float:
    """F1 over several films."""
    hits = sum(len(matched(*film)) for film in zip(found, joints, strict=True))
    return 2 * hits / (sum(map(len, found)) + sum(map(len, joints)))

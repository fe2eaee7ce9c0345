"""Are the streams of a clip in step? A stream that runs frames ahead or behind looks right frame by frame.

Both checks compare a stream with another one at shifts of up to three frames on small pictures, and weigh what a shift
would gain by how much the stream changes in so many frames by itself: 1 is what a truly shifted stream gains, -1 what
an aligned one loses, 0 is a clip that stands still. So the thresholds mean the same for slow and fast, clean and noisy
clips, and a clip that cannot tell is said to be one. Halves of a clip are judged too: a frame dropped in the middle
puts only what follows out of step.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from manifests.errors import ClipError

REACH = 3  # frames
SHORT_SIDE_PX = 96  # of the pictures that are compared
REFUSED_ABOVE = 0.5  # of the gain that a truly shifted stream has
SURE_ABOVE = 0.25  # of the loss that an aligned stream has at its neighbours
AGREEING = 0.75  # of the frames
MIN_HALF = 6  # frames of a half that is judged by itself
STILL = 1e-4  # change by itself, as a share of the picture's variance, below which nothing can be told
RELATED = 0.05  # correlation of edges below which two streams have nothing in common


class Verdict(NamedTuple):
    """`shift`: frames that the stream runs behind (ahead where negative), 0 when in step. `sure`: motion proves it."""

    shift: int
    sure: bool


def thumbnails(array: np.ndarray) -> np.ndarray:
    """float32 [T, h, w, C] at most 96 px high or wide, by area, from any size; values keep their scale."""
    from manifests.resample import resize_smooth

    height_px, width_px = array.shape[1:3]
    scale = min(1.0, SHORT_SIDE_PX / min(height_px, width_px))
    size = max(1, round(height_px * scale)), max(1, round(width_px * scale))
    images = (resize_smooth(image[None].astype(np.float32, copy=False), *size)[0] for image in array)
    return np.stack(list(images))


def check_edges(array: np.ndarray, picture: np.ndarray, where: Path) -> bool:
    """Hold the edges of a map (float [T, H, W, C]) against the picture's; True where motion proves them in step."""
    verdict = by_edges(thumbnails(array), thumbnails(picture))
    if verdict.shift:
        text = f"{where} is {steps(verdict.shift)}, by its edges and those of rgb"
        raise ClipError(f"{text}. Mend the order of its frames.")
    return verdict.sure


def by_edges(stream: np.ndarray, reference: np.ndarray) -> Verdict:
    """Whether `stream` has its edges where `reference` has them, frame by frame.

    Both float [T, h, w, C] of one size, of any meaning: thumbnails.
    """
    edges, others = _edges(stream), _edges(reference)
    itself = {shift: float(_likeness(edges, edges, shift).mean()) for shift in _shifts(len(edges))}

    def gain(shift: int, span: slice) -> np.ndarray:
        here, there = _likeness(edges, others, 0), _likeness(edges, others, shift)
        return (there - here)[span]

    def full(shift: int, span: slice) -> float:
        related = max(float(_likeness(edges, others, at)[span].mean()) for at in (0, shift))
        return related * (1 - itself[shift]) if related > RELATED and 1 - itself[shift] > STILL else 0.0

    return _judged(len(edges), gain, full)


def by_values(predict: Callable[[int], np.ndarray], truth: np.ndarray) -> Verdict:
    """Whether a prediction fits `truth` (float [T, h, w, C]) best when nothing is shifted.

    `predict(s)`: the same shape, what the stream gives for frame t when it is read s frames later; at the ends any
    frame will do.
    """
    count = len(truth)
    predictions = {shift: predict(shift) for shift in (0, *_shifts(count))}
    variance = float(truth.var()) or 1.0
    reach = _reach(count)
    inner = slice(reach, count - reach)

    def squared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        means: np.ndarray = np.square(one - other, dtype=np.float64).mean(axis=(1, 2, 3))[inner]
        return means

    errors = {shift: squared(values, truth) for shift, values in predictions.items()}
    changes = {shift: squared(values, predictions[0]) for shift, values in predictions.items()}

    def gain(shift: int, span: slice) -> np.ndarray:
        return (errors[0] - errors[shift])[span]

    def full(shift: int, span: slice) -> float:
        change = float(changes[shift][span].mean())
        return change if change > STILL * variance else 0.0

    return _judged(count, gain, full)


def shifted(array: np.ndarray, frames: int) -> np.ndarray:
    """[T, ...] read `frames` later, the first or last frame repeated at the end that is left over."""
    return array[np.clip(np.arange(len(array)) + frames, 0, len(array) - 1)]


def steps(frames: int) -> str:
    """A shift in words."""
    count = abs(frames)
    return f"out of step: {count} frame{'s' * (count > 1)} {'behind' if frames > 0 else 'ahead'}"


def _judged(count: int, gain: Callable[[int, slice], np.ndarray], full: Callable[[int, slice], float]) -> Verdict:
    """The verdict over the whole clip and, where that finds nothing, over its halves."""
    sure = False
    for span in _spans(count - 2 * _reach(count)):
        gains: dict[int, float] = {}  # of the shifts that fit clearly better
        losses = []  # of the two neighbours, as shares
        for shift in _shifts(count):
            gained, whole = gain(shift, span), full(shift, span)
            share = float(gained.mean()) / whole if whole > 0 else 0.0
            if share > REFUSED_ABOVE and (gained > 0).mean() >= AGREEING:
                gains[shift] = float(gained.mean())
            if abs(shift) == 1:
                losses.append(-share)
        if gains:
            return Verdict(max(gains, key=gains.__getitem__), True)
        sure = sure or (bool(losses) and min(losses) > SURE_ABOVE)
    return Verdict(0, sure)


def _spans(count: int) -> Iterator[slice]:
    yield slice(0, count)
    if count >= 2 * MIN_HALF:
        yield slice(0, count // 2)
        yield slice(count // 2, count)


def _reach(count: int) -> int:
    return max(0, min(REACH, (count - 2) // 2))


def _shifts(count: int) -> list[int]:
    reach = _reach(count)
    return [shift for shift in range(-reach, reach + 1) if shift]


def _edges(pictures: np.ndarray) -> np.ndarray:
    """float32 [T, n]: strength of the edges, its mean taken off, of length 1 in every frame (0 where there are none).

    The root of the gradient: a few strong edges do not outweigh all others.
    """
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    strength = np.sqrt(np.hypot(across, down).sum(axis=-1)).reshape(len(pictures), -1)
    strength -= strength.mean(axis=1, keepdims=True)
    length = np.linalg.norm(strength, axis=1, keepdims=True)
    return np.divide(strength, length, out=np.zeros_like(strength), where=length > 0)


def _likeness(edges: np.ndarray, others: np.ndarray, shift: int) -> np.ndarray:
    """[frames]: correlation of `edges` at t + shift with `others` at t, over the t that every shift has."""
    reach = _reach(len(edges))
    inner = np.arange(reach, len(edges) - reach)
    correlation: np.ndarray = np.einsum("tn,tn->t", edges[inner + shift], others[inner])
    return correlation

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
VALUES_ABOVE = 0.5  # of the gain that a truly shifted stream has; above that it is refused
STRUCTURE_ABOVE = 0.5  # the same where the gain is only estimated
SURE_SHARE = 0.5  # of that limit: what an aligned stream must lose at both neighbours
AGREEING = 0.75  # of the frames
FEWEST_BY_VALUES = 2  # frames to judge by
FEWEST_BY_STRUCTURE = 7
MIN_HALF = 6  # frames of a half that is judged by itself
STILL = 1e-4  # change by itself, as a share of the variance, below which nothing can be told
SLOW = 0.03  # the same of what the picture explains of a map: less is within its own noise
HALF_ABOVE = 0.8  # a half, with fewer frames, must be clearer
BLOCK_PX = 8
RIDGE = 1e-4  # of the variance: blocks without any structure explain nothing


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


def by_structure(stream: np.ndarray, reference: np.ndarray) -> Verdict:
    """Whether `reference` explains `stream` best when nothing is shifted.

    Both float [T, h, w, C] of one size, of any meaning: thumbnails. In small blocks of every frame the stream is taken
    for a linear function of the reference: surfaces that meet in a map meet in the picture too, at the same pixels.
    Texture, which only the picture has, explains nothing and costs nothing.
    """
    target, given = _blocks(stream), _blocks(reference)
    reach = _reach(len(target), FEWEST_BY_STRUCTURE)
    inner = np.arange(reach, len(target) - reach)
    steady = target[inner]
    shares = {shift: _explained(given[inner], target[inner + shift]) for shift in (0, *_shifts(reach))}
    kept = {shift: _explained(target[inner + shift], steady) for shift in _shifts(reach)}

    def gain(shift: int, span: slice) -> np.ndarray:
        return (shares[shift] - shares[0])[span]

    def full(shift: int, span: slice) -> float:
        whole = ((1 - kept[shift]) * np.maximum(shares[shift], shares[0]))[span]
        return float(whole.mean()) if len(whole) and float(whole.mean()) > SLOW else 0.0

    return _judged(_Margin(len(inner), reach, STRUCTURE_ABOVE), gain, full)


def check_structure(array: np.ndarray, picture: np.ndarray, where: Path) -> bool:
    """Hold a map (float [T, H, W, C]) against the picture; True where motion proves them in step."""
    verdict = by_structure(thumbnails(array), thumbnails(picture))
    if verdict.shift:
        text = f"{where} is {steps(verdict.shift)}, by where its surfaces and those of rgb meet"
        raise ClipError(f"{text}. Mend the order of its frames.")
    return verdict.sure


def by_values(predict: Callable[[int], np.ndarray], truth: np.ndarray) -> Verdict:
    """Whether a prediction fits `truth` (float [T, h, w, C]) best when nothing is shifted.

    `predict(s)`: the same shape, what the stream gives for frame t when it is read s frames later; at the ends any
    frame will do.
    """
    count = len(truth)
    reach = _reach(count, FEWEST_BY_VALUES)
    predictions = {shift: predict(shift) for shift in (0, *_shifts(reach))}
    variance = float(truth.var()) or 1.0
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

    return _judged(_Margin(count - 2 * reach, reach, VALUES_ABOVE), gain, full)


def shifted(array: np.ndarray, frames: int) -> np.ndarray:
    """[T, ...] read `frames` later, the first or last frame repeated at the end that is left over."""
    return array[np.clip(np.arange(len(array)) + frames, 0, len(array) - 1)]


def steps(frames: int) -> str:
    """A shift in words."""
    count = abs(frames)
    return f"out of step: {count} frame{'s' * (count > 1)} {'behind' if frames > 0 else 'ahead'}"


class _Margin(NamedTuple):
    """What is judged."""

    frames: int
    reach: int
    above: float  # the share of a true shift's gain that is refused


def _judged(margin: _Margin, gain: Callable[[int, slice], np.ndarray], full: Callable[[int, slice], float]) -> Verdict:
    """The verdict over the whole clip and, where that finds nothing, over its halves."""
    sure = False
    for span in _spans(margin.frames):
        gains: dict[int, float] = {}  # of the shifts that fit clearly better
        losses = []  # of the two neighbours, as shares
        limit = margin.above if span == slice(0, margin.frames) else max(margin.above, HALF_ABOVE)
        for shift in _shifts(margin.reach):
            gained, whole = gain(shift, span), full(shift, span)
            share = float(gained.mean()) / whole if whole > 0 else 0.0
            if share > limit and (gained > 0).mean() >= AGREEING:
                gains[shift] = float(gained.mean())
            if abs(shift) == 1:
                losses.append(-share)
        if gains:
            return Verdict(max(gains, key=gains.__getitem__), True)
        sure = sure or (bool(losses) and min(losses) > SURE_SHARE * margin.above)
    return Verdict(0, sure)


def _spans(count: int) -> Iterator[slice]:
    yield slice(0, count)
    if count >= 2 * MIN_HALF:
        yield slice(0, count // 2)
        yield slice(count // 2, count)


def _reach(count: int, fewest: int) -> int:
    """Frames of the largest shift that leaves `fewest` frames to judge by."""
    return max(0, min(REACH, (count - fewest) // 2))


def _shifts(reach: int) -> list[int]:
    return [shift for shift in range(-reach, reach + 1) if shift]


def _blocks(pictures: np.ndarray) -> np.ndarray:
    """float32 [T, blocks, pixels, C] of spread 1, each block's mean taken off; leftovers at the sides are cut."""
    count, height_px, width_px, channels = pictures.shape
    rows, columns = max(1, height_px // BLOCK_PX), max(1, width_px // BLOCK_PX)
    tall, wide = min(height_px, BLOCK_PX), min(width_px, BLOCK_PX)
    cut = pictures[:, : rows * tall, : columns * wide].astype(np.float32)
    cut = cut / (float(cut.std()) or 1.0)
    parts = cut.reshape(count, rows, tall, columns, wide, channels).transpose(0, 1, 3, 2, 4, 5)
    parts = parts.reshape(count, rows * columns, tall * wide, channels)
    return parts - parts.mean(axis=2, keepdims=True)


def _explained(given: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[frames]: share of the target's variance, 0..1, that linear functions of `given` explain, block by block."""
    across = given.swapaxes(2, 3)
    squares = (across @ given).astype(np.float64) + RIDGE * given.shape[2] * np.eye(given.shape[-1])
    products = (across @ target).astype(np.float64)
    explained = (products * np.linalg.solve(squares, products)).sum(axis=(1, 2, 3))
    whole = np.square(target, dtype=np.float64).sum(axis=(1, 2, 3))
    return np.divide(explained, whole, out=np.zeros_like(explained), where=whole > 0)

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

from openuni.manifests.errors import ClipError

MAX_SHIFT_FRAMES = 3  # frames
SHORT_SIDE_PX = 96  # of the pictures that are compared
VALUES_ABOVE = 0.5  # of the gain that a truly shifted stream has; above that it is refused
STRUCTURE_ABOVE = 0.5  # the same where the gain is only estimated
SURE_SHARE = 0.5  # of that limit: what an aligned stream must lose at both neighbours
AGREEING = 0.75  # of the frames
MIN_FRAMES_BY_VALUES = 2  # frames to judge by
MIN_FRAMES_BY_STRUCTURE = 7
MIN_HALF = 6  # frames of a half that is judged by itself
STILL = 1e-4  # change by itself, as a share of the variance, below which nothing can be told
SLOW = 0.03  # the same of what the picture explains of a map: less is within its own noise
HALF_ABOVE = 0.8  # a half, with fewer frames, must be clearer
BLOCK_PX = 8
RIDGE = 1e-4  # of the variance: blocks without any structure explain nothing


class AlignmentResult(NamedTuple):
    """`shift`: frames that the stream runs behind (ahead where negative), 0 when in step. `sure`: motion proves it."""

    shift: int
    sure: bool


def thumbnails(array: np.ndarray) -> np.ndarray:
    """float32 [T, h, w, C] at most 96 px high or wide, by area, from any size; values keep their scale."""
    from openuni.manifests.arrays.resample import resize_smooth

    count, height_px, width_px, channels = array.shape
    scale = min(1.0, SHORT_SIDE_PX / min(height_px, width_px))
    size = max(1, round(height_px * scale)), max(1, round(width_px * scale))
    out = np.empty((count, *size, channels), np.float32)
    for target, image in zip(out, array, strict=True):
        target[:] = resize_smooth(image[None].astype(np.float32, copy=False), *size)[0]
    return out


def align_by_structure(stream: np.ndarray, reference: np.ndarray) -> AlignmentResult:
    """Whether `reference` explains `stream` best when nothing is shifted.

    Both float [T, h, w, C] of one size, of any meaning: thumbnails. In small blocks of every frame the stream is taken
    for a linear function of the reference: surfaces that meet in a map meet in the picture too, at the same pixels.
    Texture, which only the picture has, explains nothing and costs nothing.
    """
    target, given = _blocks(stream), _blocks(reference)
    frames = target.shape[1]
    reach = _reach(frames, MIN_FRAMES_BY_STRUCTURE)
    basis, own_basis = _whitened(given), _whitened(target)
    energy = np.square(target).sum(axis=(0, 2, 3), dtype=np.float64)
    shares, kept = np.zeros((2, frames - 2 * reach, 2 * reach + 1))  # by frame and shift, from -reach on
    for number in range(len(shares)):
        around = slice(number, number + 2 * reach + 1)
        now = slice(number + reach, number + reach + 1)
        shares[number] = _share(_explained(basis[:, now], target[:, around]), energy[around])
        kept[number] = _share(_explained(own_basis[:, around], target[:, now]), energy[now])

    def gain(shift: int, span: slice) -> np.ndarray:
        return (shares[:, reach + shift] - shares[:, reach])[span]

    def full(shift: int, span: slice) -> float:
        whole = ((1 - kept[:, reach + shift]) * np.maximum(shares[:, reach + shift], shares[:, reach]))[span]
        return float(whole.mean()) if len(whole) and float(whole.mean()) > SLOW else 0.0

    return _judged(_AlignmentLimits(len(shares), reach, STRUCTURE_ABOVE), gain, full)


def check_structure(stream: np.ndarray, picture: np.ndarray, where: Path) -> bool:
    """Hold a map against the picture, both as `thumbnails`; True where motion proves them in step."""
    verdict = align_by_structure(stream, picture)
    if verdict.shift:
        text = f"{where} is {format_shift(verdict.shift)}, by where its surfaces and those of rgb meet"
        raise ClipError(f"{text}. Mend the order of its frames.")
    return verdict.sure


def align_by_values(predict: Callable[[int], np.ndarray], truth: np.ndarray) -> AlignmentResult:
    """Whether a prediction fits `truth` (float [T, h, w, C]) best when nothing is shifted.

    `predict(s)`: the same shape, what the stream gives for frame t when it is read s frames later; at the ends any
    frame will do.
    """
    count = len(truth)
    reach = _reach(count, MIN_FRAMES_BY_VALUES)
    variance = float(truth.var()) or 1.0
    inner = slice(reach, count - reach)
    aligned = predict(0)[inner]
    errors, changes = {0: _squared(aligned, truth[inner])}, {0: np.zeros(len(aligned))}
    for shift in _shifts(reach):
        late = predict(shift)[inner]
        errors[shift], changes[shift] = _squared(late, truth[inner]), _squared(late, aligned)

    def gain(shift: int, span: slice) -> np.ndarray:
        return (errors[0] - errors[shift])[span]

    def full(shift: int, span: slice) -> float:
        change = float(changes[shift][span].mean())
        return change if change > STILL * variance else 0.0

    return _judged(_AlignmentLimits(count - 2 * reach, reach, VALUES_ABOVE), gain, full)


def _squared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """float64 [T]: mean squared difference of the frames."""
    apart = (one - other).reshape(len(one), -1)
    means: np.ndarray = np.vecdot(apart, apart) / np.float64(apart.shape[1])
    return means


def shifted(array: np.ndarray, frames: int) -> np.ndarray:
    """[T, ...] read `frames` later, the first or last frame repeated at the end that is left over."""
    return array[np.clip(np.arange(len(array)) + frames, 0, len(array) - 1)]


def format_shift(frames: int) -> str:
    """A shift in words."""
    count = abs(frames)
    return f"out of step: {count} frame{'s' * (count > 1)} {'behind' if frames > 0 else 'ahead'}"


class _AlignmentLimits(NamedTuple):
    """What is judged."""

    frames: int
    reach: int
    above: float  # the share of a true shift's gain that is refused


def _judged(
    margin: _AlignmentLimits, gain: Callable[[int, slice], np.ndarray], full: Callable[[int, slice], float]
) -> AlignmentResult:
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
            return AlignmentResult(max(gains, key=gains.__getitem__), True)
        sure = sure or (bool(losses) and min(losses) > SURE_SHARE * margin.above)
    return AlignmentResult(0, sure)


def _spans(count: int) -> Iterator[slice]:
    yield slice(0, count)
    if count >= 2 * MIN_HALF:
        yield slice(0, count // 2)
        yield slice(count // 2, count)


def _reach(count: int, fewest: int) -> int:
    """Frames of the largest shift that leaves `fewest` frames to judge by."""
    return max(0, min(MAX_SHIFT_FRAMES, (count - fewest) // 2))


def _shifts(reach: int) -> list[int]:
    return [shift for shift in range(-reach, reach + 1) if shift]


def _blocks(pictures: np.ndarray) -> np.ndarray:
    """float32 [blocks, T, C, pixels] of spread 1, each block's mean taken off; leftovers at the sides are cut."""
    count, height_px, width_px, channels = pictures.shape
    rows, columns = max(1, height_px // BLOCK_PX), max(1, width_px // BLOCK_PX)
    tall, wide = min(height_px, BLOCK_PX), min(width_px, BLOCK_PX)
    cut = pictures[:, : rows * tall, : columns * wide].astype(np.float32, copy=False)
    parts = cut.reshape(count, rows, tall, columns, wide, channels).transpose(1, 3, 0, 5, 2, 4)
    parts = parts.reshape(rows * columns, count, channels, tall * wide) / (float(cut.std()) or 1.0)
    return parts - parts.mean(axis=3, keepdims=True)


def _whitened(blocks: np.ndarray) -> np.ndarray:
    """[blocks, T, C, pixels], in each block of each frame mixed into channels of length 1 that share nothing."""
    squares = (blocks @ blocks.swapaxes(2, 3)).astype(np.float64)
    squares += RIDGE * blocks.shape[3] * np.eye(blocks.shape[2])
    mixing = np.linalg.inv(np.linalg.cholesky(squares)).astype(np.float32)
    return mixing @ blocks


def _explained(given: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[n]: how much of the target's squares linear functions of whitened blocks explain, block by block.

    Both [blocks, 1 or n, C, pixels].
    """
    sizes = given.shape[1], given.shape[2], target.shape[1], target.shape[2]
    given, target = (array.reshape(len(array), -1, array.shape[3]) for array in (given, target))
    squares = np.square(given @ target.swapaxes(1, 2)).sum(axis=0, dtype=np.float64)
    return squares.reshape(sizes).sum(axis=(1, 3)).ravel()


def _share(explained: np.ndarray, energy: np.ndarray) -> np.ndarray:
    return np.divide(explained, energy, out=np.zeros_like(explained), where=energy > 0)

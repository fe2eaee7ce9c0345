"""Temporal alignment of the streams of a clip. A misaligned stream looks correct in every single frame.

Both checks compare a stream with a reference at shifts of up to three frames, on thumbnails. The gain of a shift is
divided by how much the stream itself changes within that many frames: 1 is the gain of a truly shifted stream, -1 the
loss of an aligned one, 0 a static clip. Thresholds therefore hold for slow and fast, clean and noisy clips, and clips
without enough motion are reported as such. The halves of a clip are also tested on their own, because a frame dropped
in the middle shifts only the frames after it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openuni.manifests.errors import ClipError

MAX_SHIFT_FRAMES = 3  # frames
SHORT_SIDE_PX = 96  # of the compared thumbnails
VALUES_THRESHOLD = 0.5  # share of the gain of a truly shifted stream above which a stream is rejected
STRUCTURE_THRESHOLD = 0.5  # the same if the gain is only estimated
SURE_SHARE = 0.5  # of that threshold: minimum loss at shifts of -1 and 1 for confirmed alignment
AGREEING = 0.75  # share of the frames that must agree with a shift
MIN_FRAMES_BY_VALUES = 2  # frames to compare
MIN_FRAMES_BY_STRUCTURE = 7
MIN_HALF = 6  # frames of a half that is tested on its own
STILL = 1e-4  # change, relative to the variance, below which the clip counts as static
SLOW = 0.03  # the same for the explained share of a map: less is noise
HALF_THRESHOLD = 0.8  # threshold for a half, higher because it has fewer frames
BLOCK_PX = 8
RIDGE = 1e-4  # ridge regularization, relative to the variance, so that flat blocks explain nothing


class AlignmentResult(NamedTuple):
    """`shift`: frames by which the stream is behind (negative: ahead), 0 if aligned. `confirmed`: by motion."""

    shift: int
    confirmed: bool


def thumbnails(array: np.ndarray) -> np.ndarray:
    """float32 [T, h, w, C]: frames scaled (by area) to a short side of at most 96 px; values keep their scale."""
    from openuni.manifests.arrays.resample import resize_smooth

    count, height_px, width_px, channels = array.shape
    scale = min(1.0, SHORT_SIDE_PX / min(height_px, width_px))
    size = max(1, round(height_px * scale)), max(1, round(width_px * scale))
    out = np.empty((count, *size, channels), np.float32)
    for target, image in zip(out, array, strict=True):
        target[:] = resize_smooth(image[None].astype(np.float32, copy=False), *size)[0]
    return out


def align_by_structure(stream: np.ndarray, reference: np.ndarray) -> AlignmentResult:
    """The shift at which `reference` explains `stream` best.

    Both are thumbnails, float [T, h, w, C], of one size and any meaning. In small blocks of each frame, the stream is
    fitted as a linear function of the reference: edges in a map are at the same pixels as edges in the picture. Texture
    that only the picture has explains nothing and costs nothing.
    """
    target, reference_blocks = _blocks(stream), _blocks(reference)
    frames = target.shape[1]
    reach = _reach(frames, MIN_FRAMES_BY_STRUCTURE)
    basis, own_basis = _whitened(reference_blocks), _whitened(target)
    energy = np.square(target).sum(axis=(0, 2, 3), dtype=np.float64)
    shares, own_shares = np.zeros((2, frames - 2 * reach, 2 * reach + 1))  # by frame and shift, from -reach on
    for number in range(len(shares)):
        around = slice(number, number + 2 * reach + 1)
        now = slice(number + reach, number + reach + 1)
        shares[number] = _share(_explained(basis[:, now], target[:, around]), energy[around])
        own_shares[number] = _share(_explained(own_basis[:, around], target[:, now]), energy[now])

    def gain(shift: int, span: slice) -> np.ndarray:
        return (shares[:, reach + shift] - shares[:, reach])[span]

    def expected_gain(shift: int, span: slice) -> float:
        possible = ((1 - own_shares[:, reach + shift]) * np.maximum(shares[:, reach + shift], shares[:, reach]))[span]
        return float(possible.mean()) if len(possible) and float(possible.mean()) > SLOW else 0.0

    return _judged(_AlignmentLimits(len(shares), reach, STRUCTURE_THRESHOLD), gain, expected_gain)


def check_structure(stream: np.ndarray, picture: np.ndarray, where: Path) -> bool:
    """Check a map against the picture, both `thumbnails`; True if motion confirms the alignment. Raises `ClipError`."""
    alignment = align_by_structure(stream, picture)
    if alignment.shift:
        text = f"{where} is {format_shift(alignment.shift)}, judged by its edges and those of rgb"
        raise ClipError(f"{text}. Correct the order of its frames.")
    return alignment.confirmed


def align_by_values(predict: Callable[[int], np.ndarray], truth: np.ndarray) -> AlignmentResult:
    """The shift at which a prediction fits `truth` (float [T, h, w, C]) best.

    `predict(s)`: the prediction, of the same shape, if frame t of the stream is read s frames later. Values of frames
    beyond the ends are ignored.
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

    def expected_gain(shift: int, span: slice) -> float:
        change = float(changes[shift][span].mean())
        return change if change > STILL * variance else 0.0

    return _judged(_AlignmentLimits(count - 2 * reach, reach, VALUES_THRESHOLD), gain, expected_gain)


def _squared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean squared difference per frame, float64 [T]."""
    difference = (one - other).reshape(len(one), -1)
    means: np.ndarray = np.vecdot(difference, difference) / np.float64(difference.shape[1])
    return means


def shifted(array: np.ndarray, frames: int) -> np.ndarray:
    """[T, ...] read `frames` later; beyond the ends, the first or last frame is repeated."""
    return array[np.clip(np.arange(len(array)) + frames, 0, len(array) - 1)]


def format_shift(frames: int) -> str:
    """Describe a shift, such as "misaligned: 1 frame behind"."""
    count = abs(frames)
    return f"misaligned: {count} frame{'s' * (count > 1)} {'behind' if frames > 0 else 'ahead'}"


class _AlignmentLimits(NamedTuple):
    """Limits of a test."""

    frames: int
    reach: int
    threshold: float  # share of a true shift's gain above which the stream is rejected


def _judged(
    margin: _AlignmentLimits, gain: Callable[[int, slice], np.ndarray], expected_gain: Callable[[int, slice], float]
) -> AlignmentResult:
    """The result for the whole clip and, if that finds no shift, for its halves."""
    confirmed = False
    for span in _spans(margin.frames):
        gains: dict[int, float] = {}  # of the shifts that fit significantly better
        losses = []  # at shifts of -1 and 1, as shares
        limit = margin.threshold if span == slice(0, margin.frames) else max(margin.threshold, HALF_THRESHOLD)
        for shift in _shifts(margin.reach):
            gained, possible = gain(shift, span), expected_gain(shift, span)
            share = float(gained.mean()) / possible if possible > 0 else 0.0
            if share > limit and (gained > 0).mean() >= AGREEING:
                gains[shift] = float(gained.mean())
            if abs(shift) == 1:
                losses.append(-share)
        if gains:
            return AlignmentResult(max(gains, key=gains.__getitem__), True)
        confirmed = confirmed or (bool(losses) and min(losses) > SURE_SHARE * margin.threshold)
    return AlignmentResult(0, confirmed)


def _spans(count: int) -> Iterator[slice]:
    yield slice(0, count)
    if count >= 2 * MIN_HALF:
        yield slice(0, count // 2)
        yield slice(count // 2, count)


def _reach(count: int, min_frames: int) -> int:
    """The largest shift that leaves `min_frames` frames to compare."""
    return max(0, min(MAX_SHIFT_FRAMES, (count - min_frames) // 2))


def _shifts(reach: int) -> list[int]:
    return [shift for shift in range(-reach, reach + 1) if shift]


def _blocks(pictures: np.ndarray) -> np.ndarray:
    """float32 [blocks, T, C, pixels], each block's mean removed, overall standard deviation 1; rests are cropped."""
    count, height_px, width_px, channels = pictures.shape
    rows, columns = max(1, height_px // BLOCK_PX), max(1, width_px // BLOCK_PX)
    tall, wide = min(height_px, BLOCK_PX), min(width_px, BLOCK_PX)
    cut = pictures[:, : rows * tall, : columns * wide].astype(np.float32, copy=False)
    parts = cut.reshape(count, rows, tall, columns, wide, channels).transpose(1, 3, 0, 5, 2, 4)
    parts = parts.reshape(rows * columns, count, channels, tall * wide) / (float(cut.std()) or 1.0)
    return parts - parts.mean(axis=3, keepdims=True)


def _whitened(blocks: np.ndarray) -> np.ndarray:
    """[blocks, T, C, pixels]: in each block of each frame, channels mixed into orthonormal ones."""
    squares = (blocks @ blocks.swapaxes(2, 3)).astype(np.float64)
    squares += RIDGE * blocks.shape[3] * np.eye(blocks.shape[2])
    mixing = np.linalg.inv(np.linalg.cholesky(squares)).astype(np.float32)
    return mixing @ blocks


def _explained(reference_blocks: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[n]: energy of the target explained by linear functions of whitened blocks, summed over blocks.

    Both are [blocks, 1 or n, C, pixels].
    """
    sizes = reference_blocks.shape[1], reference_blocks.shape[2], target.shape[1], target.shape[2]
    reference_blocks, target = (array.reshape(len(array), -1, array.shape[3]) for array in (reference_blocks, target))
    squares = np.square(reference_blocks @ target.swapaxes(1, 2)).sum(axis=0, dtype=np.float64)
    return squares.reshape(sizes).sum(axis=(1, 3)).ravel()


def _share(explained: np.ndarray, energy: np.ndarray) -> np.ndarray:
    return np.divide(explained, energy, out=np.zeros_like(explained), where=energy > 0)

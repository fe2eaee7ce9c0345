"""Takes the flicker of scale and shift out of depth that was computed frame by frame.

A network for single frames gives every frame a scale and a shift of its own. Between adjacent frames both are found
along the motion: on the pixels that the guide flow can follow, by a robust line through (disparity here, disparity
there). Chained, these lines say what the numbers of every frame mean in terms of the first one. A camera that moves
forward changes them too, and nothing in the numbers tells that from flicker, except that it is smooth in time. So each
frame is brought not to the first frame's scale but to what the frames around it have on average: fast changes go, slow
ones stay as the network gave them. Errors of the chain grow slowly too, so they are not applied either, and need no
anchor.
"""

from typing import NamedTuple

import numpy as np

from openuni.annotators._guide_flow import guide_flow, warp
from openuni.manifests.arrays.resample import resize_smooth
from openuni.manifests.contracts.decoded_clip import DecodedClip

MIN_FOLLOWED_SHARE = 0.05  # of a frame's pixels: on fewer no line is drawn
MAX_SAMPLES = 20_000  # pixels of a pair that the line is drawn through
MIN_CORRELATION = 0.7  # under this the two frames do not show the same depth
MAX_ITERATIONS = 10  # of reweighting
TUKEY = 4.685  # Tukey's biweight: 95 % efficient on normal errors
MAD_TO_STD = 1.4826


class ScaleShift(NamedTuple):
    """value -> scale * value + shift."""

    scale: float
    shift: float


def stabilize_depth(
    clip: DecodedClip, depth: np.ndarray, frames_std: float, *, scale_only: bool
) -> tuple[np.ndarray, float]:
    """Depth without fast changes of scale and shift, and the share of adjacent frames between which both were found.

    `depth`: float32 [T, H, W], disparity, or metres with `scale_only`; what returns has the same shape and is >= 0.
    `frames_std`: standard deviation of the Gaussian over which frames are averaged (a local line, so that steady growth
    is no change). Where two frames cannot be compared (a cut, too little to follow, depth without relief) the chain
    ends, and begins anew behind it.
    """
    lines = _pair_lines(clip, depth, scale_only)
    out = depth.copy()
    start = 0
    for stop in [*(t + 1 for t, line in enumerate(lines) if line is None), len(depth)]:
        chain = np.array(_chained([line for line in lines[start : stop - 1] if line is not None]))
        smooth = _local_lines(len(chain), frames_std) @ chain
        for frame, (scale, shift), (to_scale, to_shift) in zip(out[start:stop], chain, smooth, strict=True):
            if to_scale > 0:
                gain = to_scale / scale
                frame *= np.float32(gain)
                frame += np.float32(to_shift - gain * shift)
        start = stop
    found = sum(line is not None for line in lines) / len(lines) if lines else 1.0
    return np.maximum(out, 0), found


def _pair_lines(clip: DecodedClip, depth: np.ndarray, scale_only: bool) -> list[ScaleShift | None]:
    """From the values of every frame to those of the next, T - 1 of them; None where none was found."""
    flow = guide_flow(clip)
    small = resize_smooth(depth[..., None], *flow.size_px)[..., 0]
    lines: list[ScaleShift | None] = []
    for now, after, forward, valid in zip(small, small[1:], flow.forward, flow.forward_valid, strict=False):
        if valid.mean() < MIN_FOLLOWED_SHARE:
            lines.append(None)
            continue
        every = max(1, int(valid.sum()) // MAX_SAMPLES)
        here, there = now[valid][::every], warp(after, forward)[valid][::every]
        lines.append(_robust_scale(here, there) if scale_only else robust_line(here, there))
    return lines


def _robust_scale(here: np.ndarray, there: np.ndarray) -> ScaleShift | None:
    """Median of the ratios: float [n] twice, above 0."""
    seen = (here > 0) & (there > 0)
    return ScaleShift(float(np.median(there[seen] / here[seen])), 0.0) if seen.any() else None


def robust_line(here: np.ndarray, there: np.ndarray) -> ScaleShift | None:
    """The line there = scale * here + shift through most of the points, float [n] twice; None where there is none.

    Symmetric in both (reduced major axis: errors lie on both sides, and one-sided least squares would shrink the scale
    a little at every step of a chain), and deaf to outliers (Tukey's biweight, begun at medians).
    """
    x, y = here.astype(np.float64), there.astype(np.float64)
    spread = float(np.median(np.abs(x - np.median(x))))
    if spread == 0:
        return None
    scale = float(np.median(np.abs(y - np.median(y)))) / spread
    line, weight = ScaleShift(scale, float(np.median(y) - scale * np.median(x))), np.ones_like(x)
    for _ in range(MAX_ITERATIONS):
        error = np.abs(y - line.scale * x - line.shift)
        reach = TUKEY * MAD_TO_STD * float(np.median(error))
        if reach > 0:
            weight = np.square(np.maximum(0, 1 - np.square(error / reach)))
        else:
            weight = (error == 0).astype(np.float64)  # most points lie on it
        total = weight.sum()
        mean_x, mean_y = float(weight @ x / total), float(weight @ y / total)
        dx, dy = x - mean_x, y - mean_y
        var_x, var_y, both = float(weight @ dx**2), float(weight @ dy**2), float(weight @ (dx * dy))
        if not (both > 0 and both**2 >= MIN_CORRELATION**2 * var_x * var_y):
            return None
        scale = float(np.sqrt(var_y / var_x))
        line = ScaleShift(scale, mean_y - scale * mean_x)
        if reach == 0:
            break
    return line


def _chained(lines: list[ScaleShift]) -> list[ScaleShift]:
    """From the first frame's values to those of each frame."""
    chain = [ScaleShift(1.0, 0.0)]
    for scale, shift in lines:
        chain.append(ScaleShift(scale * chain[-1].scale, scale * chain[-1].shift + shift))
    return chain


def _local_lines(count: int, frames_std: float) -> np.ndarray:
    """float64 [count, count]: rows of weights that give the value at t of a line fitted around t, Gaussian in time."""
    away = np.arange(count)[None, :] - np.arange(count)[:, None]
    weight = np.exp(-0.5 * np.square(away / frames_std))
    zeroth, first, second = (np.sum(weight * away**power, axis=1, keepdims=True) for power in (0, 1, 2))
    if count < 3:
        return np.eye(count)  # a line goes through two points exactly
    rows: np.ndarray = weight * (second - first * away) / (zeroth * second - first**2)
    return rows

"""Remove scale and shift flicker from depth that was predicted frame by frame.

A single-frame network predicts every frame with its own scale and shift. Both are estimated between adjacent frames by
a robust line fit to pairs of disparities along the guide flow, where the flow is valid. Chaining these lines expresses
every frame's values in terms of the first frame's. Forward camera motion changes scale and shift too; it differs from
flicker only in being smooth over time. Each frame is therefore mapped to the local average of scale and shift, not to
the first frame's: fast changes are removed, slow ones are left as predicted. Drift of the chain is slow as well, so it
is not applied either, and no anchor frame is needed.
"""

from typing import NamedTuple

import numpy as np

from openuni.annotators._guide_flow import guide_flow, warp
from openuni.manifests.arrays.resample import resize_smooth
from openuni.manifests.contracts.decoded_clip import DecodedClip

MIN_FOLLOWED_SHARE = 0.05  # minimum fraction of pixels with valid flow for a line fit
MAX_SAMPLES = 20_000  # maximum number of pixels per line fit
MIN_CORRELATION = 0.7  # below this, two frames do not show the same depth
MAX_ITERATIONS = 10  # of iteratively reweighted least squares
TUKEY = 4.685  # Tukey's biweight constant: 95 % efficiency for normal errors
MAD_TO_STD = 1.4826


class ScaleShift(NamedTuple):
    """value -> scale * value + shift."""

    scale: float
    shift: float


def stabilize_depth(
    clip: DecodedClip, depth: np.ndarray, frames_std: float, *, scale_only: bool
) -> tuple[np.ndarray, float]:
    """Depth without fast changes of scale and shift, and the fraction of adjacent frame pairs that could be aligned.

    `depth`: float32 [T, H, W], disparity, or metres with `scale_only`. The result has the same shape and is >= 0.
    `frames_std`: standard deviation of the Gaussian window, frames. The average is a local linear fit, so a linear
    trend is preserved. The chain is interrupted between frames that cannot be compared (a cut, too few pixels with
    valid flow, constant depth) and restarts after them.
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
    """Line fits from every frame's values to the next frame's, T - 1 of them; None where the fit failed."""
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
    """Median ratio of two arrays float [n], over the entries that are positive in both."""
    seen = (here > 0) & (there > 0)
    return ScaleShift(float(np.median(there[seen] / here[seen])), 0.0) if seen.any() else None


def robust_line(here: np.ndarray, there: np.ndarray) -> ScaleShift | None:
    """Robust fit of there = scale * here + shift to two arrays float [n]; None if they are not correlated.

    Reduced major axis regression: both arrays have errors, and ordinary least squares would shrink the scale at every
    step of a chain. Outliers are rejected by Tukey's biweight, initialized with medians.
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
            weight = (error == 0).astype(np.float64)  # exact fit for most points
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
    """Compose line fits: from the first frame's values to those of each frame."""
    chain = [ScaleShift(1.0, 0.0)]
    for scale, shift in lines:
        chain.append(ScaleShift(scale * chain[-1].scale, scale * chain[-1].shift + shift))
    return chain


def _local_lines(count: int, frames_std: float) -> np.ndarray:
    """Weights of a local linear fit, Gaussian in time: float64 [count, count], row t gives the fitted value at t."""
    away = np.arange(count)[None, :] - np.arange(count)[:, None]
    weight = np.exp(-0.5 * np.square(away / frames_std))
    zeroth, first, second = (np.sum(weight * away**power, axis=1, keepdims=True) for power in (0, 1, 2))
    if count < 3:
        return np.eye(count)  # a line fits two points exactly
    rows: np.ndarray = weight * (second - first * away) / (zeroth * second - first**2)
    return rows

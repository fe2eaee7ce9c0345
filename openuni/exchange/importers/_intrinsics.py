"""Albedo, irradiance and normals of rendered datasets: checks of ranges and units, and of their consistency."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from openuni.exchange.importers._alignment import MAX_SHIFT_FRAMES, align_by_values, format_shift, shifted
from openuni.exchange.importers._stream_scan import StreamScan
from openuni.manifests.arrays.srgb import linear_to_srgb, srgb_to_linear
from openuni.manifests.arrays.vectors import vector_lengths
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.irradiance import MAX_VALUE, white_point
from openuni.manifests.video.passthrough import MIN_NORMAL_LENGTH, PixelDecoding

ALBEDO_TOLERANCE = 0.02  # tolerated excess over 0..1 (ringing of render filters), which is clipped
IRRADIANCE_TOLERANCE = 0.001  # tolerated negative values, relative to the clip's maximum
LENGTH_TOLERANCE = 0.005  # rounding of a normal's length at 16 bits
MAX_NON_UNIT_SHARE = 0.1  # maximum share of surface pixels; pixels at edges average several surfaces
AWAY = -0.35  # normals with a lower z do not belong to a visible surface in usual perspectives
AWAY_SHARE = 0.1
MIN_CORRELATION = 0.5  # of albedo x irradiance with the picture
CLEARLY_BETTER = 0.9  # 1 - correlation of a stream that is shifted, relative to that without the shift; chance: 0.98
GAINS = (0.8, 1.25)  # allowed median of linear rgb / (albedo x irradiance)
DARK = 0.02  # pixels with less linear light are excluded from ratios
WHITE = 0.95  # pixels with more linear light are excluded from ratios
OVEREXPOSED_SHARE = 0.9  # share of white values above which the check needs enough other pixels
MIN_PIXEL_SHARE = 0.01  # minimum share of usable pixels in that case
FLAT = 1e-3  # standard deviation of sRGB values below which no correlation is computed


class ProductFit(NamedTuple):
    """How well albedo x irradiance explains the picture."""

    correlation: float | None  # None: the picture is uniform
    gain: float | None  # None: all pixels are dark or white
    aligned_by_motion: bool  # whether motion confirms the temporal alignment


Coding = Literal["linear", "srgb"]


def albedo_decoding(dtype: np.dtype, channels: int, where: Path, coding: Coding) -> PixelDecoding:
    """Linear reflectance, clipped to 0..1. `coding`: of integer levels; floats are linear."""
    check_channels(channels, (3,), where)
    return PixelDecoding(_coded(dtype, coding), lowest=0.0, highest=1.0)


def irradiance_decoding(dtype: np.dtype, channels: int, where: Path, coding: Coding, scale: float) -> PixelDecoding:
    """Linear light, multiplied by `scale`, with three channels."""
    check_channels(channels, (1, 3), where)
    return PixelDecoding(_coded(dtype, coding), scale=scale, lowest=0.0, channels=3 if channels == 1 else 0)


def normal_decoding(
    dtype: np.dtype,
    channels: int,
    where: Path,
    frame: Literal["opengl", "opencv"],
    coding: Literal["auto", "signed", "unit"],
) -> PixelDecoding:
    """Unit vectors, y up, z towards the viewer."""
    check_channels(channels, (3,), where)
    signed = coding == "signed" or (coding == "auto" and dtype.kind == "f")
    if signed and dtype.kind != "f":
        raise ClipError(f'{where}: normal_coding = "signed" requires EXR')
    signs = () if frame == "opengl" else (1, -1, -1)
    return (
        PixelDecoding(unit_length=True, signs=signs)
        if signed
        else PixelDecoding(scale=2.0, offset=-1.0, unit_length=True, signs=signs)
    )


def check_albedo(scan: StreamScan) -> None:
    """See `check_albedo_range`."""
    check_albedo_range(*scan.value_range(), scan.where)


def check_albedo_range(lo: float, hi: float, where: Path) -> None:
    """Reject values outside 0..1 by more than 0.02; the others are clipped later."""
    if lo < -ALBEDO_TOLERANCE or hi > 1 + ALBEDO_TOLERANCE:
        text = f"albedo ranges from {lo:g} to {hi:g}. Allowed: 0 to 1, with a tolerance of {ALBEDO_TOLERANCE}"
        raise ClipError(f"{where}: {text}")


def check_irradiance(scan: StreamScan) -> None:
    """See `check_irradiance_range`."""
    check_irradiance_range(*scan.value_range(), scan.decoding.scale, scan.where)


def check_irradiance_range(lo: float, hi: float, scale: float, where: Path) -> None:
    """Reject irradiance below 0 by more than a thousandth of the maximum; smaller values are set to 0 later.

    `scale`: the factor that the dataset's values were multiplied by.
    """
    if lo < -IRRADIANCE_TOLERANCE * max(hi, scale):
        raise ClipError(f"{where}: irradiance must be >= 0, the minimum is {lo / scale:g}")
    if hi > MAX_VALUE:
        text = f"irradiance reaches {hi:g} after scaling by {scale:g}; the maximum is {MAX_VALUE:g}"
        raise ClipError(f"{where}: {text}. Set a smaller irradiance_scale.")


class WhitePointTracker:
    """Observes irradiance values to compute the white point of its rendering (see `Irradiance`)."""

    def __init__(self) -> None:
        self.brightest: list[np.ndarray] = []

    def __call__(self, values: np.ndarray) -> None:
        """See `observe` of `scan_stream`."""
        brightest = values[..., :1]
        for channel in range(1, values.shape[-1]):
            brightest = np.maximum(brightest, values[..., channel : channel + 1])
        self.brightest.append(brightest)

    def white(self) -> float:
        """The white point of the clip."""
        return white_point(np.stack(self.brightest))


def length_tolerance(scan: StreamScan) -> float:
    """Tolerance for the length of normals: smallest for EXR and 16 bits, larger for 8 bits, largest for videos."""
    return 0.15 if scan.video is not None else 0.02 if scan.dtype == np.uint8 else LENGTH_TOLERANCE


class NormalStatistics:
    """Observes normals: their lengths, and how many face away from the camera."""

    def __init__(self, frame: Literal["opengl", "opencv"]) -> None:
        self.frame = frame
        self.lengths: list[np.ndarray] = []
        self.away = 0

    def __call__(self, values: np.ndarray) -> None:
        """See `observe` of `scan_stream`."""
        self.lengths.append(vector_lengths(values))
        depthward = values[..., 2]
        # scaled by the length, because only the direction matters
        limit = AWAY * self.lengths[-1]
        behind = depthward < limit if self.frame == "opengl" else -depthward < limit
        self.away += int(np.count_nonzero(behind & (self.lengths[-1] >= MIN_NORMAL_LENGTH)))

    def check(self, where: Path, tolerance: float, hint: str = "Normalize them.") -> float:
        """Share of surface pixels whose normals do not have unit length.

        Raises `ClipError` if there are too many, or if too many normals face away. `tolerance`: of lengths; `hint`:
        advice for the error message.
        """
        length = np.stack(self.lengths)
        surface = int(np.count_nonzero(length >= MIN_NORMAL_LENGTH))
        non_unit = int(np.count_nonzero((length >= MIN_NORMAL_LENGTH) & (np.abs(length - 1) > tolerance)))
        if not surface:
            raise ClipError(f"{where}: no pixel has a normal; all vectors are shorter than {MIN_NORMAL_LENGTH}")
        if non_unit > MAX_NON_UNIT_SHARE * surface:
            text = f"{non_unit / surface:.0%} of the normals do not have length 1 within {tolerance}"
            raise ClipError(f"{where}: {text}. Allowed: {MAX_NON_UNIT_SHARE:.0%}. {hint}")
        if self.away > AWAY_SHARE * surface:
            other = "opencv" if self.frame == "opengl" else "opengl"
            text = f"{self.away / surface:.0%} of the normals face away from the camera"
            raise ClipError(
                f'{where}: {text} when read as normal_frame = "{self.frame}". Set "{other}", or bring world-space '
                "normals into the camera's frame."
            )
        return non_unit / surface


def check_channels(channels: int, allowed: tuple[int, ...], where: Path) -> None:
    """Raise `ClipError` for a number of channels that is not allowed."""
    if channels not in allowed:
        raise ClipError(f"{where} has {channels} channels, expected {' or '.join(map(str, allowed))}")


def _coded(dtype: np.dtype, coding: Coding) -> Coding:
    return "linear" if dtype.kind == "f" else coding


def check_product(picture: np.ndarray, colour: np.ndarray, light: np.ndarray, where: Path) -> ProductFit:
    """Check albedo x irradiance (`colour`, `light`: linear) against the picture (sRGB, 0..255), and their alignment.

    All are float32 [T, h, w, 3], as returned by `thumbnails`. Highlights, glass and lamps are only in the picture, so
    the two need to be similar, not equal.
    """
    shown = picture / np.float32(255)
    linear_rgb = srgb_to_linear(shown)
    linear = colour * light
    usable = (linear > DARK) & (linear_rgb > DARK) & (linear_rgb < WHITE)
    over = float((linear_rgb >= WHITE).mean())
    if over > OVEREXPOSED_SHARE and float(usable.mean()) < MIN_PIXEL_SHARE:
        raise ClipError(
            f"{where} is white in {over:.0%} of its values: cannot check albedo x irradiance. Set a lower exposure "
            "(0: automatic for EXR), or render less light. check_product = false disables the check."
        )
    # square roots approximate sRGB, and the root of a product is the product of roots
    roots = np.sqrt(colour), np.sqrt(light), np.sqrt(linear_rgb)
    aligned_by_motion = _check_alignment(*roots, where)
    predicted = linear_to_srgb(np.clip(linear, 0, 1))
    correlation = _correlation(predicted, shown)
    if correlation is not None and correlation < MIN_CORRELATION:
        raise ClipError(
            f"{where.parent}: albedo x irradiance does not explain rgb: correlation {correlation:.2f}, and at most "
            f"{_best_correlation(*roots):.2f} if a stream is shifted; minimum {MIN_CORRELATION}. Check that folders "
            "match, and the codings (albedo_coding, ...). check_product = false disables the check."
        )
    gain = float(np.median(linear_rgb[usable] / linear[usable])) if usable.any() else None
    if gain is not None and not GAINS[0] <= gain <= GAINS[1]:
        raise ClipError(
            f"{where.parent}: rgb is {gain:.3g} times albedo x irradiance in the median. Allowed: {GAINS[0]} to "
            f"{GAINS[1]}. Multiply irradiance_scale by {gain:.3g}."
        )
    return ProductFit(correlation, gain, aligned_by_motion)


def _check_alignment(albedo: np.ndarray, irradiance: np.ndarray, shown: np.ndarray, where: Path) -> bool:
    """Reject a clip that fits better if one of the three streams is shifted; True if motion confirms the alignment.

    A shift counts only if the product then explains the picture, and clearly better than without it. Otherwise the
    streams are not of one scene, and the shift with the smallest error says nothing.
    """
    predictions = _predictions(albedo, irradiance)
    alignments = {stream: align_by_values(predict, shown) for stream, predict in predictions.items()}
    late = {stream: predictions[stream](found.shift) for stream, found in alignments.items() if found.shift}
    fits = {stream: _correlation(prediction, shown) or 0.0 for stream, prediction in late.items()}
    fits = {stream: fit for stream, fit in fits.items() if fit >= MIN_CORRELATION}
    aligned_fit = (_correlation(predictions["rgb"](0), shown) or 0.0) if fits else 0.0
    errors = {
        stream: float(np.abs(late[stream] - shown).mean())
        for stream, fit in fits.items()
        if 1 - fit <= CLEARLY_BETTER * (1 - aligned_fit)
    }
    if fits and not errors:
        raise ClipError(
            f"{where.parent}: albedo x irradiance does not explain rgb: the error is smaller if a stream is shifted, "
            f"but no shift explains rgb better (correlation {max(fits.values()):.2f}, unshifted {aligned_fit:.2f}). "
            "Check that folders match, and the codings (albedo_coding, ...). check_product = false disables the check."
        )
    if errors:
        stream = min(errors, key=errors.__getitem__)
        frames = alignments[stream].shift * (-1 if stream == "rgb" else 1)
        raise ClipError(
            f"{where.parent}: {stream} is {format_shift(frames)}: shifted, albedo x irradiance fits rgb much better. "
            "Correct the order of its frames."
        )
    return all(alignment.confirmed for alignment in alignments.values())


def _predictions(albedo: np.ndarray, irradiance: np.ndarray) -> dict[str, Callable[[int], np.ndarray]]:
    """By stream: the picture that follows if the stream is shifted by a number of frames."""
    unshifted = _product(albedo, irradiance)
    return {
        "albedo": lambda frames: _product(shifted(albedo, frames), irradiance),
        "irradiance": lambda frames: _product(shifted(irradiance, frames), albedo),
        "rgb": lambda frames: shifted(unshifted, frames),
    }


def _best_correlation(albedo: np.ndarray, irradiance: np.ndarray, shown: np.ndarray) -> float:
    """Highest correlation with the picture over all shifts of one stream."""
    shifts = range(-MAX_SHIFT_FRAMES, MAX_SHIFT_FRAMES + 1)
    predictions = _predictions(albedo, irradiance).values()
    return max(_correlation(predict(frames), shown) or 0.0 for predict in predictions for frames in shifts)


def _product(albedo: np.ndarray, irradiance: np.ndarray) -> np.ndarray:
    product = albedo * irradiance
    return np.minimum(product, 1, out=product)


def _correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    spread, other_spread = float(one.std()), float(other.std())
    if min(spread, other_spread) < FLAT:
        return None
    one, other = (array.ravel() - array.mean() for array in (one, other))
    return float(np.dot(one, other)) / (len(one) * spread * other_spread)

"""Albedo, irradiance and normals as rendered sets give them: ranges and units checked, and the three held together."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from openuni.exchange.importers._alignment import align_by_values, format_shift, shifted
from openuni.exchange.importers._stream_scan import StreamScan
from openuni.manifests.arrays.srgb import linear_to_srgb, srgb_to_linear
from openuni.manifests.arrays.vectors import vector_lengths
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.irradiance import MAX_VALUE, white_point
from openuni.manifests.video.passthrough import MIN_NORMAL_LENGTH, PixelDecoding

ALBEDO_TOLERANCE = 0.02  # beyond 0..1: filters of renderers ring; what is within is clipped
IRRADIANCE_TOLERANCE = 0.001  # below 0, of the clip's largest value
LENGTH_TOLERANCE = 0.005  # what 16 bits do to the length of a normal
BENT_SHARE = 0.1  # of the surface's pixels may have another length: edges between surfaces are averages
AWAY = -0.35  # z of a normal that no visible surface has in any usual perspective
AWAY_SHARE = 0.1
SMALLEST_CORRELATION = 0.5  # of albedo x irradiance with the picture
GAINS = (0.8, 1.25)  # of linear rgb over albedo x irradiance
DARK = 0.02  # linear light below which no ratio is taken
WHITE = 0.95  # linear light from which no ratio is taken either
OVEREXPOSED_SHARE = 0.9  # of the picture's values that lie above that: nothing else is left to hold against it
MIN_PIXEL_SHARE = 0.01  # of its values that a ratio must be taken of, then
FLAT = 1e-3  # spread of sRGB values below which there is nothing to correlate


class ProductFit(NamedTuple):
    """How albedo x irradiance explains the picture."""

    correlation: float | None  # None: the picture is flat
    gain: float | None  # None: all is dark or above white
    sure: bool  # that they are in step


Coding = Literal["linear", "srgb"]


def albedo_decoding(dtype: np.dtype, channels: int, where: Path, coding: Coding) -> PixelDecoding:
    """Linear reflectance, clipped to 0..1. `coding`: of levels; floats are linear."""
    check_channels(channels, (3,), where)
    return PixelDecoding(_coded(dtype, coding), lowest=0.0, highest=1.0)


def irradiance_decoding(dtype: np.dtype, channels: int, where: Path, coding: Coding, scale: float) -> PixelDecoding:
    """Linear light, times `scale`, of three channels."""
    check_channels(channels, (1, 3), where)
    return PixelDecoding(_coded(dtype, coding), scale=scale, lowest=0.0, channels=3 if channels == 1 else 0)


def normal_decoding(
    dtype: np.dtype,
    channels: int,
    where: Path,
    frame: Literal["opengl", "opencv"],
    coding: Literal["auto", "signed", "unit"],
) -> PixelDecoding:
    """Vectors of unit length, y up, z to the viewer."""
    check_channels(channels, (3,), where)
    signed = coding == "signed" or (coding == "auto" and dtype.kind == "f")
    if signed and dtype.kind != "f":
        raise ClipError(f'{where} has no negative values: normal_coding = "signed" is for EXR')
    signs = () if frame == "opengl" else (1, -1, -1)
    return (
        PixelDecoding(unit_length=True, signs=signs)
        if signed
        else PixelDecoding(scale=2.0, offset=-1.0, unit_length=True, signs=signs)
    )


def check_albedo(seen: StreamScan) -> None:
    """See `check_albedo_range`."""
    check_albedo_range(*seen.value_range(), seen.where)


def check_albedo_range(lo: float, hi: float, where: Path) -> None:
    """Values beyond 0..1 by more than 0.02 are refused; others are clipped."""
    if lo < -ALBEDO_TOLERANCE or hi > 1 + ALBEDO_TOLERANCE:
        text = f"albedo ranges from {lo:g} to {hi:g}. Allowed: 0 to 1, up to {ALBEDO_TOLERANCE} over"
        raise ClipError(f"{where}: {text}")


def check_irradiance(seen: StreamScan) -> None:
    """See `check_irradiance_range`."""
    check_irradiance_range(*seen.value_range(), seen.reading.scale, seen.where)


def check_irradiance_range(lo: float, hi: float, scale: float, where: Path) -> None:
    """Light below 0 by more than a thousandth of the brightest is refused; other light below 0 is set to 0.

    `scale`: what the set's values were multiplied by.
    """
    if lo < -IRRADIANCE_TOLERANCE * max(hi, scale):
        raise ClipError(f"{where}: irradiance must be >= 0, smallest value is {lo / scale:g}")
    if hi > MAX_VALUE:
        text = f"irradiance reaches {hi:g} after scaling by {scale:g}; storage ends at {MAX_VALUE:g}"
        raise ClipError(f"{where}: {text}: rescale it")


class WhitePointTracker:
    """Watches irradiance: by what it is rendered as white, see `Irradiance`."""

    def __init__(self) -> None:
        self.brightest: list[np.ndarray] = []

    def __call__(self, values: np.ndarray) -> None:
        """See `look`."""
        brightest = values[..., :1]
        for channel in range(1, values.shape[-1]):
            brightest = np.maximum(brightest, values[..., channel : channel + 1])
        self.brightest.append(brightest)

    def white(self) -> float:
        """Of the clip."""
        return white_point(np.stack(self.brightest))


def length_tolerance(seen: StreamScan) -> float:
    """What rounding and compression do to the length of a normal: in EXR and 16 bits, in 8 bits, in videos."""
    return 0.15 if seen.video is not None else 0.02 if seen.dtype == np.uint8 else LENGTH_TOLERANCE


class NormalStatistics:
    """Watches normals: how many there are, of a wrong length, and that face away from the camera."""

    def __init__(self, frame: Literal["opengl", "opencv"]) -> None:
        self.frame = frame
        self.lengths: list[np.ndarray] = []
        self.away = 0

    def __call__(self, values: np.ndarray) -> None:
        """See `look`."""
        self.lengths.append(vector_lengths(values))
        depthward = values[..., 2]
        # of vectors of any length, whose direction counts
        limit = AWAY * self.lengths[-1]
        behind = depthward < limit if self.frame == "opengl" else -depthward < limit
        self.away += int(np.count_nonzero(behind & (self.lengths[-1] >= MIN_NORMAL_LENGTH)))

    def check(self, where: Path, tolerance: float, hint: str = "Normalise them.") -> float:
        """The share of the surface's pixels whose normals had another length than 1; raises `ClipError` if many have,
        or many face away. `tolerance`: of lengths; `hint`: what to do about them.
        """
        length = np.stack(self.lengths)
        surface = int(np.count_nonzero(length >= MIN_NORMAL_LENGTH))
        bent = int(np.count_nonzero((length >= MIN_NORMAL_LENGTH) & (np.abs(length - 1) > tolerance)))
        if not surface:
            raise ClipError(f"{where}: no pixel has a normal; all vectors are shorter than {MIN_NORMAL_LENGTH}")
        if bent > BENT_SHARE * surface:
            text = f"{bent / surface:.0%} of the normals are not of length 1 within {tolerance}"
            raise ClipError(f"{where}: {text}. Allowed: {BENT_SHARE:.0%}. {hint}")
        if self.away > AWAY_SHARE * surface:
            other = "opencv" if self.frame == "opengl" else "opengl"
            text = f"{self.away / surface:.0%} of the normals face away from the camera"
            raise ClipError(
                f'{where}: {text} when read as normal_frame = "{self.frame}". Set "{other}", or bring world-space '
                "normals into the camera's frame."
            )
        return bent / surface


def check_channels(channels: int, allowed: tuple[int, ...], where: Path) -> None:
    """Raise `ClipError` for another number of channels."""
    if channels not in allowed:
        raise ClipError(f"{where} has {channels} channels, needed are {' or '.join(map(str, allowed))}")


def _coded(dtype: np.dtype, coding: Coding) -> Coding:
    return "linear" if dtype.kind == "f" else coding


def check_product(picture: np.ndarray, colour: np.ndarray, light: np.ndarray, where: Path) -> ProductFit:
    """Hold albedo x irradiance (`colour`, `light`: linear) against the picture (sRGB, 0..255), and them in step.

    All float32 [T, h, w, 3], as `thumbnails` gives them. Highlights, glass and lamps are in the picture alone, so the
    two need only resemble.
    """
    shown = picture / np.float32(255)
    given = srgb_to_linear(shown)
    linear = colour * light
    fair = (linear > DARK) & (given > DARK) & (given < WHITE)
    over = float((given >= WHITE).mean())
    if over > OVEREXPOSED_SHARE and float(fair.mean()) < MIN_PIXEL_SHARE:
        raise ClipError(
            f"{where} is white in {over:.0%} of its values: albedo x irradiance cannot be held against it. Set "
            "exposure lower (0 finds one for EXR), or render less light; check_product = false takes the clip as it is."
        )
    # roots stand in for sRGB: they tell dark from bright as evenly, and the root of a product is one of roots
    sure = _check_steps(np.sqrt(colour), np.sqrt(light), np.sqrt(given), where)
    predicted = linear_to_srgb(np.clip(linear, 0, 1))
    correlation = _correlation(predicted, shown)
    if correlation is not None and correlation < SMALLEST_CORRELATION:
        raise ClipError(
            f"{where.parent}: albedo x irradiance does not explain rgb: correlation {correlation:.2f}, needed "
            f"{SMALLEST_CORRELATION}. Check that the folders belong together and the codings (albedo_coding, ...); "
            "check_product = false takes the clip as it is."
        )
    gain = float(np.median(given[fair] / linear[fair])) if fair.any() else None
    if gain is not None and not GAINS[0] <= gain <= GAINS[1]:
        raise ClipError(
            f"{where.parent}: rgb is {gain:.3g} times albedo x irradiance in the median. Allowed: {GAINS[0]} to "
            f"{GAINS[1]}. Set irradiance_scale to {gain:.3g} times what it is."
        )
    return ProductFit(correlation, gain, sure)


def _check_steps(albedo: np.ndarray, irradiance: np.ndarray, shown: np.ndarray, where: Path) -> bool:
    """Refuse a clip that fits when one of the three is shifted; True where motion proves them in step."""
    aligned = _product(albedo, irradiance)
    read_later: dict[str, Callable[[int], np.ndarray]] = {
        "albedo": lambda frames: _product(shifted(albedo, frames), irradiance),
        "irradiance": lambda frames: _product(shifted(irradiance, frames), albedo),
        "rgb": lambda frames: shifted(aligned, frames),
    }
    verdicts = {who: align_by_values(predict, shown) for who, predict in read_later.items()}
    errors = {
        who: float(np.abs(read_later[who](verdict.shift) - shown).mean())
        for who, verdict in verdicts.items()
        if verdict.shift
    }
    if errors:
        who = min(errors, key=errors.__getitem__)
        frames = verdicts[who].shift * (-1 if who == "rgb" else 1)
        raise ClipError(
            f"{where.parent}: {who} is {format_shift(frames)}: albedo x irradiance then explains rgb clearly better. "
            "Mend the order of its frames."
        )
    return all(verdict.sure for verdict in verdicts.values())


def _product(albedo: np.ndarray, irradiance: np.ndarray) -> np.ndarray:
    product = albedo * irradiance
    return np.minimum(product, 1, out=product)


def _correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    spread, other_spread = float(one.std()), float(other.std())
    if min(spread, other_spread) < FLAT:
        return None
    one, other = (array.ravel() - array.mean() for array in (one, other))
    return float(np.dot(one, other)) / (len(one) * spread * other_spread)

"""Albedo, irradiance and normals as rendered sets give them: ranges and units checked, and the three held together."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from manifests.errors import ClipError
from manifests.modalities.albedo import Albedo
from manifests.modalities.irradiance import LARGEST, Irradiance
from manifests.modalities.normal import Normal, lengths, scaled
from manifests.transfer import linear_of, srgb_of
from openuni.importers._alignment import by_values, shifted, steps
from openuni.importers._sequences import Pictures

ALBEDO_TOLERANCE = 0.02  # beyond 0..1: filters of renderers ring; what is within is clipped
IRRADIANCE_TOLERANCE = 0.001  # below 0, of the clip's largest value
BENT_SHARE = 0.1  # of the surface's pixels may have another length: edges between surfaces are averages
ROUNDED = 5e-4  # that the length of a unit vector is off by when rounded to 16-bit floats
NO_SURFACE = 0.25  # a vector shorter than this is no surface
AWAY = -0.35  # z of a normal that no visible surface has in any usual perspective
AWAY_SHARE = 0.1
SMALLEST_CORRELATION = 0.5  # of albedo x irradiance with the picture
GAINS = (0.8, 1.25)  # of linear rgb over albedo x irradiance
DARK = 0.02  # linear light below which no ratio is taken
FLAT = 1e-3  # spread of sRGB values below which there is nothing to correlate


class Fit(NamedTuple):
    """How albedo x irradiance explains the picture."""

    correlation: float | None  # None: the picture is flat
    gain: float | None  # None: all is dark or above white
    sure: bool  # that they are in step


def albedo_of(given: Pictures, values: np.ndarray) -> Albedo:
    """float32 [T, H, W, 3], linear; values beyond 0..1 by more than 0.02 are refused, others clipped."""
    where = given.stream.where
    lo, hi = range_of(values, where, "albedo")
    if lo < -ALBEDO_TOLERANCE or hi > 1 + ALBEDO_TOLERANCE:
        raise ClipError(f"{where}: albedo ranges from {lo:g} to {hi:g}. Allowed: 0 to 1, up to {ALBEDO_TOLERANCE} over")
    return Albedo(np.clip(values, 0, 1) if lo < 0 or hi > 1 else values)


def irradiance_of(given: Pictures, values: np.ndarray, scale: float) -> Irradiance:
    """float32 [T, H, W, 1 or 3], linear, times `scale`."""
    where = given.stream.where
    lo, hi = range_of(values, where, "irradiance")
    if lo < -IRRADIANCE_TOLERANCE * max(hi, 1.0):
        raise ClipError(f"{where}: irradiance must be >= 0, smallest value is {lo:g}")
    if hi * scale > LARGEST:
        raise ClipError(f"{where}: irradiance reaches {hi:g}, times {scale:g}; storage ends at {LARGEST:g}: rescale it")
    array = values.copy() if values is given.array and (lo < 0 or scale != 1.0) else values
    if lo < 0:
        np.maximum(array, 0, out=array)
    if scale != 1.0:
        array *= np.float32(scale)
    return Irradiance(np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array)


def normal_of(
    given: Pictures, frame: Literal["opengl", "opencv"], coding: Literal["auto", "signed", "unit"]
) -> tuple[Normal, float]:
    """Normals of unit length, and the share of the surface's pixels that had another one. `given` may be changed.

    A length may be off by what rounding and compression do: 0.005 in EXR and 16 bits, 0.02 in 8 bits, 0.15 in videos.
    """
    where = given.stream.where
    signed = coding == "signed" or (coding == "auto" and given.is_float)
    out = given.unit()
    range_of(out, where, "normals")
    if signed and not given.is_float:
        raise ClipError(f'{where} has no negative values: normal_coding = "signed" is for EXR')
    tolerance = 0.15 if given.stream.kind == "video" else 0.02 if given.array.dtype == np.uint8 else 0.005
    bent = surface = away = 0
    for image in out:
        if not signed:
            image *= 2
            image -= 1
        length = lengths(image)
        seen = length >= NO_SURFACE
        surface += int(np.count_nonzero(seen))
        bent += int(np.count_nonzero(seen & (np.abs(length - 1) > tolerance)))
        if (seen & (np.abs(length - 1) > ROUNDED)).any() or (~seen & (length > 0)).any():
            image[:] = scaled(image, length, 1.0, NO_SURFACE)
        depthward = image[..., 2] if frame == "opengl" else -image[..., 2]
        away += int(np.count_nonzero(depthward < AWAY))
    if not surface:
        raise ClipError(f"{where}: no pixel has a normal; all vectors are shorter than {NO_SURFACE}")
    if bent > BENT_SHARE * surface:
        hint = 'Normalise them, or set normal_coding ("signed" or "unit") if they are read wrongly'
        text = f"{bent / surface:.0%} of the normals are not of length 1 within {tolerance}"
        raise ClipError(f"{where}: {text}. Allowed: {BENT_SHARE:.0%}. {hint}.")
    if away > AWAY_SHARE * surface:
        other = "opencv" if frame == "opengl" else "opengl"
        text = f"{away / surface:.0%} of the normals face away from the camera"
        raise ClipError(
            f'{where}: {text} when read as normal_frame = "{frame}". Set "{other}", or bring world-space normals into '
            "the camera's frame."
        )
    return Normal(out) if frame == "opengl" else Normal.from_opencv(out), bent / surface


def range_of(images: Iterable[np.ndarray], where: Path, what: str) -> tuple[float, float]:
    """Smallest and largest value of all images; raises `ClipError` where any is NaN or infinite."""
    lo, hi, wrong = math.inf, -math.inf, 0
    for image in images:
        low, high = float(image.min()), float(image.max())
        lo, hi = min(lo, low), max(hi, high)
        if not (math.isfinite(low) and math.isfinite(high)):
            wrong += int(np.count_nonzero(~np.isfinite(image)))
    if wrong:
        raise ClipError(f"{where}: {wrong} values of the {what} are NaN or infinite")
    return lo, hi


def check_product(picture: np.ndarray, colour: np.ndarray, light: np.ndarray, where: Path) -> Fit:
    """Hold albedo x irradiance (`colour`, `light`: linear) against the picture (sRGB, 0..255), and them in step.

    All float32 [T, h, w, 3], as `thumbnails` gives them. Highlights, glass and lamps are in the picture alone, so the
    two need only resemble.
    """
    shown = picture / np.float32(255)
    given = linear_of(shown)
    # roots stand in for sRGB: they tell dark from bright as evenly, and the root of a product is one of roots
    sure = _check_steps(np.sqrt(colour), np.sqrt(light), np.sqrt(given), where)
    linear = colour * light
    predicted = srgb_of(np.clip(linear, 0, 1))
    correlation = _correlation(predicted, shown)
    if correlation is not None and correlation < SMALLEST_CORRELATION:
        raise ClipError(
            f"{where.parent}: albedo x irradiance does not explain rgb: correlation {correlation:.2f}, needed "
            f"{SMALLEST_CORRELATION}. Check that the folders belong together and the codings (albedo_coding, ...); "
            "check_product = false takes the clip as it is."
        )
    fair = (linear > DARK) & (given > DARK) & (given < 0.95)
    gain = float(np.median(given[fair] / linear[fair])) if fair.any() else None
    if gain is not None and not GAINS[0] <= gain <= GAINS[1]:
        raise ClipError(
            f"{where.parent}: rgb is {gain:.3g} times albedo x irradiance in the median. Allowed: {GAINS[0]} to "
            f"{GAINS[1]}. Set irradiance_scale to {gain:.3g} times what it is."
        )
    return Fit(correlation, gain, sure)


def _check_steps(albedo: np.ndarray, irradiance: np.ndarray, shown: np.ndarray, where: Path) -> bool:
    """Refuse a clip that fits when one of the three is shifted; True where motion proves them in step."""
    aligned = _product(albedo, irradiance)
    read_later: dict[str, Callable[[int], np.ndarray]] = {
        "albedo": lambda frames: _product(shifted(albedo, frames), irradiance),
        "irradiance": lambda frames: _product(shifted(irradiance, frames), albedo),
        "rgb": lambda frames: shifted(aligned, frames),
    }
    verdicts = {who: by_values(predict, shown) for who, predict in read_later.items()}
    errors = {
        who: float(np.abs(read_later[who](verdict.shift) - shown).mean())
        for who, verdict in verdicts.items()
        if verdict.shift
    }
    if errors:
        who = min(errors, key=errors.__getitem__)
        frames = verdicts[who].shift * (-1 if who == "rgb" else 1)
        raise ClipError(
            f"{where.parent}: {who} is {steps(frames)}: albedo x irradiance then explains rgb clearly better. "
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

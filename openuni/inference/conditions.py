"""Conditions of `openuni generate`: videos of a modality's rendering, checked to be of that modality."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.contracts.modality import Modality, find_modality, modality_names, read_rendering
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.video.probe import make_clip, probe
from openuni.manifests.video.video_errors import VideoError

RECORD_FILE = "generation.json"  # beside generated files: what was generated, and how
MAX_RECORD_BYTES = 1_000_000
# Mean absolute difference, of 0..1, up to which a video counts as a rendering of a modality. Renderings that went
# through a video codec differ by less than 0.01 from the rendering that is read from them.
MAX_DIFFERENCE = 0.08
PICTURES = ("rgb", "foreground", "background")  # natural pictures, which may stand in for one another
ANY_COLOURS = (*PICTURES, "albedo", "irradiance")  # modalities that every picture can be a rendering of
CHECKED_FRAMES = 3


class Condition(NamedTuple):
    """A condition and the frame rate of its video."""

    signal: Modality
    fps: float


def condition_paths(given: Sequence[str]) -> dict[str, str]:
    """Modality -> video of conditions written as MODALITY=VIDEO."""
    paths: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise OpenUniError(f'--given "{text}": must be MODALITY=VIDEO, such as --given depth=clip.mp4')
        if name in paths:
            raise OpenUniError(f"--given {name} twice: {paths[name]} and {path}. Give one video per modality.")
        paths[name] = path
    return paths


def read_condition(name: str, path: str) -> Condition:
    """Read a video of a modality's rendering: as the modality, or as RGB if its rendering cannot be inverted.

    Raises `OpenUniError` for a file that cannot be read, and for a video that shows another modality.
    """
    what = f"--given {name}={path}"
    _check_record(name, path, what)
    source = str(Path(path).resolve()) if "://" not in path else path
    try:
        info = probe(source)
        frames = decode(make_clip(source, info)).frames
    except VideoError as error:
        raise OpenUniError(f"{what}: {error}") from error
    check_looks(name, frames, what)
    return Condition(read_rendering(name, frames.astype(np.float32) / 255), info.fps)


def check_looks(name: str, frames: np.ndarray, what: str) -> None:
    """Raise `OpenUniError` if frames, uint8 [T, H, W, 3], are not a rendering of the modality, as far as that shows.

    A rendering that is read as its modality and rendered again is itself. Pictures have no such form, and a map of one
    modality can have the form of another (a grey one is a depth map and a matte): these are not found.
    """
    shown = frames[:: max(1, -(-len(frames) // CHECKED_FRAMES))].astype(np.float32) / 255
    own = _difference(name, shown)
    if own is None or own <= MAX_DIFFERENCE:
        return
    others = [(other, _difference(other, shown)) for other in modality_names() if other not in ANY_COLOURS]
    like = [other for other, found in others if found is not None and found <= MAX_DIFFERENCE / 4]
    raise OpenUniError(
        f"{what}: the video is not a rendering of {name}: colours differ by {own:.2f} from the nearest one (of 0..1; "
        f"allowed: {MAX_DIFFERENCE}). It could be: {', '.join(['rgb', *like])}. Pass it as what it is, or a video of "
        f"{name} as OpenUni renders it."
    )


def _difference(name: str, rendering: np.ndarray) -> float | None:
    """Mean absolute difference of a rendering from the one that is read from it; None if renderings cannot be read."""
    modality = find_modality(name)
    if not modality.invertible:
        return None
    try:
        return float(np.abs(modality.from_rgb(rendering).to_rgb() - rendering).mean())
    except ClipError:
        return 1.0


def read_generation(path: Path) -> dict[str, Any] | None:
    """The record of a generation, with "files": a list of names by target; None if it is missing or not a record."""
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            return None
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    files = record.get("files") if isinstance(record, dict) else None
    if not isinstance(files, dict) or not all(isinstance(names, list) for names in files.values()):
        return None
    names = [name for names in files.values() for name in names]
    return record if all(isinstance(name, str) and Path(name).name == name for name in names) else None


def _check_record(name: str, path: str, what: str) -> None:
    """Raise `OpenUniError` if the record beside a generated video names another modality."""
    place = Path(path).parent / RECORD_FILE
    record = read_generation(place) if "://" not in path else None
    files = record["files"] if record is not None else {}
    found = next((key for key, names in files.items() if Path(path).name in names), name)
    if found != name and not {found, name} <= set(PICTURES):
        raise OpenUniError(
            f"{what}: {place} says that this video is {found}, expected {name}. Pass --given {found}={path}, for a "
            f"task whose conditions include {found}."
        )

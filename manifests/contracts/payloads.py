"""Stored maps from elsewhere: constants are checked, and frame count and size are looked at before anything unfolds."""

import json
from typing import Any, get_type_hints

from openuni.manifests.contracts.modality import Modality
from openuni.manifests.errors import ClipError
from openuni.manifests.video.container import Limits
from openuni.manifests.video.passthrough import PassthroughFiles, is_passthrough
from openuni.manifests.video.probe import probe

MAX_ASPECT_ERROR = 0.05  # a map of another shape than the frames belongs to another video


def parse_entry(entry: Any, modality: type[Modality], where: str) -> tuple[str, Any]:
    """File name and constants (JSON values) in a sidecar's entry about a map; nothing in it may point elsewhere.

    Raises `ClipError` unless it is {"file": a plain name, "constants": a table}.
    """
    well_formed = isinstance(entry, dict) and isinstance(entry.get("file"), str)
    if not (well_formed and isinstance(entry.get("constants"), dict)):
        raise ClipError(f'{where}: must be {{"file": "NAME.{modality.suffix}", "constants": {{...}}}}')
    file = entry["file"]
    if file in ("", ".", "..") or any(part in file for part in ("/", "\\", "\0", ":")):
        raise ClipError(f"{where}: file {file!r} must be a plain name of a file beside the video")
    return file, entry["constants"]


def parse_constants(modality: type[Modality], given: Any, where: str) -> Any:
    """An instance of the modality's `constants_type` from JSON values; raises `ClipError` naming its fields.

    Strict: JSON's numbers, texts and lists in the declared fields, no conversion, no NaN, nothing else.
    """
    from pydantic import ConfigDict, TypeAdapter

    adapter = TypeAdapter(modality.constants_type, config=ConfigDict(strict=True, allow_inf_nan=False))
    try:
        return adapter.validate_json(json.dumps(given))
    except ValueError as error:
        needs = ", ".join(get_type_hints(modality.constants_type))
        raise ClipError(f"{where}: constants of {modality.__name__} are {needs}. {error}") from error


def decode_payload(
    modality: type[Modality], data: bytes, given: Any, where: str, frames: int, size_px: tuple[int, int]
) -> Modality:
    """The map that `Modality.encode` made: its bytes and its constants as JSON values.

    `where` names it in errors. `frames`, `size_px` (height, width): of the video it belongs to; a map has as many
    frames and is not larger. Raises `ClipError`.
    """
    constants = parse_constants(modality, given, where)
    height_px, width_px = size_px
    held = _stored_shape(data, modality, frames, where)
    if held is not None and (held[0] != frames or held[1] > height_px or held[2] > width_px):
        raise ClipError(
            f"{where}: the file holds {held[0]} maps of {held[2]} x {held[1]}, the video has "
            f"{frames} frames of {width_px} x {height_px}. Allowed: as many, and not larger."
        )
    try:
        signal = modality.read(data, constants)
    except (ClipError, OSError, ValueError) as error:  # the last two are what FFmpeg's errors derive from
        raise ClipError(f"{where}: cannot decode the file: {error}") from error
    check_shape(signal, where, frames, size_px)
    return signal


def _stored_shape(data: bytes, modality: type[Modality], frames: int, where: str) -> tuple[int, int, int] | None:
    """Frames, height_px and width_px by headers alone; None of files that hold their values as they are."""
    limits = Limits(max_frame_count=frames)
    if is_passthrough(data):
        kept = PassthroughFiles(data, where)
        return kept.frames, *kept.size_px(limits)
    if modality.suffix != "mkv":
        return None
    info = probe(where, limits, data=data)
    return len(info.pts), info.height_px, info.width_px


def check_shape(signal: Modality, where: str, frames: int, size_px: tuple[int, int]) -> None:
    """Raise `ClipError` unless the map has `frames` frames and the shape of pictures of `size_px` (height, width)."""
    held = len(signal.array), *signal.size_px
    check_size(
        held, where, (frames, *size_px), may_be_larger=signal.suffix != "mkv"
    )  # points may be of a larger picture


def check_size(
    held: tuple[int, int, int], where: str, wanted: tuple[int, int, int], *, may_be_larger: bool = False
) -> None:
    """Raise `ClipError` unless maps (frames, height, width) have the frames and the shape of the video's (`wanted`)."""
    (count, map_height_px, map_width_px), (frames, height_px, width_px) = held, wanted
    if count != frames:
        raise ClipError(f"{where}: {count} maps, the video has {frames} frames")
    ratio = (map_width_px / map_height_px) / (width_px / height_px)
    if not 1 - MAX_ASPECT_ERROR < ratio < 1 + MAX_ASPECT_ERROR or (map_width_px > width_px and not may_be_larger):
        sizes = f"maps are {map_width_px} x {map_height_px}, frames {width_px} x {height_px}"
        raise ClipError(f"{where}: {sizes}. Allowed: the frames' aspect ratio, at most their size; else another video.")

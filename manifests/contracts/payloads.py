"""Validation of untrusted stored maps: constants are checked, frame count and size are read before decoding."""

import json
from typing import Any, get_type_hints

from openuni.manifests.contracts.modality import Modality
from openuni.manifests.errors import ClipError
from openuni.manifests.video.container import Limits
from openuni.manifests.video.passthrough import PassthroughFiles, is_passthrough
from openuni.manifests.video.probe import probe

MAX_ASPECT_ERROR = 0.05  # a map with another aspect ratio than the frames belongs to another video


def parse_entry(entry: Any, modality: type[Modality], where: str) -> tuple[str, Any]:
    """File name and constants (JSON values) of a map's entry in a sidecar file; paths to other folders are rejected.

    Raises `ClipError` unless the entry is {"file": plain file name, "constants": object}.
    """
    well_formed = isinstance(entry, dict) and isinstance(entry.get("file"), str)
    if not (well_formed and isinstance(entry.get("constants"), dict)):
        raise ClipError(f'{where}: must be {{"file": "NAME.{modality.suffix}", "constants": {{...}}}}')
    file = entry["file"]
    if file in ("", ".", "..") or any(part in file for part in ("/", "\\", "\0", ":")):
        raise ClipError(f"{where}: file {file!r} must be a plain file name in the video's folder")
    return file, entry["constants"]


def parse_constants(modality: type[Modality], given: Any, where: str) -> Any:
    """Parse JSON values into the modality's `constants_type`. Raises `ClipError` that lists the required fields.

    Strict: the declared fields with JSON values of their type, without conversion, NaN or infinity.
    """
    from pydantic import ConfigDict, TypeAdapter

    adapter = TypeAdapter(modality.constants_type, config=ConfigDict(strict=True, allow_inf_nan=False))
    try:
        return adapter.validate_json(json.dumps(given))
    except ValueError as error:
        fields = ", ".join(get_type_hints(modality.constants_type))
        raise ClipError(f"{where}: constants of {modality.__name__} are {fields}. {error}") from error


def decode_payload(
    modality: type[Modality], data: bytes, given: Any, where: str, frames: int, size_px: tuple[int, int]
) -> Modality:
    """Decode a map that `Modality.encode` wrote, from its file contents and its constants as JSON values.

    `where`: location for error messages. `frames`, `size_px` (height, width): those of the video. The map must have the
    same number of frames and must not be larger. Raises `ClipError`.
    """
    constants = parse_constants(modality, given, where)
    height_px, width_px = size_px
    stored = _stored_shape(data, modality, frames, where)
    if stored is not None and (stored[0] != frames or stored[1] > height_px or stored[2] > width_px):
        raise ClipError(
            f"{where}: the file has {stored[0]} maps of {stored[2]} x {stored[1]}, the video has "
            f"{frames} frames of {width_px} x {height_px}. Allowed: the same number of frames, at most the same size."
        )
    try:
        signal = modality.read(data, constants)
    except (ClipError, OSError, ValueError) as error:  # FFmpeg's errors derive from the last two
        raise ClipError(f"{where}: cannot decode the file: {error}") from error
    check_shape(signal, where, frames, size_px)
    return signal


def _stored_shape(data: bytes, modality: type[Modality], frames: int, where: str) -> tuple[int, int, int] | None:
    """(frames, height_px, width_px) read from headers only; None for tensor files, which have no compressed data."""
    limits = Limits(max_frame_count=frames)
    if is_passthrough(data):
        files = PassthroughFiles(data, where)
        return files.frames, *files.size_px(limits)
    if modality.suffix != "mkv":
        return None
    info = probe(where, limits, data=data)
    return len(info.pts), info.height_px, info.width_px


def check_shape(signal: Modality, where: str, frames: int, size_px: tuple[int, int]) -> None:
    """Raise `ClipError` unless the map has `frames` frames and the aspect ratio of `size_px` (height, width)."""
    shape = len(signal.array), *signal.size_px
    is_tensor = signal.suffix != "mkv"  # key points may refer to a larger picture
    check_size(shape, where, (frames, *size_px), may_be_larger=is_tensor)


def check_size(
    shape: tuple[int, int, int], where: str, video_shape: tuple[int, int, int], *, may_be_larger: bool = False
) -> None:
    """Raise `ClipError` unless maps fit a video; both shapes are (frames, height, width).

    The frame counts must be equal, the aspect ratios equal within `MAX_ASPECT_ERROR`. `may_be_larger`: whether the maps
    may be larger than the frames.
    """
    (count, map_height_px, map_width_px), (frames, height_px, width_px) = shape, video_shape
    if count != frames:
        raise ClipError(f"{where}: {count} maps, the video has {frames} frames")
    ratio = (map_width_px / map_height_px) / (width_px / height_px)
    if not 1 - MAX_ASPECT_ERROR < ratio < 1 + MAX_ASPECT_ERROR or (map_width_px > width_px and not may_be_larger):
        sizes = f"maps are {map_width_px} x {map_height_px}, frames {width_px} x {height_px}"
        raise ClipError(f"{where}: {sizes}. Allowed: the frames' aspect ratio, at most their size. Check the pairing.")

"""Ground-truth modalities from sidecar files of the source video, imported as is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

from annotated_types import Ge

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.modality import Modality, find_modality
from openuni.manifests.contracts.operator import Annotator
from openuni.manifests.contracts.payloads import decode_payload, parse_entry
from openuni.manifests.corpus.sidecars import read_bounded, sidecar_path
from openuni.manifests.errors import ClipError, OpenUniError, unknown_name
from openuni.manifests.modalities.albedo import Albedo
from openuni.manifests.modalities.alpha import Alpha
from openuni.manifests.modalities.background import Background
from openuni.manifests.modalities.densepose import DensePose
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.foreground import Foreground
from openuni.manifests.modalities.irradiance import Irradiance
from openuni.manifests.modalities.normal import Normal
from openuni.manifests.modalities.segmentation import Segmentation
from openuni.manifests.modalities.skeleton import Skeleton

FORMAT = "openuni-supplied-1"
MAX_JSON_BYTES = 1 << 20


class SuppliedMaps(NamedTuple):
    """Maps from the sidecar files; None for modalities that are not requested or not supplied for this clip."""

    depth: Depth | None
    flow: Flow | None
    segmentation: Segmentation | None
    skeleton: Skeleton | None
    densepose: DensePose | None
    normal: Normal | None
    albedo: Albedo | None
    irradiance: Irradiance | None
    alpha: Alpha | None
    foreground: Foreground | None
    background: Background | None
    supplied_count: Annotated[int, "number of requested modalities that are supplied"]


@dataclass(frozen=True)
class Supplied(Annotator):
    """Modality maps from sidecar files of the source video, as written by `openuni world`.

    The sidecar file of NAME.mp4 is NAME.json: {"format": "openuni-supplied-1", "frames": 48, "modalities": {"depth":
    {"file": "NAME.depth.mkv", "constants": {...}}}}. Each map file has the format of the modality's `encode`; the
    constants are the fields of its `constants_type`. All modalities except rgb (the video itself) are supported. Maps
    must cover the whole video, one per frame, at most at its size. Maps larger than the frames (the recipe's working
    size) are downscaled to them; smaller ones are not resized. Local paths and fsspec URLs are supported.
    """

    modalities: Annotated[tuple[str, ...], "modalities to read (all except rgb), such as depth, normal, alpha"] = (
        "depth",
    )
    max_file_mb: Annotated[int, "maximum file size, MB (10^6 bytes)", Ge(1)] = 2000

    revision: ClassVar[int] = 2
    origin: ClassVar[str] = "sidecar files of the video, format openuni-supplied-1"

    def __post_init__(self) -> None:
        super().__post_init__()
        known = SuppliedMaps._fields[:-1]
        for name in self.modalities:
            if name not in known:
                raise OpenUniError(unknown_name("supplied: modality", name, known))

    def produces(self) -> Sequence[str]:
        """The modalities to read."""
        return self.modalities

    def run(self, model: Any, clip: DecodedClip) -> SuppliedMaps:
        """Read the maps of this clip. Raises `ClipError` for a missing sidecar file, or one that does not match it."""
        source = clip.clip.source
        sidecar = sidecar_path(source, ".json")
        if sidecar is None:
            raise ClipError(
                f"{source}: a sidecar file cannot be named for this source. Supply a video file with a suffix, and "
                "NAME.json beside it."
            )
        entries = _read_sidecar(_read(sidecar, MAX_JSON_BYTES), sidecar, clip)
        folder = sidecar.rpartition("/")[0]
        found: dict[str, Any] = dict.fromkeys(SuppliedMaps._fields[:-1])
        for modality in map(find_modality, self.modalities):
            if modality.name in entries:
                where = f"{sidecar}, modality {modality.name}"
                file, constants = parse_entry(entries[modality.name], modality, where)
                data = _read(f"{folder}/{file}", self.max_file_mb * 10**6)
                size_px = clip.clip.height_px, clip.clip.width_px
                maps = decode_payload(modality, data, constants, where, clip.clip.frame_count, size_px)
                found[modality.name] = _at_most(maps, *clip.frames.shape[1:3])
        return SuppliedMaps(**found, supplied_count=sum(maps is not None for maps in found.values()))


def _read(location: str, max_bytes: int) -> bytes:
    """Content of a file (local path or fsspec URL). Raises `ClipError` if it is missing or too large."""
    try:
        data = read_bounded(location, max_bytes)
    except OSError as error:
        raise ClipError(f"cannot read {location}: {error}") from error
    if data is None:
        raise ClipError(
            f"sidecar file {location} not found. Supply it (format {FORMAT}), or remove the annotator `supplied` from "
            "the recipe of this source."
        )
    return data


def _read_sidecar(data: bytes, where: str, clip: DecodedClip) -> Mapping[str, Any]:
    """The modalities listed in the sidecar file, after validation of format and frame count."""
    try:
        sidecar = json.loads(data)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested too deeply
        raise ClipError(f"{where} is not JSON: {error}") from error
    if not isinstance(sidecar, dict) or sidecar.get("format") != FORMAT:
        given = sidecar.get("format") if isinstance(sidecar, dict) else type(sidecar).__name__
        raise ClipError(f'{where}: format is {given!r}. Allowed: "{FORMAT}". Convert the file or remove it.')
    entries = sidecar.get("modalities")
    if not isinstance(entries, dict):
        raise ClipError(f'{where}: "modalities" must be an object {{name: {{"file": ..., "constants": ...}}}}')
    if sidecar.get("frames") != clip.clip.frame_count:
        raise ClipError(
            f"{where} describes {sidecar.get('frames')!r} frames, the clip has {clip.clip.frame_count}. Supplied maps "
            'must cover the whole video: set `shots = "none"` and a `max_s` above the video\'s duration in [ingest].'
        )
    return entries


def _at_most(maps: Modality, height_px: int, width_px: int) -> Modality:
    """Downscale maps that are larger than the frames to their size."""
    larger = maps.size_px[0] > height_px or maps.size_px[1] > width_px
    return maps.resize(height_px, width_px) if larger else maps

"""Maps of any modality beside a video: stored ones with their constants, held against the video they belong to."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np

from openuni.exchange.importers._alignment import SHORT_SIDE_PX, align_by_structure, format_shift, thumbnails
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.contracts.modality import Modality, Payload, find_modality, modality_names
from openuni.manifests.contracts.payloads import decode_payload, parse_constants, parse_entry
from openuni.manifests.errors import ClipError, unknown_name
from openuni.manifests.modalities.albedo import Albedo
from openuni.manifests.modalities.alpha import Alpha
from openuni.manifests.modalities.background import Background
from openuni.manifests.modalities.densepose import DensePose
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.foreground import Foreground
from openuni.manifests.modalities.irradiance import Irradiance
from openuni.manifests.modalities.normal import Normal
from openuni.manifests.modalities.rgb import RGB
from openuni.manifests.modalities.segmentation import Segmentation
from openuni.manifests.modalities.skeleton import Skeleton
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.passthrough import suffix_of

MAX_FILE_MB = 2000  # of a stored map
UNCHECKED = ("rgb", "flow", "skeleton")  # steady motion has the same flow in every frame; key points have no pixels


class AllMaps(NamedTuple):
    """What the set has for a clip; None for what it has not."""

    rgb: RGB | None  # None: the video lies in the set
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
    aligned_by_motion: Annotated[list[str], "maps that motion proves in step with the video; others cannot tell"]


class SidecarEntry(NamedTuple):
    """A stored map that a sidecar names."""

    modality: type[Modality]
    file: str  # a plain name
    constants: Any  # JSON values, not checked yet


def parse_entries(sidecar: Mapping[str, Any], where: str, frames: int) -> list[SidecarEntry]:
    """The maps in a sidecar's "modalities" (`{name: {"file": ..., "constants": {...}}}`), none when there is no such.

    Raises `ClipError` for unknown modalities, files that are no plain names, and another number of frames.
    """
    table = sidecar.get("modalities", {})
    if not isinstance(table, dict):
        raise ClipError(f'{where}: "modalities" must be a table of {{name: {{"file": ..., "constants": ...}}}}')
    if sidecar.get("frames", frames) != frames:
        raise ClipError(f"{where} describes {sidecar['frames']!r} frames, the video has {frames}")
    entries = []
    for name, entry in table.items():
        if name not in modality_names():
            raise ClipError(f"{where}: {unknown_name('modality', name, modality_names())}")
        modality = find_modality(name)
        entries.append(SidecarEntry(modality, *parse_entry(entry, modality, f"{where}, modality {name}")))
    return entries


def decode_maps(
    entries: list[SidecarEntry], data_of: Callable[[str], bytes], size: tuple[int, int, int], where: str
) -> tuple[dict[str, Modality], dict[str, Payload]]:
    """The maps by name, exactly as they were stored, and what they were stored as: coding them again is needless.

    `data_of`: the bytes of a file; `size`: the video's T, H, W.
    """
    frames, height_px, width_px = size
    maps, payloads = {}, {}
    for modality, file, given in entries:
        data, name = data_of(file), f"{where}/{file}"
        maps[modality.name] = decode_payload(modality, data, given, name, frames, (height_px, width_px))
        payloads[modality.name] = Payload(
            data, suffix_of(data, modality.suffix), parse_constants(modality, given, name)
        )
    return maps, payloads


def text_of(sidecar: Mapping[str, Any], key: str, where: str) -> str | None:
    """A text of the sidecar, None where it has none; raises `ClipError` for anything else."""
    value = sidecar.get(key)
    if value is not None and not isinstance(value, str):
        raise ClipError(f'{where}: "{key}" must be a text, found {value!r}')
    return value or None


def thumbnails_of(video: Clip) -> np.ndarray:
    """uint8 [T, h, w, 3]: all frames of a video, small enough to compare."""
    return decode(video, short_side_px=SHORT_SIDE_PX).frames


def aligned_maps(maps: Mapping[str, Modality], frames: np.ndarray, where: str) -> list[str]:
    """Names of the maps that move as the video (uint8 [T, H, W, 3]) does, which `where` names.

    Raises `ClipError` for one that is frames ahead or behind.
    """
    from openuni.manifests.arrays.resample import resize_smooth

    dense = {name: signal for name, signal in maps.items() if name not in UNCHECKED}
    shown = thumbnails(frames) if dense else frames
    proved = []
    for name, signal in dense.items():
        verdict = align_by_structure(resize_smooth(_pictures(signal), shown.shape[1], shown.shape[2]), shown)
        if verdict.shift:
            raise ClipError(f"{where}: {name} is {format_shift(verdict.shift)}: it then fits the video clearly better")
        if verdict.sure:
            proved.append(name)
    return proved


def _pictures(signal: Modality) -> np.ndarray:
    """Values: of ids whether they differ counts, not by how much; of metres the inverse, which planes are linear in."""
    if isinstance(signal, Segmentation | DensePose):
        ids = signal.array[..., :1].astype(np.uint32)
        scattered = (ids * np.uint32(2654435761)) >> np.uint32(24)  # equal ids stay equal, others become unlike
        return thumbnails(scattered.astype(np.float32))
    if isinstance(signal, Depth) and signal.unit == "metres":
        return thumbnails(1 / signal.array)
    return thumbnails(signal.array)

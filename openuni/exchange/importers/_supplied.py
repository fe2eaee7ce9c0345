"""Stored maps of any modality with their constants, checked against the video they belong to."""

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

MAX_FILE_MB = 2000  # maximum size of a stored map
UNCHECKED = ("rgb", "flow", "skeleton")  # flow is the same in all frames of a steady motion; key points are sparse


class AllMaps(NamedTuple):
    """The maps that the dataset has for a clip; None for missing ones."""

    rgb: RGB | None  # None: the video stays in the dataset
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
    aligned_by_motion: Annotated[list[str], "maps whose temporal alignment with the video is confirmed by motion"]


class SidecarEntry(NamedTuple):
    """A stored map listed in a sidecar file."""

    modality: type[Modality]
    file: str  # file name without a path
    constants: Any  # JSON values, not validated yet


def parse_entries(sidecar: Mapping[str, Any], where: str, frames: int) -> list[SidecarEntry]:
    """The maps in a sidecar's "modalities" (`{name: {"file": ..., "constants": {...}}}`); empty if the key is missing.

    Raises `ClipError` for unknown modalities, file names with a path, and a different number of frames.
    """
    table = sidecar.get("modalities", {})
    if not isinstance(table, dict):
        raise ClipError(f'{where}: "modalities" must be a table of {{name: {{"file": ..., "constants": ...}}}}')
    if sidecar.get("frames", frames) != frames:
        raise ClipError(f"{where} states {sidecar['frames']!r} frames, the video has {frames}")
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
    """The decoded maps by name, and their stored payloads, so that they need not be re-encoded.

    `data_of`: returns the bytes of a file; `size`: T, H, W of the video.
    """
    frames, height_px, width_px = size
    maps, payloads = {}, {}
    for modality, file, constants in entries:
        data, name = data_of(file), f"{where}/{file}"
        maps[modality.name] = decode_payload(modality, data, constants, name, frames, (height_px, width_px))
        payloads[modality.name] = Payload(
            data, suffix_of(data, modality.suffix), parse_constants(modality, constants, name)
        )
    return maps, payloads


def text_of(sidecar: Mapping[str, Any], key: str, where: str) -> str | None:
    """A string of the sidecar, None if missing; raises `ClipError` for other types."""
    value = sidecar.get(key)
    if value is not None and not isinstance(value, str):
        raise ClipError(f'{where}: "{key}" must be a string, got {value!r}')
    return value or None


def caption_of(text: str | None, sidecar: Mapping[str, Any], key: str, where: str) -> str | None:
    """The caption in a text file or CSV cell, else that of the sidecar; None if it is empty.

    Texts are read without the blanks around them, and without a byte order mark. If that is all they differ in, the
    sidecar's is the exact one.
    """
    exact = text_of(sidecar, key, where)
    stripped = (text or "").strip()
    same = not stripped or (exact or "").removeprefix("\ufeff").strip() == stripped
    return exact if same else stripped


def thumbnails_of(video: Clip) -> np.ndarray:
    """All frames of a video, scaled down for comparison: uint8 [T, h, w, 3]."""
    return decode(video, short_side_px=SHORT_SIDE_PX).frames


def aligned_maps(maps: Mapping[str, Modality], frames: np.ndarray, where: str) -> list[str]:
    """Names of the maps whose alignment with the video (uint8 [T, H, W, 3]) motion confirms; `where` names the clip.

    Raises `ClipError` for a map that is frames ahead of the video or behind it.
    """
    from openuni.manifests.arrays.resample import resize_smooth

    dense = {name: signal for name, signal in maps.items() if name not in UNCHECKED}
    reference = thumbnails(frames) if dense else frames
    aligned = []
    for name, signal in dense.items():
        alignment = align_by_structure(
            resize_smooth(_pictures(signal), reference.shape[1], reference.shape[2]), reference
        )
        if alignment.shift:
            raise ClipError(
                f"{where}: {name} is {format_shift(alignment.shift)}: shifted, it fits the video much better"
            )
        if alignment.confirmed:
            aligned.append(name)
    return aligned


def _pictures(signal: Modality) -> np.ndarray:
    """Values to compare: ids scrambled, because only equality matters; metres inverted, which makes planes linear."""
    if isinstance(signal, Segmentation | DensePose):
        ids = signal.array[..., :1].astype(np.uint32)
        # equal ids stay equal, different ids become dissimilar
        scattered = (ids * np.uint32(2654435761)) >> np.uint32(24)
        return thumbnails(scattered.astype(np.float32))
    if isinstance(signal, Depth) and signal.unit == "metres":
        return thumbnails(1 / signal.array)
    return thumbnails(signal.array)

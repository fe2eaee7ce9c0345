"""One folder per clip and one file per modality: stored maps with their constants, or plain arrays and images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Gt

from openuni.exchange.importer import FoundClip, ImportedClip, Importer
from openuni.exchange.importers._dataset_layout import ClipLocation, clip_folders, read_json, read_text, resolve_inside
from openuni.exchange.importers._plain_maps import PlainMapInputs, check_all_read, plain_maps
from openuni.exchange.importers._sequences import IMAGES, VIDEOS, StreamFiles, find_stream, read_stream
from openuni.exchange.importers._supplied import (
    MAX_FILE_MB,
    AllMaps,
    aligned_maps,
    decode_maps,
    parse_entries,
    text_of,
    thumbnails_of,
)
from openuni.manifests.contracts.payloads import check_shape
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.modalities.rgb import RGB
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.encode import exact_fps
from openuni.manifests.video.probe import probe_clip

SIDECAR = "clip.json"
PICTURES = ("rgb", "video")  # names of the picture


class Picture(NamedTuple):
    """The clip's pixels: all frames of a video in the dataset, or an image sequence."""

    stream: StreamFiles
    pixels: Clip | np.ndarray  # uint8 [T, H, W, 3] for a sequence

    @property
    def video(self) -> Clip | None:
        """The video, None for a sequence."""
        return self.pixels if isinstance(self.pixels, Clip) else None

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.pixels.frame_count if isinstance(self.pixels, Clip) else len(self.pixels)

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width."""
        if isinstance(self.pixels, Clip):
            return self.pixels.height_px, self.pixels.width_px
        return self.pixels.shape[1], self.pixels.shape[2]

    def small_frames(self) -> np.ndarray:
        """uint8 [T, h, w, 3] to check maps against; videos are decoded at a small size."""
        return thumbnails_of(self.pixels) if isinstance(self.pixels, Clip) else self.pixels


@dataclass(frozen=True)
class Folder(Importer):
    """Reads CLIP/rgb.mp4 (or video.mp4, or a sequence CLIP/rgb/) and the maps in the same folder.

    Stored maps are listed in CLIP/clip.json as {"modalities": {"depth": {"file": "depth.mkv", "constants": {...}}}}, as
    in the supplied layout (openuni/world/write.py); caption, split, origin and frames are optional. Plain maps: depth/
    with 16-bit PNGs, segmentation/ or masks/ with palette or grey PNGs of ids; depth.npy [T, H, W], flow.npy
    [T or T - 1, H, W, 2], segmentation.npy [T, H, W], normal.npy, albedo.npy, irradiance.npy [T, H, W, 3], alpha.npy
    [T, H, W]; foreground and background as sequences or videos. Other formats are rejected. CLIP/caption.txt is the
    caption.
    """

    depth_unit: Annotated[Literal["metres", "disparity"], "unit of plain depth maps"] = "metres"
    depth_per_level: Annotated[float, "depth per level of a PNG, in depth_unit", Gt(0)] = 0.001
    normal_frame: Annotated[
        Literal["opengl", "opencv"], "axes of normal.npy; opengl: y up, z towards the viewer; opencv: y down, z away"
    ] = "opengl"
    fps: Annotated[float, "frame rate of image sequences, 1/s", Gt(0)] = 16.0
    check_alignment: Annotated[bool, "reject maps that are misaligned in time with the video"] = True

    revision: ClassVar[int] = 2
    origin: ClassVar[str] = "own data; the supplied layout"

    def find(self, folder: Path) -> Iterator[FoundClip]:
        """Folders that contain a picture, sorted by name."""
        empty = True
        for key, location in clip_folders(folder, _is_clip):
            empty = False
            yield FoundClip(key, location)
        if empty:
            videos = ", ".join(VIDEOS)
            raise OpenUniError(f"{folder}: no folder contains rgb or video ({videos}) or a folder rgb with images")

    def read(self, found: FoundClip) -> ImportedClip[AllMaps]:
        """One clip: reads its picture, then each map, which is checked against it."""
        location: ClipLocation = found.location
        folder = Path(location.folder)
        picture = self._picture(location)
        sidecar = read_json(folder / SIDECAR, location.root) if (folder / SIDECAR).exists() else {}
        entries = parse_entries(sidecar, str(folder / SIDECAR), picture.frames)
        stored = {entry.file for entry in entries}
        check_all_read(folder, stored)
        size = picture.frames, *picture.size_px
        maps, payloads = decode_maps(entries, lambda file: _bytes(folder / file, location.root), size, str(folder))
        inputs = PlainMapInputs(
            location, picture.stream, size, self.depth_unit, self.depth_per_level, self.normal_frame
        )
        for name, signal in plain_maps(inputs, stored):
            if name in maps:
                raise ClipError(f"{folder}: {name} is listed in {SIDECAR} and also present as a plain map. Remove one.")
            check_shape(signal, f"{folder / name}", picture.frames, picture.size_px)
            maps[name] = signal
        aligned = []
        if not isinstance(picture.pixels, Clip):
            maps["rgb"] = RGB(picture.pixels)
            payloads.pop("rgb", None)
        if self.check_alignment:
            aligned = aligned_maps(maps, picture.small_frames(), str(folder))
        row: dict[str, Any] = dict.fromkeys(AllMaps._fields) | maps | {"aligned_by_motion": aligned}
        return ImportedClip(
            AllMaps(**row),
            fps=exact_fps(self.fps),
            video=picture.video,
            caption=read_text(folder / "caption.txt", location.root)
            or text_of(sidecar, "caption", str(folder / SIDECAR)),
            origin=text_of(sidecar, "origin", str(folder / SIDECAR)),
            split=text_of(sidecar, "split", str(folder / SIDECAR)) or location.split,
            payloads=payloads,
        )

    def _picture(self, location: ClipLocation) -> Picture:
        folder = Path(location.folder)
        streams = [stream for name in PICTURES if (stream := find_stream(folder, name, location.root)) is not None]
        if not streams:
            raise ClipError(f"{folder} has neither rgb nor video")
        if len(streams) > 1:
            raise ClipError(f"{folder} has {' and '.join(PICTURES)}: expected one. Remove the other.")
        stream = streams[0]
        if stream.kind == "video":
            return Picture(stream, probe_clip(str(stream.files[0])))
        array = read_stream(stream)
        if array.dtype != np.uint8 or array.shape[-1] != 3:
            raise ClipError(f"{stream.where}: rgb must be 8-bit colour images, got {array.dtype} {array.shape}")
        return Picture(stream, array)


def _is_clip(folder: Path) -> bool:
    return any(
        (path.is_dir() and any(inner.suffix.lower() in IMAGES for inner in path.iterdir()))
        if path.name in PICTURES
        else path.stem in PICTURES and path.suffix.lower() in VIDEOS
        for path in folder.iterdir()
    )


def _bytes(path: Path, root: str) -> bytes:
    real = resolve_inside(path, root)
    if not real.is_file():
        raise ClipError(f"{path} not found, but listed in {SIDECAR}")
    if real.stat().st_size > MAX_FILE_MB * 10**6:
        raise ClipError(f"{path} has {real.stat().st_size:,} bytes; the limit is {MAX_FILE_MB:,} MB")
    return real.read_bytes()

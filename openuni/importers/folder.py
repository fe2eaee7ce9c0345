"""A folder per clip and a file per modality: stored maps with their constants, or plain arrays and pictures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Gt

from manifests.clip import Clip
from manifests.errors import ClipError, OpenUniError
from manifests.modalities.albedo import Albedo
from manifests.modalities.alpha import Alpha
from manifests.modalities.depth import Depth
from manifests.modalities.flow import Flow
from manifests.modalities.irradiance import Irradiance
from manifests.modalities.normal import Normal
from manifests.modalities.rgb import RGB
from manifests.modalities.segmentation import Segmentation
from manifests.modality import Modality, Payload, find_modality
from manifests.payloads import check_fit
from manifests.video import Limits, whole_clip
from openuni.importer import Found, Imported, Importer
from openuni.importers._sequences import IMAGES, VIDEOS, find_stream, read_indices, read_stream
from openuni.importers._sets import Place, clip_folders, inside, read_json, read_text
from openuni.importers._supplied import LARGEST_MB, AllMaps, entries_of, in_step, restored, small, text_of

SIDECAR = "clip.json"
PICTURES = ("rgb", "video")  # names of the picture, the first that is there
FLOATS: dict[str, type[Modality]] = {"normal": Normal, "albedo": Albedo, "irradiance": Irradiance, "alpha": Alpha}


class Picture(NamedTuple):
    """The clip's own pixels: all frames of a video in the set, or an image sequence."""

    pixels: Clip | np.ndarray  # a sequence is uint8 [T, H, W, 3]

    @property
    def video(self) -> Clip | None:
        """The video, None where it is a sequence."""
        return self.pixels if isinstance(self.pixels, Clip) else None

    @property
    def frames(self) -> int:
        """How many."""
        return self.pixels.frame_count if isinstance(self.pixels, Clip) else len(self.pixels)

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width."""
        if isinstance(self.pixels, Clip):
            return self.pixels.height_px, self.pixels.width_px
        return self.pixels.shape[1], self.pixels.shape[2]

    def shown(self) -> np.ndarray:
        """uint8 [T, h, w, 3]: what maps are held against; small where a video is decoded for it."""
        return small(self.pixels) if isinstance(self.pixels, Clip) else self.pixels


@dataclass(frozen=True)
class Folder(Importer):
    """Reads CLIP/rgb.mp4 (or video.mp4, or a sequence CLIP/rgb/) and the maps beside it.

    Stored maps: CLIP/clip.json has {"modalities": {"depth": {"file": "depth.mkv", "constants": {...}}}} as the supplied
    layout does (openuni/world/write.py), and if it likes caption, split, origin, frames. Plain maps: depth/ with 16-bit
    PNGs, segmentation/ or masks/ with palette or grey PNGs of ids; depth.npy [T, H, W], flow.npy [T or T - 1, H, W, 2],
    segmentation.npy [T, H, W], normal.npy, albedo.npy, irradiance.npy [T, H, W, 3], alpha.npy [T, H, W]; foreground and
    background as sequences or videos. CLIP/caption.txt is the caption.
    """

    depth_unit: Annotated[Literal["metres", "disparity"], "of plain depth"] = "metres"
    depth_per_level: Annotated[float, "what one level of a depth PNG is, in that unit", Gt(0)] = 0.001
    fps: Annotated[float, "frames per second where rgb is an image sequence", Gt(0)] = 16.0
    check_alignment: Annotated[bool, "refuse maps that are frames ahead of the video or behind it"] = True

    origin: ClassVar[str] = "folders of one's own; the supplied layout"

    def find(self, folder: Path) -> Iterator[Found]:
        """Folders that hold a picture, by name."""
        none = True
        for key, place in clip_folders(folder, _is_clip):
            none = False
            yield Found(key, place)
        if none:
            videos = ", ".join(VIDEOS)
            raise OpenUniError(f"{folder}: no folder in it holds rgb or video ({videos}) or a folder rgb with images")

    def read(self, found: Found) -> Imported[AllMaps]:
        """One clip; its picture, then each map held against it."""
        place: Place = found.place
        folder = Path(place.folder)
        picture = self._picture(place)
        sidecar = read_json(folder / SIDECAR, place.root) if (folder / SIDECAR).exists() else {}
        maps, payloads = self._stored(place, sidecar, picture)
        for name, signal in [*self._plain(place, picture), *_layers(place, set(maps))]:
            if name in maps:
                raise ClipError(f"{folder}: {name} is named by {SIDECAR} and is there as a plain map too: remove one")
            check_fit(signal, f"{folder / name}", picture.frames, picture.size_px)
            maps[name] = signal
        proved = []
        if not isinstance(picture.pixels, Clip):
            maps["rgb"] = RGB(picture.pixels)
            payloads.pop("rgb", None)
        if self.check_alignment:
            proved = in_step(maps, picture.shown(), str(folder))
        row: dict[str, Any] = dict.fromkeys(AllMaps._fields) | maps | {"aligned_by_motion": proved}
        return Imported(
            AllMaps(**row),
            fps=self.fps,
            video=picture.video,
            caption=read_text(folder / "caption.txt", place.root) or text_of(sidecar, "caption", str(folder / SIDECAR)),
            origin=text_of(sidecar, "origin", str(folder / SIDECAR)),
            split=text_of(sidecar, "split", str(folder / SIDECAR)) or place.split,
            payloads=payloads,
        )

    def _picture(self, place: Place) -> Picture:
        folder = Path(place.folder)
        streams = [stream for name in PICTURES if (stream := find_stream(folder, name, place.root)) is not None]
        if not streams:
            raise ClipError(f"{folder} has no rgb and no video")
        if len(streams) > 1:
            raise ClipError(f"{folder} has both {' and '.join(PICTURES)}: one is needed, remove the other")
        stream = streams[0]
        if stream.kind == "video":
            return Picture(whole_clip(str(stream.files[0])))
        array = read_stream(stream)
        if array.dtype != np.uint8 or array.shape[-1] != 3:
            raise ClipError(f"{stream.where}: rgb must be 8-bit colour images, found {array.dtype} {array.shape}")
        return Picture(array)

    def _stored(
        self, place: Place, sidecar: Mapping[str, Any], picture: Picture
    ) -> tuple[dict[str, Modality], dict[str, Payload]]:
        folder = Path(place.folder)
        entries = entries_of(sidecar, str(folder / SIDECAR), picture.frames)
        size = picture.frames, *picture.size_px
        return restored(entries, lambda file: _bytes(folder / file, place.root), size, str(folder))

    def _plain(self, place: Place, picture: Picture) -> Iterator[tuple[str, Modality]]:
        """The maps that no sidecar describes."""
        folder = Path(place.folder)
        arrays = {
            name: _array(folder / f"{name}.npy", place.root, picture) for name in ("depth", "flow", "segmentation")
        }
        depth, flow, ids = arrays["depth"], arrays["flow"], arrays["segmentation"]
        levels = find_stream(folder, "depth", place.root) if (folder / "depth").is_dir() else None
        if levels is not None:
            array = read_stream(levels)
            if array.shape[-1] != 1 or array.dtype == np.uint8:
                raise ClipError(f"{levels.where}: depth must be 16-bit grey images, found {array.dtype} {array.shape}")
            scale = 1.0 if array.dtype.kind == "f" else self.depth_per_level
            depth = array.astype(np.float32) * np.float32(scale)
        if depth is not None:
            yield "depth", Depth(_channels(depth.astype(np.float32), 1, "depth"), self.depth_unit)
        if flow is not None:
            flow = _channels(flow.astype(np.float32), 2, "flow")
            yield "flow", Flow(flow) if len(flow) == picture.frames else Flow.from_pairs(flow)
        masks = next((folder / name for name in ("segmentation", "masks") if (folder / name).is_dir()), None)
        if masks is not None:
            stream = find_stream(folder, masks.name, place.root)
            ids = read_indices(stream) if stream is not None else None
        if ids is not None:
            yield "segmentation", _segmentation(_channels(ids, 1, "segmentation"), folder)
        for name, kind in FLOATS.items():
            values = _array(folder / f"{name}.npy", place.root, picture)
            if values is not None:
                yield name, kind(_channels(values.astype(np.float32), 1 if name == "alpha" else 3, name))


def _layers(place: Place, stored: set[str]) -> Iterator[tuple[str, Modality]]:
    """Foreground and background as plain videos or image sequences."""
    for name in {"foreground", "background"} - stored:
        stream = find_stream(Path(place.folder), name, place.root)
        if stream is not None:
            yield name, find_modality(name)(read_stream(stream))


def _is_clip(folder: Path) -> bool:
    return any(
        (path.is_dir() and any(inner.suffix.lower() in IMAGES for inner in path.iterdir()))
        if path.name in PICTURES
        else path.stem in PICTURES and path.suffix.lower() in VIDEOS
        for path in folder.iterdir()
    )


def _bytes(path: Path, root: str) -> bytes:
    real = inside(path, root)
    if not real.is_file():
        raise ClipError(f"{path} is not there, {SIDECAR} names it")
    if real.stat().st_size > LARGEST_MB * 10**6:
        raise ClipError(f"{path} has {real.stat().st_size:,} bytes; at most {LARGEST_MB:,} MB are read")
    return real.read_bytes()


def _array(path: Path, root: str, picture: Picture) -> np.ndarray | None:
    """The array in a .npy file, its shape looked at before it is read; None when there is no file."""
    if not path.is_file():
        return None
    try:
        mapped = np.load(inside(path, root), mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ClipError(f"{path} is no array file: {error}") from error
    height_px, width_px = picture.size_px
    if mapped.ndim not in (3, 4) or mapped.dtype.kind not in "fui":
        raise ClipError(f"{path} holds {mapped.dtype} {mapped.shape}; needed are numbers [T, H, W] or [T, H, W, C]")
    largest = picture.frames * height_px * width_px * 4
    if mapped.size > largest or mapped.size * 4 > Limits().max_decoded_bytes:
        raise ClipError(
            f"{path} has {mapped.shape}, more than {picture.frames} frames of {width_px} x {height_px} need"
        )
    return np.array(mapped)


def _channels(array: np.ndarray, channels: int, what: str) -> np.ndarray:
    """[T, H, W, C] of [T, H, W] or [T, H, W, C]."""
    whole = array[..., None] if array.ndim == 3 and channels == 1 else array
    if whole.ndim != 4 or whole.shape[-1] != channels:
        raise ClipError(f"{what} must be [T, H, W, {channels}], found {array.shape}")
    return whole


def _segmentation(ids: np.ndarray, folder: Path) -> Segmentation:
    lo, hi = int(ids.min(initial=0)), int(ids.max(initial=0))
    if lo < 0 or hi > 65535 or ids.dtype.kind == "f":
        raise ClipError(f"{folder}: ids must be whole numbers 0..65535, found {ids.dtype} from {lo} to {hi}")
    return Segmentation(ids.astype(np.uint16))

"""InteriorVid and sets like it: rendered interiors, a folder per clip with rgb, albedo, irradiance and normals."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from openuni.exchange.importer import FoundClip, ImportedClip, Importer
from openuni.exchange.importers._alignment import check_structure
from openuni.exchange.importers._dataset_layout import ClipLocation, clip_folders, one_group, read_text
from openuni.exchange.importers._intrinsics import (
    Coding,
    NormalStatistics,
    ProductFit,
    WhitePointTracker,
    albedo_decoding,
    check_albedo,
    check_channels,
    check_irradiance,
    check_product,
    irradiance_decoding,
    length_tolerance,
    normal_decoding,
)
from openuni.exchange.importers._sequences import (
    IMAGES,
    VIDEOS,
    StreamFiles,
    StreamReader,
    check_numbers,
    check_same,
    find_stream,
)
from openuni.exchange.importers._stream_scan import StreamScan, map_in_threads, range_of, sampled, scan_stream
from openuni.manifests.arrays.srgb import linear_to_srgb
from openuni.manifests.contracts.modality import Modality, Payload
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.modalities.albedo import Albedo, AlbedoConstants
from openuni.manifests.modalities.irradiance import Irradiance, IrradianceConstants
from openuni.manifests.modalities.normal import Normal, NormalConstants
from openuni.manifests.modalities.rgb import RGB
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.images import ValueLookup

MAPS = ("albedo", "irradiance", "normal")
AUTO_WHITE_PERCENTILE = 99.0


class PictureScan(NamedTuple):
    """The picture."""

    picture: np.ndarray  # uint8 [T, H, W, 3], sRGB
    small: np.ndarray  # float32 [T, h, w, 3], 0..255
    video: Clip | None
    overexposed: float  # share of values above white


class MapScan(NamedTuple):
    """A map: as a signal, or as the files it came in."""

    seen: StreamScan
    signal: Any  # a modality, None where there is a payload
    payload: Payload | None
    bent: float | None = None  # share of normals of another length than 1


class InteriorMaps(NamedTuple):
    """One rendered clip."""

    rgb: RGB | None  # None: the video lies in the set
    albedo: Albedo | None
    irradiance: Irradiance | None
    normal: Normal | None
    exposure: Annotated[float, "what linear rgb and irradiance were multiplied by"]
    transfer: Annotated[str, "from linear rgb to the picture: srgb"]
    overexposed_share: Annotated[float, "share of the picture's values above white, which are lost, 0..1"]
    product_correlation: Annotated[float | None, "of albedo x irradiance with the picture, in sRGB values, -1..1"]
    product_gain: Annotated[float | None, "median of linear rgb over albedo x irradiance; 1 where they belong"]
    renormalised_share: Annotated[float | None, "share of surface pixels whose normals had another length than 1, 0..1"]
    aligned_by_motion: Annotated[bool, "whether motion proves the maps in step; false: the clip cannot tell"]


@dataclass(frozen=True)
class InteriorVid(Importer):
    """Reads CLIP/rgb, CLIP/albedo, CLIP/irradiance and CLIP/normal, each a numbered sequence or a video.

    A sequence is a folder of EXR, PNG (8 or 16 bits) or JPEG images, a video is a file CLIP/rgb.mp4. Folders named
    train, val and test above the clips give the split; CLIP/caption.txt or CLIP.txt the caption. EXR is linear light;
    the picture is sRGB of `exposure` times it, rounded to 8 bits: reversible up to that and to what is above white.
    An rgb video stays where it lies.
    """

    rgb: Annotated[str, "name of the folder or video with the picture"] = "rgb"
    albedo: Annotated[str, "name of the folder or video with the diffuse reflectance"] = "albedo"
    irradiance: Annotated[str, "name of the folder or video with the light that arrives"] = "irradiance"
    normal: Annotated[str, "name of the folder or video with the normals"] = "normal"
    modalities: Annotated[tuple[str, ...], "which maps every clip must have; others are not read"] = MAPS
    fps: Annotated[float, "frames per second of image sequences", Gt(0)] = 16.0
    scene: Annotated[str, "regular expression with one group: the scene in a clip's key; empty: no two share one"] = ""
    exposure: Annotated[
        float, "linear light is multiplied by it; 0: such that 99 % of a clip's pixels are below 1", Ge(0)
    ] = 1.0
    rgb_coding: Annotated[Coding, "of rgb in PNG and JPEG; EXR is linear, videos are srgb"] = "srgb"
    albedo_coding: Annotated[Coding, "of albedo in PNG, JPEG and videos; EXR is linear"] = "linear"
    irradiance_coding: Annotated[Coding, "of irradiance in PNG, JPEG and videos; EXR is linear"] = "linear"
    irradiance_scale: Annotated[float, "given irradiance times this, times albedo, is linear rgb", Gt(0)] = 1.0
    normal_frame: Annotated[Literal["opengl", "opencv"], "opengl: y up, z to the viewer; opencv: y down, z away"] = (
        "opengl"
    )
    normal_coding: Annotated[Literal["auto", "signed", "unit"], "signed: n; unit: (n + 1) / 2; auto: EXR is signed"] = (
        "auto"
    )
    keep_files: Annotated[bool, "maps stay in the files they came in, exact; false: coded anew (FFV1, 16 bits)"] = True
    check_product: Annotated[bool, "refuse clips whose albedo x irradiance does not explain rgb"] = True

    revision: ClassVar[int] = 2
    origin: ClassVar[str] = "UniVidX's InteriorVid; its files are not public, so the layout is by folders"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_group(self.scene, "interiorvid: scene")
        wrong = [name for name in self.modalities if name not in MAPS]
        if wrong:
            raise OpenUniError(f'interiorvid: modality "{wrong[0]}" is not known. Known: {", ".join(MAPS)}.')

    def find(self, folder: Path) -> Iterator[FoundClip]:
        """Folders that hold the picture and another map, by name."""
        none = True
        for key, place in clip_folders(folder, self._is_clip):
            none = False
            yield FoundClip(key, place)
        if none:
            names = ", ".join(getattr(self, name) for name in ("rgb", *self.modalities))
            raise OpenUniError(
                f"{folder}: no folder below it holds at least two of {names}, as folders with images "
                f"({', '.join(IMAGES)}) or videos ({', '.join(VIDEOS)}). The options rgb, albedo, ... set the names."
            )

    def read(self, found: FoundClip) -> ImportedClip[InteriorMaps]:
        """One clip: counts, sizes, ranges, units and alignment checked."""
        place: ClipLocation = found.location
        streams = self._streams(place)
        exposure = self._exposure(streams["rgb"])
        looks: dict[str, Any] = map_in_threads(lambda name: self._look(name, streams[name], exposure), list(streams))
        shown: PictureScan = looks.pop("rgb")
        check_same(
            {"rgb": (streams["rgb"].where, shown.picture.shape[:3])}
            | {name: (map_look.seen.where, map_look.seen.shape[:3]) for name, map_look in looks.items()},
            "rgb",
        )
        small = {name: map_look.seen.small for name, map_look in looks.items()}
        fit = ProductFit(None, None, sure=True)
        edged = list(looks)
        if self.check_product and {"albedo", "irradiance"} <= looks.keys():
            fit = check_product(shown.small, small["albedo"], small["irradiance"], streams["rgb"].where)
            edged = [name for name in looks if name == "normal"]
        sure = [check_structure(small[name], shown.small, streams[name].where) for name in edged]
        maps = {name: map_look.signal for name, map_look in looks.items()}
        row = InteriorMaps(
            rgb=RGB(shown.picture) if shown.video is None else None,
            albedo=maps.get("albedo"),
            irradiance=maps.get("irradiance"),
            normal=maps.get("normal"),
            exposure=exposure,
            transfer="srgb",
            overexposed_share=shown.overexposed,
            product_correlation=fit.correlation,
            product_gain=fit.gain,
            renormalised_share=looks["normal"].bent if "normal" in looks else None,
            aligned_by_motion=bool(looks) and fit.sure and all(sure),
        )
        return ImportedClip(
            row,
            fps=self.fps,
            video=shown.video,
            caption=_caption(place),
            origin=self._scene(found.key),
            split=place.split,
            payloads={name: map_look.payload for name, map_look in looks.items() if map_look.payload is not None},
        )

    def _is_clip(self, folder: Path) -> bool:
        names = {getattr(self, name) for name in ("rgb", *self.modalities)}
        held = {path.name if path.is_dir() else path.stem for path in folder.iterdir() if _can_be(path)}
        return len(names & held) >= min(2, len(names))

    def _streams(self, place: ClipLocation) -> dict[str, Any]:
        folder = Path(place.folder)
        streams = {
            name: find_stream(folder, getattr(self, name), place.root)
            for name in dict.fromkeys(("rgb", *self.modalities))
        }
        missing = [getattr(self, name) for name, stream in streams.items() if stream is None]
        if missing:
            raise ClipError(f"{folder} has no {' and no '.join(missing)}, neither as a folder of images nor as a video")
        check_numbers(stream for stream in streams.values() if stream is not None)
        return streams

    def _exposure(self, rgb: StreamFiles) -> float:
        """The option's, or by the clip's brightest pixels; 1 where the picture is not linear."""
        if self.exposure > 0 or rgb.kind != "exr":
            return self.exposure or 1.0
        brightest = np.stack([image.max(axis=-1).astype(np.float32) for image in StreamReader(rgb).images()])
        bright = float(np.percentile(brightest, AUTO_WHITE_PERCENTILE))
        return 1.0 / bright if 0 < bright < math.inf else 1.0

    def _look(self, name: str, stream: StreamFiles, exposure: float) -> "PictureScan | MapScan":
        """A stream, looked at and checked by itself."""
        where = stream.where
        if name == "rgb":
            return self._picture(stream, exposure)
        if name == "albedo":
            seen = scan_stream(
                stream,
                lambda dtype, channels: albedo_decoding(dtype, channels, where, self.albedo_coding),
                self.keep_files,
            )
            check_albedo(seen)
            return seen_as(Albedo, seen, AlbedoConstants())
        if name == "irradiance":
            scale = self.irradiance_scale * exposure
            whites = WhitePointTracker()
            seen = scan_stream(
                stream,
                lambda dtype, channels: irradiance_decoding(dtype, channels, where, self.irradiance_coding, scale),
                self.keep_files,
                whites,
            )
            check_irradiance(seen)
            return seen_as(Irradiance, seen, IrradianceConstants(whites.white()))
        directions = NormalStatistics(self.normal_frame)
        seen = scan_stream(
            stream,
            lambda dtype, channels: normal_decoding(dtype, channels, where, self.normal_frame, self.normal_coding),
            self.keep_files,
            directions,
        )
        hint = 'Normalise them, or set normal_coding ("signed" or "unit") if they are read wrongly.'
        bent = directions.check(seen.where, length_tolerance(seen), hint)
        return seen_as(Normal, seen, NormalConstants())._replace(bent=bent)

    def _picture(self, stream: StreamFiles, exposure: float) -> "PictureScan":
        """The picture, sRGB of 8 bits."""
        film, where = StreamReader(stream), stream.where
        picture = np.empty((film.count, *film.size_px, 3), np.uint8)
        convert: ValueLookup | None = None
        lo, over = 0.0, 0
        for target, image in zip(picture, film.images(), strict=True):
            if convert is None:
                check_channels(image.shape[-1], (1, 3), where)
                linear = image.dtype.kind == "f" or (stream.kind != "video" and self.rgb_coding == "linear")
                if not linear and self.exposure != 1.0:
                    text = f"exposure = {self.exposure:g} can be set for linear rgb only"
                    raise ClipError(f"{where} is sRGB already: {text}")
                convert = ValueLookup(partial(_displayed, np.float32(exposure)) if linear else _rounded, image.dtype)
            low, high = range_of(image)
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ClipError(f"{where}: values of the linear picture are NaN or infinite")
            lo = min(lo, low)
            over += _count_above(image, 1 / exposure) if linear and high > 1 / exposure else 0
            target[:] = image if image.dtype == np.uint8 and not linear else convert(image)
        if lo < -0.01:
            raise ClipError(f"{where}: linear light must be >= 0, smallest value is {lo:g}")
        return PictureScan(picture, sampled(picture), film.video, over / picture.size)

    def _scene(self, key: str) -> str | None:
        pattern = one_group(self.scene, "interiorvid: scene")
        if pattern is None:
            return None
        named = pattern.search(key)
        if named is None or not named[1]:
            raise ClipError(f'the clip\'s key "{key}" does not match scene = "{self.scene}": mend the pattern')
        return str(named[1])


def _can_be(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in VIDEOS


def _caption(place: ClipLocation) -> str | None:
    folder = Path(place.folder)
    return read_text(folder / "caption.txt", place.root) or read_text(
        folder.with_name(f"{folder.name}.txt"), place.root
    )


def _displayed(exposure: np.float32, light: np.ndarray) -> np.ndarray:
    """Linear light as sRGB levels."""
    return _rounded(linear_to_srgb(np.clip(light * exposure, 0, 1)))


def _rounded(unit: np.ndarray) -> np.ndarray:
    return np.rint(unit * np.float32(255)).astype(np.uint8)


def _count_above(image: np.ndarray, limit: float) -> int:
    """How many values are above `limit` > 0, levels as 0..1."""
    most = 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)
    if image.dtype != np.float16:
        return int(np.count_nonzero(image > limit * most))
    nearest = np.float16(min(limit, 65504.0))  # patterns of positive numbers rise with them
    highest_below = nearest if float(nearest) <= limit else np.nextafter(nearest, np.float16(0))
    return int(np.count_nonzero(image.view(np.int16) > highest_below.view(np.int16)))


def seen_as(modality: type[Modality], seen: StreamScan, constants: Any) -> "MapScan":
    """A look's values as the modality, or as the payload of the files that are kept."""
    signal = None if seen.array is None else modality.from_passthrough(seen.array, constants)
    return MapScan(seen, signal, seen.payload(constants))

"""InteriorVid and similar datasets: rendered interiors, a folder per clip with rgb, albedo, irradiance and normals."""

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
from openuni.manifests.contracts.options import Formerly
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.modalities.albedo import Albedo, AlbedoConstants
from openuni.manifests.modalities.irradiance import Irradiance, IrradianceConstants
from openuni.manifests.modalities.normal import Normal, NormalConstants
from openuni.manifests.modalities.rgb import RGB
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.encode import exact_fps
from openuni.manifests.video.images import ValueLookup

MAPS = ("albedo", "irradiance", "normal")
AUTO_WHITE_PERCENTILE = 99.0


class PictureScan(NamedTuple):
    """The picture of a clip."""

    picture: np.ndarray  # uint8 [T, H, W, 3], sRGB
    small: np.ndarray  # float32 [T, h, w, 3], 0..255
    video: Clip | None
    overexposed: float  # share of values above white


class MapScan(NamedTuple):
    """A map, as a decoded modality or as a payload of its original files."""

    scan: StreamScan
    signal: Any  # a modality; None if there is a payload
    payload: Payload | None
    non_unit: float | None = None  # share of normals without unit length


class InteriorMaps(NamedTuple):
    """One rendered clip."""

    rgb: RGB | None  # None: the video stays in the dataset
    albedo: Albedo | None
    irradiance: Irradiance | None
    normal: Normal | None
    exposure: Annotated[float, "factor on linear rgb and irradiance"]
    transfer: Annotated[str, "transfer function from linear rgb to the picture: srgb"]
    overexposed_share: Annotated[float, "share of clipped values of the picture (above white), 0..1"]
    product_correlation: Annotated[
        float | None, "correlation of albedo x irradiance with the picture, in sRGB values, -1..1"
    ]
    product_gain: Annotated[float | None, "median of linear rgb / (albedo x irradiance); 1 if consistent"]
    renormalised_share: Annotated[float | None, "share of surface pixels whose normals had to be normalized, 0..1"]
    aligned_by_motion: Annotated[bool, "whether motion confirms the temporal alignment of the maps"]


@dataclass(frozen=True)
class InteriorVid(Importer):
    """Reads CLIP/rgb, CLIP/albedo, CLIP/irradiance and CLIP/normal, each a numbered sequence or a video.

    A sequence is a folder of EXR, PNG (8 or 16 bits) or JPEG images; a video is a file such as CLIP/rgb.mp4. Folders
    named train, val and test above the clips set the split; CLIP/caption.txt or CLIP.txt is the caption. EXR is linear
    light; the picture is sRGB of `exposure` times it, rounded to 8 bits and clipped at white. An rgb video is
    referenced where it is.
    """

    rgb: Annotated[str, "name of the picture's folder or video"] = "rgb"
    albedo: Annotated[str, "name of the albedo's (diffuse reflectance) folder or video"] = "albedo"
    irradiance: Annotated[str, "name of the irradiance's (incoming light) folder or video"] = "irradiance"
    normal: Annotated[str, "name of the normals' folder or video"] = "normal"
    modalities: Annotated[tuple[str, ...], "maps that every clip must have; others are ignored"] = MAPS
    fps: Annotated[float, "frame rate of image sequences, 1/s", Gt(0)] = 16.0
    scene: Annotated[
        str, "regex with one group that extracts the scene from the clip key; empty: one scene per clip"
    ] = ""
    exposure: Annotated[
        float, "factor on linear light; 0: automatic, so that 99 % of a clip's pixels are below 1", Ge(0)
    ] = 1.0
    rgb_coding: Annotated[Coding, "transfer function of rgb in PNG and JPEG; EXR is linear, videos are srgb"] = "srgb"
    albedo_coding: Annotated[Coding, "transfer function of albedo in PNG, JPEG and videos; EXR is linear"] = "linear"
    irradiance_coding: Annotated[Coding, "transfer function of irradiance in PNG, JPEG and videos; EXR is linear"] = (
        "linear"
    )
    irradiance_scale: Annotated[float, "factor on irradiance, such that albedo x irradiance is linear rgb", Gt(0)] = 1.0
    normal_frame: Annotated[
        Literal["opengl", "opencv"], "axes of normals; opengl: y up, z towards the viewer; opencv: y down, z away"
    ] = "opengl"
    normal_coding: Annotated[
        Literal["auto", "signed", "unit"],
        "coding of normals; signed: n; unit: (n + 1) / 2; auto: EXR is signed, others unit",
    ] = "auto"
    passthrough: Annotated[
        bool, "store the original map files; false: re-encode (FFV1, 16 bits)", Formerly("keep_files")
    ] = True
    check_product: Annotated[bool, "reject clips whose albedo x irradiance does not explain rgb"] = True

    revision: ClassVar[int] = 2
    origin: ClassVar[str] = "UniVidX's InteriorVid; its files are not public, so the layout is by folders"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_group(self.scene, "interiorvid: scene")
        wrong = [name for name in self.modalities if name not in MAPS]
        if wrong:
            raise OpenUniError(f'interiorvid: unknown modality "{wrong[0]}". Allowed: {", ".join(MAPS)}.')

    def find(self, folder: Path) -> Iterator[FoundClip]:
        """Folders that contain the picture and at least one map, sorted by name."""
        empty = True
        for key, location in clip_folders(folder, self._is_clip):
            empty = False
            yield FoundClip(key, location)
        if empty:
            names = ", ".join(getattr(self, name) for name in ("rgb", *self.modalities))
            raise OpenUniError(
                f"{folder}: no folder below it contains at least two of {names}, as folders with images "
                f"({', '.join(IMAGES)}) or videos ({', '.join(VIDEOS)}). The options rgb, albedo, ... set the names."
            )

    def read(self, found: FoundClip) -> ImportedClip[InteriorMaps]:
        """One clip; checks counts, sizes, ranges, units and temporal alignment."""
        location: ClipLocation = found.location
        streams = self._streams(location)
        exposure = self._exposure(streams["rgb"])
        scans: dict[str, Any] = map_in_threads(lambda name: self._scan(name, streams[name], exposure), list(streams))
        picture_scan: PictureScan = scans.pop("rgb")
        check_same(
            {"rgb": (streams["rgb"].where, picture_scan.picture.shape[:3])}
            | {name: (map_scan.scan.where, map_scan.scan.shape[:3]) for name, map_scan in scans.items()},
            "rgb",
        )
        small = {name: map_scan.scan.small for name, map_scan in scans.items()}
        product = ProductFit(None, None, aligned_by_motion=True)
        by_structure = list(scans)
        if self.check_product and {"albedo", "irradiance"} <= scans.keys():
            product = check_product(picture_scan.small, small["albedo"], small["irradiance"], streams["rgb"].where)
            by_structure = [name for name in scans if name == "normal"]
        confirmed = [check_structure(small[name], picture_scan.small, streams[name].where) for name in by_structure]
        maps = {name: map_scan.signal for name, map_scan in scans.items()}
        row = InteriorMaps(
            rgb=RGB(picture_scan.picture) if picture_scan.video is None else None,
            albedo=maps.get("albedo"),
            irradiance=maps.get("irradiance"),
            normal=maps.get("normal"),
            exposure=exposure,
            transfer="srgb",
            overexposed_share=picture_scan.overexposed,
            product_correlation=product.correlation,
            product_gain=product.gain,
            renormalised_share=scans["normal"].non_unit if "normal" in scans else None,
            aligned_by_motion=bool(scans) and product.aligned_by_motion and all(confirmed),
        )
        return ImportedClip(
            row,
            fps=exact_fps(self.fps),
            video=picture_scan.video,
            caption=_caption(location),
            origin=self._scene(found.key),
            split=location.split,
            payloads={name: map_scan.payload for name, map_scan in scans.items() if map_scan.payload is not None},
        )

    def _is_clip(self, folder: Path) -> bool:
        names = {getattr(self, name) for name in ("rgb", *self.modalities)}
        held = {path.name if path.is_dir() else path.stem for path in folder.iterdir() if _can_be(path)}
        return len(names & held) >= min(2, len(names))

    def _streams(self, location: ClipLocation) -> dict[str, Any]:
        folder = Path(location.folder)
        streams = {
            name: find_stream(folder, getattr(self, name), location.root)
            for name in dict.fromkeys(("rgb", *self.modalities))
        }
        missing = [getattr(self, name) for name, stream in streams.items() if stream is None]
        if missing:
            raise ClipError(f"{folder} has no {' and no '.join(missing)} (folder of images or video)")
        check_numbers(stream for stream in streams.values() if stream is not None)
        return streams

    def _exposure(self, rgb: StreamFiles) -> float:
        """The option `exposure`, or computed from the clip's brightest pixels; 1 if the picture is not linear."""
        if self.exposure > 0 or rgb.kind != "exr":
            return self.exposure or 1.0
        brightest = np.stack([image.max(axis=-1).astype(np.float32) for image in StreamReader(rgb).images()])
        bright = float(np.percentile(brightest, AUTO_WHITE_PERCENTILE))
        return 1.0 / bright if 0 < bright < math.inf else 1.0

    def _scan(self, name: str, stream: StreamFiles, exposure: float) -> "PictureScan | MapScan":
        """Scan and check a stream on its own."""
        where = stream.where
        if name == "rgb":
            return self._picture(stream, exposure)
        if name == "albedo":
            scan = scan_stream(
                stream,
                lambda dtype, channels: albedo_decoding(dtype, channels, where, self.albedo_coding),
                self.passthrough,
            )
            check_albedo(scan)
            return map_scan_of(Albedo, scan, AlbedoConstants())
        if name == "irradiance":
            scale = self.irradiance_scale * exposure
            white_point = WhitePointTracker()
            scan = scan_stream(
                stream,
                lambda dtype, channels: irradiance_decoding(dtype, channels, where, self.irradiance_coding, scale),
                self.passthrough,
                white_point,
            )
            check_irradiance(scan)
            return map_scan_of(Irradiance, scan, IrradianceConstants(white_point.white()))
        directions = NormalStatistics(self.normal_frame)
        scan = scan_stream(
            stream,
            lambda dtype, channels: normal_decoding(dtype, channels, where, self.normal_frame, self.normal_coding),
            self.passthrough,
            directions,
        )
        hint = 'Normalize them, or set normal_coding ("signed" or "unit") if they are decoded incorrectly.'
        non_unit = directions.check(scan.where, length_tolerance(scan), hint)
        return map_scan_of(Normal, scan, NormalConstants())._replace(non_unit=non_unit)

    def _picture(self, stream: StreamFiles, exposure: float) -> "PictureScan":
        """The picture in 8-bit sRGB."""
        reader, where = StreamReader(stream), stream.where
        picture = np.empty((reader.count, *reader.size_px, 3), np.uint8)
        convert: ValueLookup | None = None
        lo, over = 0.0, 0
        for target, image in zip(picture, reader.images(), strict=True):
            if convert is None:
                check_channels(image.shape[-1], (1, 3), where)
                linear = image.dtype.kind == "f" or (stream.kind != "video" and self.rgb_coding == "linear")
                if not linear and self.exposure != 1.0:
                    text = f"exposure = {self.exposure:g} requires linear rgb"
                    raise ClipError(f"{where} is sRGB: {text}")
                convert = ValueLookup(partial(_displayed, np.float32(exposure)) if linear else _rounded, image.dtype)
            low, high = range_of(image)
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ClipError(f"{where}: the linear picture has values that are NaN or infinite")
            lo = min(lo, low)
            over += _count_above(image, 1 / exposure) if linear and high > 1 / exposure else 0
            target[:] = image if image.dtype == np.uint8 and not linear else convert(image)
        if lo < -0.01:
            raise ClipError(f"{where}: linear light must be >= 0, the minimum is {lo:g}")
        return PictureScan(picture, sampled(picture), reader.video, over / picture.size)

    def _scene(self, key: str) -> str | None:
        pattern = one_group(self.scene, "interiorvid: scene")
        if pattern is None:
            return None
        named = pattern.search(key)
        if named is None or not named[1]:
            raise ClipError(f'the clip\'s key "{key}" does not match scene = "{self.scene}". Correct the pattern.')
        return str(named[1])


def _can_be(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in VIDEOS


def _caption(location: ClipLocation) -> str | None:
    folder = Path(location.folder)
    return read_text(folder / "caption.txt", location.root) or read_text(
        folder.with_name(f"{folder.name}.txt"), location.root
    )


def _displayed(exposure: np.float32, light: np.ndarray) -> np.ndarray:
    """Linear light as 8-bit sRGB."""
    return _rounded(linear_to_srgb(np.clip(light * exposure, 0, 1)))


def _rounded(unit: np.ndarray) -> np.ndarray:
    return np.rint(unit * np.float32(255)).astype(np.uint8)


def _count_above(image: np.ndarray, limit: float) -> int:
    """Number of values above `limit` > 0; integer levels as 0..1."""
    most = 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)
    if image.dtype != np.float16:
        return int(np.count_nonzero(image > limit * most))
    nearest = np.float16(min(limit, 65504.0))  # bit patterns of positive numbers increase with them
    highest_below = nearest if float(nearest) <= limit else np.nextafter(nearest, np.float16(0))
    return int(np.count_nonzero(image.view(np.int16) > highest_below.view(np.int16)))


def map_scan_of(modality: type[Modality], scan: StreamScan, constants: Any) -> "MapScan":
    """The scanned values as the modality, or the original files as a payload."""
    signal = None if scan.array is None else modality.from_passthrough(scan.array, constants)
    return MapScan(scan, signal, scan.payload(constants))

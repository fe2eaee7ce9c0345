"""InteriorVid and sets like it: rendered interiors, a folder per clip with rgb, albedo, irradiance and normals."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np

from manifests.errors import ClipError, OpenUniError
from manifests.modalities.albedo import Albedo
from manifests.modalities.irradiance import Irradiance
from manifests.modalities.normal import Normal
from manifests.modalities.rgb import RGB
from manifests.transfer import linear_of, srgb_of
from openuni.importer import Found, Imported, Importer
from openuni.importers._alignment import check_structure, thumbnails
from openuni.importers._intrinsics import Fit, albedo_of, check_product, irradiance_of, normal_of, range_of
from openuni.importers._sequences import IMAGES, VIDEOS, Pictures, check_alike, find_stream, read_stream
from openuni.importers._sets import Place, clip_folders, one_group, read_text

MAPS = ("albedo", "irradiance", "normal")
AUTO_WHITE_PERCENTILE = 99.0
Coding = Literal["linear", "srgb"]


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
    fps: Annotated[float, "frames per second of image sequences"] = 16.0
    scene: Annotated[str, "regular expression with one group: the scene in a clip's key; empty: no two share one"] = ""
    exposure: Annotated[float, "linear light is multiplied by it; 0: such that 99 % of a clip's pixels are below 1"] = (
        1.0
    )
    rgb_coding: Annotated[Coding, "of rgb in PNG and JPEG; EXR is linear, videos are srgb"] = "srgb"
    albedo_coding: Annotated[Coding, "of albedo in PNG, JPEG and videos; EXR is linear"] = "linear"
    irradiance_coding: Annotated[Coding, "of irradiance in PNG, JPEG and videos; EXR is linear"] = "linear"
    irradiance_scale: Annotated[float, "given irradiance times this, times albedo, is linear rgb"] = 1.0
    normal_frame: Annotated[Literal["opengl", "opencv"], "opengl: y up, z to the viewer; opencv: y down, z away"] = (
        "opengl"
    )
    normal_coding: Annotated[Literal["auto", "signed", "unit"], "signed: n; unit: (n + 1) / 2; auto: EXR is signed"] = (
        "auto"
    )
    check_product: Annotated[bool, "refuse clips whose albedo x irradiance does not explain rgb"] = True

    origin: ClassVar[str] = "UniVidX's InteriorVid; its files are not public, so the layout is by folders"

    def __post_init__(self) -> None:
        one_group(self.scene, "interiorvid: scene")
        wrong = [name for name in self.modalities if name not in MAPS]
        if wrong:
            raise OpenUniError(f'interiorvid: modality "{wrong[0]}" is not known. Known: {", ".join(MAPS)}.')
        for name in ("fps", "irradiance_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise OpenUniError(f"interiorvid: {name} = {getattr(self, name)}. Allowed: above 0.")
        if not 0 <= self.exposure < math.inf:
            raise OpenUniError(f"interiorvid: exposure = {self.exposure}. Allowed: 0 (by the clip) and more.")

    def find(self, folder: Path) -> Iterator[Found]:
        """Folders that hold the picture and another map, by name."""
        none = True
        for key, place in clip_folders(folder, self._is_clip):
            none = False
            yield Found(key, place)
        if none:
            names = ", ".join(getattr(self, name) for name in ("rgb", *self.modalities))
            raise OpenUniError(
                f"{folder}: no folder below it holds at least two of {names}, as folders with images "
                f"({', '.join(IMAGES)}) or videos ({', '.join(VIDEOS)}). The options rgb, albedo, ... set the names."
            )

    def read(self, found: Found) -> Imported[InteriorMaps]:
        """One clip: counts, sizes, ranges, units and alignment checked."""
        place: Place = found.place
        streams = self._streams(place)
        pictures = {name: read_stream(stream, widen=name != "rgb") for name, stream in streams.items()}
        check_alike(pictures, "rgb")
        picture, exposure, overexposed = self._picture(pictures["rgb"])
        maps, renormalised = self._maps(pictures, exposure)
        small = {name: thumbnails(modality.array) for name, modality in maps.items()}
        shown = thumbnails(picture)
        fit = Fit(None, None, sure=True)
        edged = list(maps)
        if self.check_product and {"albedo", "irradiance"} <= maps.keys():
            fit = check_product(shown, small["albedo"], small["irradiance"], streams["rgb"].where)
            edged = [name for name in maps if name == "normal"]
        sure = [check_structure(small[name], shown, streams[name].where) for name in edged]
        video = pictures["rgb"].video
        row = InteriorMaps(
            rgb=RGB(picture) if video is None else None,
            albedo=maps.get("albedo"),
            irradiance=maps.get("irradiance"),
            normal=maps.get("normal"),
            exposure=exposure,
            transfer="srgb",
            overexposed_share=overexposed,
            product_correlation=fit.correlation,
            product_gain=fit.gain,
            renormalised_share=renormalised,
            aligned_by_motion=bool(maps) and fit.sure and all(sure),
        )
        return Imported(
            row,
            fps=self.fps,
            video=video,
            caption=_caption(place),
            origin=self._scene(found.key),
            split=place.split,
        )

    def _is_clip(self, folder: Path) -> bool:
        names = {getattr(self, name) for name in ("rgb", *self.modalities)}
        held = {path.name if path.is_dir() else path.stem for path in folder.iterdir() if _can_be(path)}
        return len(names & held) >= min(2, len(names))

    def _streams(self, place: Place) -> dict[str, Any]:
        folder = Path(place.folder)
        streams = {
            name: find_stream(folder, getattr(self, name), place.root)
            for name in dict.fromkeys(("rgb", *self.modalities))
        }
        missing = [getattr(self, name) for name, stream in streams.items() if stream is None]
        if missing:
            raise ClipError(f"{folder} has no {' and no '.join(missing)}, neither as a folder of images nor as a video")
        return streams

    def _picture(self, given: Pictures) -> tuple[np.ndarray, float, float]:
        """uint8 [T, H, W, 3] sRGB, the exposure, and the share of values above white."""
        where = given.stream.where
        _check_channels(given, (1, 3))
        if given.array.shape[-1] == 1:
            given = given._replace(array=np.repeat(given.array, 3, axis=-1))
        coded = "linear" if given.is_float else "srgb" if given.stream.kind == "video" else self.rgb_coding
        if coded == "srgb":
            if self.exposure != 1.0:
                raise ClipError(f"{where} is sRGB already: exposure = {self.exposure:g} can be set for linear rgb only")
            return given.array if given.array.dtype == np.uint8 else given.through(_rounded, np.uint8), 1.0, 0.0
        lo, hi = range_of(given.units(), where, "linear picture")
        if lo < -0.01:
            raise ClipError(f"{where}: linear light must be >= 0, smallest value is {lo:g}")
        exposure = self.exposure
        if exposure == 0.0:
            brightest = np.stack([light.max(axis=-1) for light in given.units()])
            bright = float(np.percentile(brightest, AUTO_WHITE_PERCENTILE))
            exposure = 1.0 / bright if bright > 0 else 1.0
        scale = np.float32(exposure)
        picture = given.through(lambda values: _rounded(srgb_of(np.clip(values * scale, 0, 1))), np.uint8)
        over = sum(int(np.count_nonzero(light > 1 / exposure)) for light in given.units()) if hi > 1 / exposure else 0
        return picture, exposure, over / picture.size

    def _maps(self, pictures: dict[str, Pictures], exposure: float) -> tuple[dict[str, Any], float | None]:
        """The maps as modalities, and the share of normals that had to be brought to unit length."""
        maps: dict[str, Any] = {}
        renormalised = None
        for name, given in pictures.items():
            if name == "rgb":
                continue
            _check_channels(given, (1, 3) if name == "irradiance" else (3,))
            if name == "normal":
                maps[name], renormalised = normal_of(given, self.normal_frame, self.normal_coding)
            elif name == "albedo":
                maps[name] = albedo_of(given, _linear(given, self.albedo_coding))
            else:
                scale = self.irradiance_scale * exposure
                maps[name] = irradiance_of(given, _linear(given, self.irradiance_coding), scale)
        return maps, renormalised

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


def _caption(place: Place) -> str | None:
    folder = Path(place.folder)
    return read_text(folder / "caption.txt", place.root) or read_text(
        folder.with_name(f"{folder.name}.txt"), place.root
    )


def _check_channels(given: Pictures, allowed: tuple[int, ...]) -> None:
    if given.array.shape[-1] not in allowed:
        needed = " or ".join(map(str, allowed))
        raise ClipError(f"{given.stream.where} has {given.array.shape[-1]} channels, needed are {needed}")


def _linear(given: Pictures, coding: Coding) -> np.ndarray:
    """float32 [T, H, W, C]: light or reflectance, in linear scale."""
    return given.unit() if given.is_float or coding == "linear" else given.through(linear_of, np.float32)


def _rounded(unit: np.ndarray) -> np.ndarray:
    return np.rint(unit * np.float32(255)).astype(np.uint8)

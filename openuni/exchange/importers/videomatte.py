"""VideoMatte240K and similar datasets: foregrounds with mattes, composited over backgrounds, or with composites."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from openuni.exchange.importer import FoundClip, ImportedClip, Importer
from openuni.exchange.importers._alignment import align_by_values, check_structure, format_shift, shifted, thumbnails
from openuni.exchange.importers._dataset_layout import MAX_DEPTH, ClipLocation, read_text, split_of, subfolders
from openuni.exchange.importers._mattes import backdrop, check_support, classify_foreground, composite, unpremultiply
from openuni.exchange.importers._sequences import VIDEOS, StreamFiles, check_numbers, check_same, find_stream
from openuni.exchange.importers._stream_scan import StreamScan, map_in_threads, scan_stream, subsample_frames
from openuni.manifests.contracts.modality import Payload
from openuni.manifests.contracts.options import Formerly
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.modalities.alpha import Alpha, AlphaConstants
from openuni.manifests.modalities.background import Background
from openuni.manifests.modalities.foreground import Foreground
from openuni.manifests.modalities.rgb import RGB, RGBConstants
from openuni.manifests.video.encode import exact_fps
from openuni.manifests.video.passthrough import PixelDecoding

CHECKED_PERCENTILE = 99.0  # of the differences between the dataset's composite and that of its layers


class MatteMaps(NamedTuple):
    """One composite and its layers."""

    rgb: RGB | None  # None: the dataset has a composite video, which is referenced
    alpha: Alpha | None
    foreground: Foreground | None
    background: Background | None  # None: the dataset has a composite, but no background
    background_file: Annotated[str, "path within `backgrounds` or the dataset, or generated; empty: unknown"]
    seed: Annotated[int | None, "random seed of the background; null for backgrounds of the dataset"]
    foreground_form: Annotated[str, "straight, unpremultiplied (the dataset's is premultiplied), or cannot tell"]
    composite_difference: Annotated[
        float | None, "99th percentile of the difference between the dataset's composite and that of its layers, 0..255"
    ]
    aligned_by_motion: Annotated[bool, "whether motion confirms the temporal alignment of the streams"]


class MatteLocation(NamedTuple):
    """A clip's folder and name; the folder has one subfolder per stream, with one entry per clip."""

    location: ClipLocation  # of the folder with fgr, pha, ...
    clip: str


class Layers(NamedTuple):
    """The dataset's layers of one clip."""

    alpha: np.ndarray  # float32 [T, H, W, 1]
    foreground: np.ndarray  # uint8 [T, H, W, 3], straight
    background: np.ndarray | None
    picture: np.ndarray | None

    def thin(self) -> "Layers":
        """The layers at the rows and columns that the checks sample."""
        background = None if self.background is None else subsample_frames(self.background)
        picture = None if self.picture is None else subsample_frames(self.picture)
        return Layers(subsample_frames(self.alpha), subsample_frames(self.foreground), background, picture)


@dataclass(frozen=True)
class VideoMatte(Importer):
    """Reads fgr/CLIP and pha/CLIP, each a numbered sequence (JPEG, PNG) or a video, also below split folders.

    rgb = round(alpha x foreground + (1 - alpha) x background) of sRGB values, over a background from the folder
    `backgrounds` or a generated one; equal keys, options and backgrounds give equal pixels. bgr/CLIP, if present, is
    the background; com/CLIP, if present, is the picture and must match its layers. CLIP.txt next to the folders is the
    caption.
    """

    foreground: Annotated[str, "folder name of the foregrounds"] = "fgr"
    alpha: Annotated[str, "folder name of the mattes (white: foreground)"] = "pha"
    background: Annotated[str, "folder name of the dataset's backgrounds, optional"] = "bgr"
    composite: Annotated[str, "folder name of the dataset's composites, optional"] = "com"
    backgrounds: Annotated[str, "folder with background images and videos; empty: generated textures"] = ""
    seed: Annotated[int, "random seed of backgrounds", Ge(0)] = 0
    premultiplied: Annotated[bool, "foregrounds are premultiplied; divide them by alpha"] = False
    tolerance_levels: Annotated[
        float,
        "tolerated difference (99th percentile) between the dataset's composite and that of its layers, 0..255",
        Ge(0),
    ] = 6.0
    passthrough: Annotated[bool, "store the original files of layers; false: re-encode", Formerly("keep_files")] = True
    fps: Annotated[float, "frame rate of image sequences, 1/s", Gt(0)] = 25.0

    revision: ClassVar[int] = 2
    origin: ClassVar[str] = "VideoMatte240K, of Real-Time High-Resolution Background Matting"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backgrounds and not Path(self.backgrounds).is_dir():
            raise OpenUniError(f"videomatte: backgrounds = {self.backgrounds!r} is not a folder")

    def find(self, folder: Path) -> Iterator[FoundClip]:
        """The names in the folders of foregrounds and mattes."""
        empty = True
        for base in self._bases(folder, MAX_DEPTH):
            within = base.relative_to(folder).as_posix()
            names = {name for side in (self.foreground, self.alpha) for name in _names(base / side)}
            for name in sorted(names):
                empty = False
                key = name if within == "." else f"{within}/{name}"
                yield FoundClip(key, MatteLocation(ClipLocation(str(folder), str(base), split_of(key)), name))
        if empty:
            raise OpenUniError(
                f"{folder}: no folder contains {self.foreground} and {self.alpha} with clips, as folders of images or "
                f"videos ({', '.join(VIDEOS)}). Set the names with the options foreground and alpha."
            )

    def read(self, found: FoundClip) -> ImportedClip[MatteMaps]:
        """One clip; checks counts, sizes, alignment, the composite, and whether the foreground is premultiplied."""
        location, clip = found.location.location, found.location.clip
        streams = self._streams(found.location)
        scans = map_in_threads(lambda name: self._scan(name, streams[name]), list(streams))
        check_same({name: (scan.where, scan.shape[:3]) for name, scan in scans.items()}, "foreground")
        layers, form = self._layers(scans)
        where = streams["alpha"].where
        file, seed, background, difference = "", None, layers.background, None
        if layers.picture is not None:
            difference, confirmed = self._check_composite(layers.thin(), streams["composite"].where)
        else:
            confirmed = check_support(subsample_frames(layers.alpha), subsample_frames(layers.foreground), where)
        if background is not None:
            file = str(streams["background"].where.relative_to(Path(location.root).resolve()))
        elif layers.picture is None:
            shape = layers.alpha.shape[0], layers.alpha.shape[1], layers.alpha.shape[2]
            background, file = backdrop(self.backgrounds, found.key, location.split, self.seed, shape)
            seed = self.seed
        picture = layers.picture
        if picture is None and background is not None:
            picture = composite(layers.alpha, layers.foreground, background)
        video = scans["composite"].video if "composite" in scans else None
        fps = next((scan.video.fps for scan in scans.values() if scan.video is not None), exact_fps(self.fps))
        row = MatteMaps(
            rgb=None if video is not None or picture is None else RGB(picture),
            alpha=Alpha(layers.alpha),
            foreground=Foreground(layers.foreground),
            background=None if background is None else Background(background),
            background_file=file,
            seed=seed,
            foreground_form=form,
            composite_difference=difference,
            aligned_by_motion=confirmed,
        )
        caption = read_text(Path(location.folder) / f"{clip}.txt", location.root)
        payloads = _payloads(scans, form)
        return ImportedClip(row, fps=fps, video=video, caption=caption, split=location.split, payloads=payloads)

    def _bases(self, folder: Path, depth: int) -> Iterator[Path]:
        if (folder / self.foreground).is_dir() and (folder / self.alpha).is_dir():
            yield folder
        elif depth > 0:
            for inner in subfolders(folder):
                yield from self._bases(inner, depth - 1)

    def _streams(self, location: MatteLocation) -> dict[str, StreamFiles]:
        base, streams = Path(location.location.folder), {}
        for name in ("foreground", "alpha", "background", "composite"):
            folder = base / getattr(self, name)
            stream = find_stream(folder, location.clip, location.location.root) if folder.is_dir() else None
            if stream is not None:
                streams[name] = stream
            elif folder.is_dir() or name in ("foreground", "alpha"):
                raise ClipError(f"{folder} has no {location.clip} (folder of images or video)")
        check_numbers(streams.values())
        return streams

    def _scan(self, name: str, stream: StreamFiles) -> StreamScan:
        """Scan one layer."""
        if name == "alpha":
            return scan_stream(stream, lambda dtype, channels: PixelDecoding(channels=1), self.passthrough, whole=True)

        def reading(dtype: np.dtype, channels: int) -> PixelDecoding:
            if channels != 3 or dtype.kind == "f":
                raise ClipError(f"{stream.where} must have three channels of 8 or 16 bits; got {dtype}")
            return PixelDecoding(levels=True)

        return scan_stream(stream, reading, self.passthrough and name != "composite", whole=True)

    def _layers(self, scans: Mapping[str, StreamScan]) -> tuple[Layers, str]:
        """The layers of the dataset with a straight foreground, and the form of the original foreground."""
        arrays = {name: scan.array for name, scan in scans.items()}
        alpha, foreground = arrays["alpha"], arrays["foreground"]
        assert alpha is not None and foreground is not None  # scanned with whole=True
        where, (lo, hi) = scans["foreground"].where, (scans["alpha"].lo, scans["alpha"].hi)
        if not (lo >= 0 and hi <= 1):
            raise ClipError(f"{scans['alpha'].where}: alpha ranges from {lo:g} to {hi:g}. Allowed: 0 to 1.")
        if hi == 0:
            raise ClipError(f"{scans['alpha'].where}: alpha is 0 everywhere; the clip has no foreground")
        form = classify_foreground(subsample_frames(foreground), subsample_frames(alpha))
        if form == "premultiplied" and not self.premultiplied:
            raise ClipError(
                f"{where} is premultiplied: its soft edges darken with alpha. Set premultiplied = true to divide it by "
                "alpha, or provide straight foregrounds."
            )
        if self.premultiplied:
            if form == "straight":
                text = f"{where} is straight: its soft edges have the colours of the opaque parts next to them"
                raise ClipError(f"{text}. Remove premultiplied = true.")
            foreground, form = unpremultiply(foreground, alpha, where), "unpremultiplied"
        return Layers(alpha, foreground, arrays.get("background"), arrays.get("composite")), form

    def _check_composite(self, layers: Layers, where: Path) -> tuple[float, bool]:
        """The composite's difference from its layers, 0..255, and whether motion confirms the alignment."""
        alpha, picture = layers.alpha, layers.picture
        assert picture is not None
        if layers.background is None:  # unknown, but within 0..255
            rest = [
                image - cover * front for image, cover, front in zip(picture, alpha, layers.foreground, strict=True)
            ]
            over = [np.maximum(-part, part - 255 * (1 - cover)) for part, cover in zip(rest, alpha, strict=True)]
            difference = float(np.percentile(np.maximum(np.stack(over), 0), CHECKED_PERCENTILE))
            confirmed = check_structure(alpha, picture, where)
        else:
            front, rear, cover, reference = map(thumbnails, (layers.foreground, layers.background, alpha, picture))

            def composed(frames: int) -> np.ndarray:
                late = shifted(cover, frames)
                return late * front + (1 - late) * rear

            alignment = align_by_values(composed, reference)
            unshifted_error, shifted_error = (
                float(np.abs(composed(frames) - reference).mean()) for frames in (0, alignment.shift)
            )
            # with a larger error it is from another clip, and no shift helps
            if alignment.shift and shifted_error < unshifted_error / 2:
                text = f"alpha of {where.name} is {format_shift(alignment.shift)}"
                raise ClipError(
                    f"{where.parent}: {text}: shifted, it fits much better. Correct the order of its frames."
                )
            confirmed = alignment.confirmed
            whole = composite(alpha, layers.foreground, layers.background).astype(np.int16)
            difference = float(np.percentile(np.abs(whole - picture), CHECKED_PERCENTILE))
        if difference > self.tolerance_levels:
            raise ClipError(
                f"{where} is not alpha x foreground + (1 - alpha) x background: the 99th percentile of the "
                f"difference is {difference:.3g} levels. Allowed: tolerance_levels = {self.tolerance_levels:g}."
            )
        return difference, confirmed


def _names(folder: Path) -> Iterator[str]:
    for path in folder.iterdir():
        if not path.name.startswith("."):
            if path.is_dir():
                yield path.name
            elif path.suffix.lower() in VIDEOS:
                yield path.stem


def _payloads(scans: Mapping[str, StreamScan], form: str) -> dict[str, Payload]:
    """The original files of layers, by modality."""
    constants = {"alpha": AlphaConstants(), "foreground": RGBConstants(), "background": RGBConstants()}
    if form == "unpremultiplied":
        del constants["foreground"]  # its colours differ from those of the files
    payloads = {name: scans[name].payload(value) for name, value in constants.items() if name in scans}
    return {name: payload for name, payload in payloads.items() if payload is not None}

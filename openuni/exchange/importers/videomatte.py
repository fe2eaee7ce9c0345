"""VideoMatte240K and sets like it: foregrounds with mattes, put over backgrounds; or composites that came along."""

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
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.modalities.alpha import Alpha, AlphaConstants
from openuni.manifests.modalities.background import Background
from openuni.manifests.modalities.foreground import Foreground
from openuni.manifests.modalities.rgb import RGB, RGBConstants
from openuni.manifests.video.passthrough import PixelDecoding

CHECKED_PERCENTILE = 99.0  # of the differences between a composite that came along and its layers'


class MatteMaps(NamedTuple):
    """One composite and its layers."""

    rgb: RGB | None  # None: a composite came along as a video, which lies in the set
    alpha: Alpha | None
    foreground: Foreground | None
    background: Background | None  # None: a composite came along without it
    background_file: Annotated[str, "within `backgrounds`; or generated, or the set's own folder; empty: unknown"]
    seed: Annotated[int | None, "of the choice of the background; null where the set brings its own"]
    foreground_form: Annotated[str, "straight, unpremultiplied (it was premultiplied), or cannot tell"]
    composite_difference: Annotated[
        float | None, "99th percentile of a composite that came along from its layers', 0..255"
    ]
    aligned_by_motion: Annotated[bool, "whether motion proves the streams in step; false: the clip cannot tell"]


class MatteLocation(NamedTuple):
    """A clip's folders hold clips each."""

    location: ClipLocation  # of the folder that holds fgr, pha, ...
    clip: str


class Layers(NamedTuple):
    """What the set brings."""

    alpha: np.ndarray  # float32 [T, H, W, 1]
    foreground: np.ndarray  # uint8 [T, H, W, 3], straight
    background: np.ndarray | None
    picture: np.ndarray | None

    def thin(self) -> "Layers":
        """As many rows and columns as checks look at."""
        background = None if self.background is None else subsample_frames(self.background)
        picture = None if self.picture is None else subsample_frames(self.picture)
        return Layers(subsample_frames(self.alpha), subsample_frames(self.foreground), background, picture)


@dataclass(frozen=True)
class VideoMatte(Importer):
    """Reads fgr/CLIP and pha/CLIP, each a numbered sequence (JPEG, PNG) or a video, also below train and test.

    rgb = round(alpha x foreground + (1 - alpha) x background) of sRGB values, over a background of the folder
    `backgrounds` or a generated one; equal keys, options and backgrounds give equal pixels. Where the set has bgr/CLIP
    too, that is the background; where it has com/CLIP, that is the picture, and it must be what its layers give.
    CLIP.txt beside the folders is the caption.
    """

    foreground: Annotated[str, "name of the folder with the foregrounds"] = "fgr"
    alpha: Annotated[str, "name of the folder with the mattes, white where the foreground is"] = "pha"
    background: Annotated[str, "name of the folder with the set's own backgrounds, used where there is one"] = "bgr"
    composite: Annotated[str, "name of the folder with the set's own composites, used where there is one"] = "com"
    backgrounds: Annotated[str, "folder with pictures and videos to put behind; empty: textures are generated"] = ""
    seed: Annotated[int, "of the choice and the making of backgrounds", Ge(0)] = 0
    premultiplied: Annotated[bool, "the foregrounds are multiplied by alpha: divide them by it"] = False
    tolerance_levels: Annotated[
        float, "that 99 % of a composite that came along may differ from its layers', 0..255", Ge(0)
    ] = 6.0
    keep_files: Annotated[bool, "layers stay in the files they came in, exact; false: all are coded anew"] = True
    fps: Annotated[float, "frames per second of image sequences", Gt(0)] = 25.0

    revision: ClassVar[int] = 2
    origin: ClassVar[str] = "VideoMatte240K, of Real-Time High-Resolution Background Matting"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backgrounds and not Path(self.backgrounds).is_dir():
            raise OpenUniError(f"videomatte: backgrounds = {self.backgrounds!r} is no folder")

    def find(self, folder: Path) -> Iterator[FoundClip]:
        """The names in the folders of foregrounds and mattes."""
        none = True
        for base in self._bases(folder, MAX_DEPTH):
            within = base.relative_to(folder).as_posix()
            names = {name for side in (self.foreground, self.alpha) for name in _names(base / side)}
            for name in sorted(names):
                none = False
                key = name if within == "." else f"{within}/{name}"
                yield FoundClip(key, MatteLocation(ClipLocation(str(folder), str(base), split_of(key)), name))
        if none:
            raise OpenUniError(
                f"{folder}: no folder in it holds {self.foreground} and {self.alpha} with clips, as folders of images "
                f"or videos ({', '.join(VIDEOS)}). The options foreground and alpha set the names."
            )

    def read(self, found: FoundClip) -> ImportedClip[MatteMaps]:
        """One clip: counts, sizes, form of the foreground, alignment and composite checked."""
        place, clip = found.location.location, found.location.clip
        streams = self._streams(found.location)
        looks = map_in_threads(lambda name: self._look(name, streams[name]), list(streams))
        check_same({name: (seen.where, seen.shape[:3]) for name, seen in looks.items()}, "foreground")
        layers, form = self._layers(looks)
        where = streams["alpha"].where
        file, seed, background, difference = "", None, layers.background, None
        if layers.picture is not None:
            difference, sure = self._check_composite(layers.thin(), streams["composite"].where)
        else:
            sure = check_support(subsample_frames(layers.alpha), subsample_frames(layers.foreground), where)
        if background is not None:
            file = str(streams["background"].where.relative_to(Path(place.root).resolve()))
        elif layers.picture is None:
            shape = layers.alpha.shape[0], layers.alpha.shape[1], layers.alpha.shape[2]
            background, file = backdrop(self.backgrounds, found.key, place.split, self.seed, shape)
            seed = self.seed
        picture = layers.picture
        if picture is None and background is not None:
            picture = composite(layers.alpha, layers.foreground, background)
        video = looks["composite"].video if "composite" in looks else None
        fps = next((seen.video.fps for seen in looks.values() if seen.video is not None), self.fps)
        row = MatteMaps(
            rgb=None if video is not None or picture is None else RGB(picture),
            alpha=Alpha(layers.alpha),
            foreground=Foreground(layers.foreground),
            background=None if background is None else Background(background),
            background_file=file,
            seed=seed,
            foreground_form=form,
            composite_difference=difference,
            aligned_by_motion=sure,
        )
        caption = read_text(Path(place.folder) / f"{clip}.txt", place.root)
        payloads = _payloads(looks, form)
        return ImportedClip(row, fps=fps, video=video, caption=caption, split=place.split, payloads=payloads)

    def _bases(self, folder: Path, depth: int) -> Iterator[Path]:
        if (folder / self.foreground).is_dir() and (folder / self.alpha).is_dir():
            yield folder
        elif depth > 0:
            for inner in subfolders(folder):
                yield from self._bases(inner, depth - 1)

    def _streams(self, at: MatteLocation) -> dict[str, StreamFiles]:
        base, streams = Path(at.location.folder), {}
        for name in ("foreground", "alpha", "background", "composite"):
            folder = base / getattr(self, name)
            stream = find_stream(folder, at.clip, at.location.root) if folder.is_dir() else None
            if stream is not None:
                streams[name] = stream
            elif folder.is_dir() or name in ("foreground", "alpha"):
                raise ClipError(f"{folder} has no {at.clip}, neither as a folder of images nor as a video")
        check_numbers(streams.values())
        return streams

    def _look(self, name: str, stream: StreamFiles) -> StreamScan:
        """A layer: its values, and its files where they are kept."""
        if name == "alpha":
            return scan_stream(stream, lambda dtype, channels: PixelDecoding(channels=1), self.keep_files, whole=True)

        def reading(dtype: np.dtype, channels: int) -> PixelDecoding:
            if channels != 3 or dtype.kind == "f":
                raise ClipError(f"{stream.where} must have three channels of 8 or 16 bits; found {dtype}")
            return PixelDecoding(levels=True)

        return scan_stream(stream, reading, self.keep_files and name != "composite", whole=True)

    def _layers(self, looks: Mapping[str, StreamScan]) -> tuple[Layers, str]:
        """The set's layers, the foreground straight, and its form."""
        arrays = {name: seen.array for name, seen in looks.items()}
        alpha, foreground = arrays["alpha"], arrays["foreground"]
        assert alpha is not None and foreground is not None  # both were asked for as a whole
        where, (lo, hi) = looks["foreground"].where, (looks["alpha"].lo, looks["alpha"].hi)
        if not (lo >= 0 and hi <= 1):
            raise ClipError(f"{looks['alpha'].where}: alpha ranges from {lo:g} to {hi:g}. Allowed: 0 to 1.")
        if hi == 0:
            raise ClipError(f"{looks['alpha'].where}: alpha is 0 everywhere, there is no foreground")
        form = classify_foreground(subsample_frames(foreground), subsample_frames(alpha))
        if form == "premultiplied" and not self.premultiplied:
            raise ClipError(
                f"{where} is premultiplied: at soft edges it is as dark as alpha is low. Set premultiplied = true to "
                "divide it by alpha, or give straight foregrounds."
            )
        if self.premultiplied:
            if form == "straight":
                text = f"{where} is straight: its soft edges have the colours of the opaque parts beside them"
                raise ClipError(f"{text}. Leave out premultiplied = true.")
            foreground, form = unpremultiply(foreground, alpha, where), "unpremultiplied"
        return Layers(alpha, foreground, arrays.get("background"), arrays.get("composite")), form

    def _check_composite(self, layers: Layers, where: Path) -> tuple[float, bool]:
        """How far the composite that came along is from its layers', 0..255, and whether motion proves them in step."""
        alpha, picture = layers.alpha, layers.picture
        assert picture is not None
        if layers.background is None:  # whatever it was, it lies within 0..255
            rest = [
                image - cover * front for image, cover, front in zip(picture, alpha, layers.foreground, strict=True)
            ]
            over = [np.maximum(-part, part - 255 * (1 - cover)) for part, cover in zip(rest, alpha, strict=True)]
            difference = float(np.percentile(np.maximum(np.stack(over), 0), CHECKED_PERCENTILE))
            sure = check_structure(alpha, picture, where)
        else:
            front, rear, cover, shown = map(thumbnails, (layers.foreground, layers.background, alpha, picture))

            def composed(frames: int) -> np.ndarray:
                late = shifted(cover, frames)
                return late * front + (1 - late) * rear

            verdict = align_by_values(composed, shown)
            apart, then = (float(np.abs(composed(frames) - shown).mean()) for frames in (0, verdict.shift))
            if verdict.shift and then < apart / 2:  # else it is another clip's, which no shift mends
                text = f"alpha of {where.name} is {format_shift(verdict.shift)}"
                raise ClipError(f"{where.parent}: {text}: it then fits clearly better. Mend the order of its frames.")
            sure = verdict.sure
            whole = composite(alpha, layers.foreground, layers.background).astype(np.int16)
            difference = float(np.percentile(np.abs(whole - picture), CHECKED_PERCENTILE))
        if difference > self.tolerance_levels:
            raise ClipError(
                f"{where} is not alpha x foreground + (1 - alpha) x background: one value in a hundred differs by "
                f"{difference:.3g} levels or more. Allowed: tolerance_levels = {self.tolerance_levels:g}."
            )
        return difference, sure


def _names(folder: Path) -> Iterator[str]:
    for path in folder.iterdir():
        if not path.name.startswith("."):
            if path.is_dir():
                yield path.name
            elif path.suffix.lower() in VIDEOS:
                yield path.stem


def _payloads(looks: Mapping[str, StreamScan], form: str) -> dict[str, Payload]:
    """The layers whose files are kept, by modality."""
    constants = {"alpha": AlphaConstants(), "foreground": RGBConstants(), "background": RGBConstants()}
    if form == "unpremultiplied":
        del constants["foreground"]  # its colours are no longer the files'
    kept = {name: looks[name].payload(given) for name, given in constants.items() if name in looks}
    return {name: payload for name, payload in kept.items() if payload is not None}

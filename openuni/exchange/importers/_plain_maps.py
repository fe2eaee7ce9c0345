"""Maps beside a picture that no sidecar describes: arrays and image sequences, held to the ranges of rendered sets."""

import tokenize
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from openuni.exchange.importers._dataset_layout import ClipLocation, resolve_inside
from openuni.exchange.importers._intrinsics import (
    LENGTH_TOLERANCE,
    NormalStatistics,
    check_albedo_range,
    check_irradiance_range,
)
from openuni.exchange.importers._sequences import (
    VIDEOS,
    StreamFiles,
    check_numbers,
    find_stream,
    read_indices,
    read_stream,
)
from openuni.exchange.importers._stream_scan import subsample
from openuni.manifests.arrays.vectors import rescale_vectors, vector_lengths
from openuni.manifests.contracts.modality import Modality, find_modality, modality_names
from openuni.manifests.errors import ClipError
from openuni.manifests.modalities.albedo import Albedo
from openuni.manifests.modalities.alpha import Alpha
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.irradiance import Irradiance
from openuni.manifests.modalities.normal import Normal
from openuni.manifests.modalities.segmentation import Segmentation
from openuni.manifests.video.container import Limits
from openuni.manifests.video.passthrough import MIN_NORMAL_LENGTH

ARRAY, IMAGES, VIDEO = ".npy", "folder", "video"
FORMS = {ARRAY: "NAME.npy", IMAGES: "images in NAME/", VIDEO: "NAME.mp4 or another video"}
# names of maps -> the forms in which they are read
READ: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("rgb", "foreground", "background"), (IMAGES, VIDEO)),
    **dict.fromkeys(("depth", "segmentation"), (IMAGES, ARRAY)),
    **dict.fromkeys(("flow", "normal", "albedo", "irradiance", "alpha"), (ARRAY,)),
    "masks": (IMAGES,),
}
IDS = ("masks", "segmentation", "segmentation.npy")


class PlainMapInputs(NamedTuple):
    """What is known of a clip's plain maps."""

    location: ClipLocation
    picture: StreamFiles
    size: tuple[int, int, int]  # the picture's frames, height_px and width_px
    depth_unit: Literal["metres", "disparity"]
    depth_per_level: float  # of images
    normal_frame: Literal["opengl", "opencv"]

    @property
    def folder(self) -> Path:
        """The clip's."""
        return Path(self.location.folder)


def check_all_read(folder: Path, stored: Collection[str]) -> None:
    """Raise `ClipError` for a map in a form that is not read, unless it is one of the files that are `stored`."""
    for path in sorted(folder.iterdir()):
        name, form = (path.name, IMAGES) if path.is_dir() else (path.stem, path.suffix)
        form = VIDEO if form.lower() in VIDEOS else form
        if path.name in stored or name not in (*modality_names(), "masks") or form in READ.get(name, ()):
            continue
        is_map = any(path.iterdir()) if form == IMAGES else form == VIDEO or form.lower() in (".npy", ".npz")
        if is_map:
            forms = " or ".join(FORMS[read].replace("NAME", name) for read in READ.get(name, ()))
            ways = f"it is read from {forms}, or" if forms else "it is read"
            raise ClipError(
                f"{path} is no form in which {name} is read: {ways} as clip.json says. Convert or rename it."
            )


def plain_maps(given: PlainMapInputs, stored: Collection[str]) -> Iterator[tuple[str, Modality]]:
    """The maps by name; raises `ClipError` for values that are not a map's, and for maps that are there twice.

    `stored`: files in the clip's folder that hold other maps.
    """
    folder = given.folder
    _check_one(folder, ("depth", "depth.npy"))
    _check_one(folder, IDS)
    depth = _depth(given)
    if depth is not None:
        yield "depth", Depth(depth, given.depth_unit)
    flow = _array(given, "flow")
    if flow is not None:
        flow = _channels(flow.astype(np.float32), 2, "flow")
        yield "flow", Flow(flow) if len(flow) == given.size[0] else Flow.from_pairs(flow)
    masks = _sequence(given, "masks") or _sequence(given, "segmentation")
    ids = _array(given, "segmentation") if masks is None else read_indices(masks)
    if ids is not None:
        yield "segmentation", _segmentation(_channels(ids, 1, "segmentation"), folder)
    for name, channels in {"normal": 3, "albedo": 3, "irradiance": 3, "alpha": 1}.items():
        values = _array(given, name)
        if values is not None:
            values = _channels(values.astype(np.float32), channels, name)
            yield name, _checked(name, values, folder / f"{name}{ARRAY}", given.normal_frame)
    taken = {(folder / file).resolve() for file in stored}
    for name in ("foreground", "background"):
        stream = find_stream(folder, name, given.location.root)
        if stream is not None and stream.files[0] not in taken:
            check_numbers((given.picture, stream))
            yield name, find_modality(name)(read_stream(stream))


def _check_one(folder: Path, names: tuple[str, ...]) -> None:
    found = [name for name in names if (folder / name).exists()]
    if len(found) > 1:
        raise ClipError(f"{folder} has {' and '.join(found)}: one is needed, remove the other{'s' * (len(found) > 2)}")


def _sequence(given: PlainMapInputs, name: str) -> StreamFiles | None:
    """The images in a folder, numbered as the picture's."""
    if not (given.folder / name).is_dir():
        return None
    stream = find_stream(given.folder, name, given.location.root)
    if stream is not None:
        check_numbers((given.picture, stream))
    return stream


def _depth(given: PlainMapInputs) -> np.ndarray | None:
    """float32 [T, H, W, 1]."""
    levels = _sequence(given, "depth")
    if levels is None:
        depth = _array(given, "depth")
        return None if depth is None else _channels(depth.astype(np.float32), 1, "depth")
    array = read_stream(levels)
    if array.shape[-1] != 1 or array.dtype == np.uint8:
        raise ClipError(f"{levels.where}: depth must be 16-bit grey images, found {array.dtype} {array.shape}")
    return array.astype(np.float32) * np.float32(1.0 if array.dtype.kind == "f" else given.depth_per_level)


def _checked(name: str, values: np.ndarray, where: Path, frame: Literal["opengl", "opencv"]) -> Modality:
    """float32 [T, H, W, C] as the modality; what is a little beyond its range is brought back."""
    lo, hi = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (np.isfinite(lo) and np.isfinite(hi)):
        raise ClipError(f"{where} has values that are NaN or infinite")
    if name == "albedo":
        check_albedo_range(lo, hi, where)
        return Albedo(np.clip(values, 0, 1))
    if name == "irradiance":
        check_irradiance_range(lo, hi, 1.0, where)
        return Irradiance(np.maximum(values, 0))
    if name == "alpha":
        return Alpha(values)
    directions = NormalStatistics(frame)
    for image in values:
        directions(subsample(image))
    directions.check(where, LENGTH_TOLERANCE)
    for image in values:
        image[:] = rescale_vectors(image, vector_lengths(image), 1.0, MIN_NORMAL_LENGTH)
    return Normal(values) if frame == "opengl" else Normal.from_opencv(values)


def _array(given: PlainMapInputs, name: str) -> np.ndarray | None:
    """The array in a .npy file, its shape looked at before it is read; None when there is no file."""
    path = given.folder / f"{name}{ARRAY}"
    if not path.is_file():
        return None
    try:
        mapped = np.load(resolve_inside(path, given.location.root), mmap_mode="r", allow_pickle=False)
    except (ValueError, TypeError, ArithmeticError, EOFError, OSError, tokenize.TokenError) as error:
        raise ClipError(f"{path} is no array file: {error}") from error
    frames, height_px, width_px = given.size
    if mapped.ndim not in (3, 4) or mapped.dtype.kind not in "fui":
        raise ClipError(f"{path} holds {mapped.dtype} {mapped.shape}; needed are numbers [T, H, W] or [T, H, W, C]")
    largest = frames * height_px * width_px * 4
    if mapped.size > largest or mapped.size * 4 > Limits().max_decoded_bytes:
        raise ClipError(f"{path} has {mapped.shape}, more than {frames} frames of {width_px} x {height_px} need")
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

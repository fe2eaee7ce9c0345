"""Maps without a sidecar file: arrays and image sequences, checked against the ranges of their modalities."""

import tokenize
import zipfile
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
# name of the map -> supported file formats
READ: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("rgb", "foreground", "background"), (IMAGES, VIDEO)),
    **dict.fromkeys(("depth", "segmentation"), (IMAGES, ARRAY)),
    **dict.fromkeys(("flow", "normal", "albedo", "irradiance", "alpha"), (ARRAY,)),
    "masks": (IMAGES,),
}
IDS = ("masks", "segmentation", "segmentation.npy")


class PlainMapInputs(NamedTuple):
    """Properties of a clip that its plain maps are checked against."""

    location: ClipLocation
    picture: StreamFiles
    size: tuple[int, int, int]  # frames, height_px and width_px of the picture
    depth_unit: Literal["metres", "disparity"]
    depth_per_level: float  # of images
    normal_frame: Literal["opengl", "opencv"]

    @property
    def folder(self) -> Path:
        """The clip's folder."""
        return Path(self.location.folder)


def check_all_read(folder: Path, stored: Collection[str]) -> None:
    """Raise `ClipError` for a map in an unsupported file format, unless it is one of the `stored` files."""
    for path in sorted(folder.iterdir()):
        name, form = (path.name, IMAGES) if path.is_dir() else (path.stem, path.suffix)
        form = VIDEO if form.lower() in VIDEOS else form
        if path.name in stored or name not in (*modality_names(), "masks") or form in READ.get(name, ()):
            continue
        is_map = any(path.iterdir()) if form == IMAGES else form == VIDEO or form.lower() in (".npy", ".npz")
        if is_map:
            forms = " or ".join(FORMS[read].replace("NAME", name) for read in READ.get(name, ()))
            allowed = f"{forms}, or a stored map listed in clip.json" if forms else "a stored map listed in clip.json"
            raise ClipError(f"{path} is not a supported format of {name}. Allowed: {allowed}. Convert or rename it.")


def plain_maps(inputs: PlainMapInputs, stored: Collection[str]) -> Iterator[tuple[str, Modality]]:
    """The maps by name. Raises `ClipError` for invalid values and duplicate maps.

    `stored`: files in the clip's folder that contain other maps.
    """
    folder = inputs.folder
    _check_one(folder, ("depth", "depth.npy"))
    _check_one(folder, IDS)
    depth = _depth(inputs)
    if depth is not None:
        yield "depth", Depth(depth, inputs.depth_unit)
    flow = _array(inputs, "flow")
    if flow is not None:
        flow = _channels(flow.astype(np.float32), 2, "flow")
        yield "flow", Flow(flow) if len(flow) == inputs.size[0] else Flow.from_pairs(flow)
    masks = _sequence(inputs, "masks") or _sequence(inputs, "segmentation")
    ids = _array(inputs, "segmentation") if masks is None else read_indices(masks)
    if ids is not None:
        yield "segmentation", _segmentation(_channels(ids, 1, "segmentation"), folder)
    for name, channels in {"normal": 3, "albedo": 3, "irradiance": 3, "alpha": 1}.items():
        values = _array(inputs, name)
        if values is not None:
            values = _channels(values.astype(np.float32), channels, name)
            yield name, _checked(name, values, folder / f"{name}{ARRAY}", inputs.normal_frame)
    taken = {(folder / file).resolve() for file in stored}
    for name in ("foreground", "background"):
        stream = find_stream(folder, name, inputs.location.root)
        if stream is not None and stream.files[0] not in taken:
            check_numbers((inputs.picture, stream))
            yield name, find_modality(name)(read_stream(stream))


def _check_one(folder: Path, names: tuple[str, ...]) -> None:
    found = [name for name in names if (folder / name).exists()]
    if len(found) > 1:
        raise ClipError(f"{folder} has {' and '.join(found)}: expected one. Remove the other{'s' * (len(found) > 2)}.")


def _sequence(inputs: PlainMapInputs, name: str) -> StreamFiles | None:
    """The images in a folder, numbered like those of the picture."""
    if not (inputs.folder / name).is_dir():
        return None
    stream = find_stream(inputs.folder, name, inputs.location.root)
    if stream is not None:
        check_numbers((inputs.picture, stream))
    return stream


def _depth(inputs: PlainMapInputs) -> np.ndarray | None:
    """float32 [T, H, W, 1]."""
    levels = _sequence(inputs, "depth")
    if levels is None:
        depth = _array(inputs, "depth")
        return None if depth is None else _channels(depth.astype(np.float32), 1, "depth")
    array = read_stream(levels)
    if array.shape[-1] != 1 or array.dtype == np.uint8:
        raise ClipError(f"{levels.where}: depth must be 16-bit grey images, got {array.dtype} {array.shape}")
    return array.astype(np.float32) * np.float32(1.0 if array.dtype.kind == "f" else inputs.depth_per_level)


def _checked(name: str, values: np.ndarray, where: Path, frame: Literal["opengl", "opencv"]) -> Modality:
    """float32 [T, H, W, C] as the modality; values slightly out of range are clipped."""
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


def _array(inputs: PlainMapInputs, name: str) -> np.ndarray | None:
    """The array in a .npy file, or None if there is no file. Its shape is checked before it is read."""
    path = inputs.folder / f"{name}{ARRAY}"
    if not path.is_file():
        return None
    try:
        mapped = np.load(resolve_inside(path, inputs.location.root), mmap_mode="r", allow_pickle=False)
    except (
        ValueError,
        TypeError,
        ArithmeticError,
        MemoryError,
        RecursionError,
        EOFError,
        OSError,
        zipfile.BadZipFile,
        tokenize.TokenError,
    ) as error:
        raise ClipError(f"{path} is not a valid .npy file: {error}") from error
    if not isinstance(mapped, np.ndarray):  # an .npz under this name
        raise ClipError(f"{path} is an archive of arrays. Save one array with numpy.save.")
    frames, height_px, width_px = inputs.size
    if mapped.ndim not in (3, 4) or mapped.dtype.kind not in "fui":
        raise ClipError(f"{path} contains {mapped.dtype} {mapped.shape}; expected numbers [T, H, W] or [T, H, W, C]")
    largest = frames * height_px * width_px * 4
    if mapped.size > largest or mapped.size * 4 > Limits().max_decoded_bytes:
        raise ClipError(f"{path} has {mapped.shape}, more than {frames} frames of {width_px} x {height_px} require")
    return np.array(mapped)


def _channels(array: np.ndarray, channels: int, what: str) -> np.ndarray:
    """[T, H, W, C] from [T, H, W] or [T, H, W, C]."""
    whole = array[..., None] if array.ndim == 3 and channels == 1 else array
    if whole.ndim != 4 or whole.shape[-1] != channels:
        raise ClipError(f"{what} must be [T, H, W, {channels}], got {array.shape}")
    return whole


def _segmentation(ids: np.ndarray, folder: Path) -> Segmentation:
    lo, hi = int(ids.min(initial=0)), int(ids.max(initial=0))
    if lo < 0 or hi > 65535 or ids.dtype.kind == "f":
        raise ClipError(f"{folder}: ids must be integers 0..65535, got {ids.dtype} from {lo} to {hi}")
    return Segmentation(ids.astype(np.uint16))

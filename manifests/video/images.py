"""Reading of single images: EXR (by OpenEXR), PNG (OpenCV) and JPEG (Pillow).

The input is untrusted: sizes are read from headers before anything is decoded, and PNG checksums are verified, since
OpenCV ignores wrong ones. `where`: location for error messages.
"""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from openuni.manifests.errors import ClipError, MissingRequirement
from openuni.manifests.video.decoder.process import isolated

# kinds of image files, by suffix
KINDS = ("exr", "png", "jpg")
MAX_LISTED = 30  # channels in a message; a file with one layer has fewer
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
GREY_STRETCH = {2: 85, 4: 17}  # bits per grey level -> factor that Pillow applies


def image_size(data: bytes, kind: str, where: str) -> tuple[int, int]:
    """(height, width) from the header. Raises `ClipError` for other files, and for a PNG with a wrong checksum."""
    if kind == "exr":
        return exr_size(data, where)
    try:
        return _png_size(data) if kind == "png" else _jpeg_size(data)
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise ClipError(f"{where} is damaged or not an image: {error}") from error


@isolated
def read_image(data: bytes | Path, kind: str, where: str) -> np.ndarray:
    """Read an image without conversion: [H, W, 1 or 3], uint8 or uint16 from PNG and JPEG, float16 or float32 from EXR.

    `data`: contents or path. For EXR a path is faster: from memory, its reader threads call Python for every block.
    Raises `ClipError` for damaged files and transparent PNGs; the alpha channel of an EXR file is ignored.
    """
    if kind == "exr":
        return _read_exr(data, where)
    data = data.read_bytes() if isinstance(data, Path) else data
    return _read_png(data, where) if kind == "png" else _read_jpeg(data, where)


@isolated
def read_png_indices(path: Path) -> np.ndarray:
    """Palette indices, or grey levels as stored, of a PNG: uint16 [H, W]. Raises `ClipError`.

    The header must have been checked by `image_size`.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode not in ("P", "L", "I;16", "1"):
                raise ClipError(f"{path} has mode {image.mode}; ids must be palette indices or grey levels")
            scale = GREY_STRETCH.get(_png_bits(path), 1) if image.mode == "L" else 1
            return np.asarray(image).astype(np.uint16) // scale
    except (OSError, SyntaxError, ValueError) as error:
        raise ClipError(f"{path} is damaged: {error}") from error


def _png_bits(path: Path) -> int:
    """Bits per level of a PNG whose header was validated before."""
    with path.open("rb") as file:
        return file.read(25)[24]


class ValueLookup:
    """An element-wise function for images, by lookup table for 8 and 16 bits.

    `function`: float32 of any shape -> the same shape; it gets integer levels as 0..1 and floats unchanged.
    `dtype`: dtype of the images.
    """

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], dtype: np.dtype) -> None:
        self.function = function
        self.bits = np.dtype(f"u{dtype.itemsize}")
        self.table: np.ndarray | None = None
        if dtype.itemsize <= 2:
            patterns = np.arange(1 << 8 * dtype.itemsize).astype(self.bits)
            values = patterns.view(np.float16) if dtype.kind == "f" else patterns / np.float32(patterns[-1])
            with np.errstate(all="ignore"):  # the table also has entries for NaN
                self.table = function(values.astype(np.float32))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Apply the function to an image: [H, W, C] -> [H, W, C]."""
        import cv2

        if self.table is None:
            return self.function(image)
        return cv2.LUT(np.ascontiguousarray(image).view(self.bits), self.table).reshape(image.shape)


def _png_size(data: bytes) -> tuple[int, int]:
    """(height, width); also verifies the checksum of every chunk."""
    if data[:8] != PNG_MAGIC or data[12:16] != b"IHDR":
        raise ValueError("PNG signature not found")
    width_px, height_px = struct.unpack(">II", data[16:24])
    view = memoryview(data)
    position, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        end = position + 8 + length
        if struct.pack(">I", zlib.crc32(view[position + 4 : end])) != data[end : end + 4]:
            raise ValueError(f"checksum mismatch in the chunk at byte {position}")
        position = end + 4
    return height_px, width_px


def _jpeg_size(data: bytes) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            width_px, height_px = image.size
    except Image.DecompressionBombError as error:
        raise ValueError(error) from error
    return height_px, width_px


def _read_jpeg(data: bytes, where: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ClipError(f"{where} is damaged: {error}") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _read_png(data: bytes, where: str) -> np.ndarray:
    import cv2

    try:
        levels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # for example if it exceeds OpenCV's pixel limit
        raise ClipError(f"{where} is damaged or not a readable PNG: {error}") from error
    if levels is None or levels.dtype not in (np.uint8, np.uint16):
        raise ClipError(f"{where} is damaged or not a PNG of 8 or 16 bits")
    if levels.ndim == 2:
        return levels[..., None]
    if levels.shape[-1] == 4:
        if int(levels[..., 3].min()) < (255 if levels.dtype == np.uint8 else 65535):
            raise ClipError(f"{where} has transparent pixels. Write it without an alpha channel.")
        levels = levels[..., :3]
    return cv2.cvtColor(levels, cv2.COLOR_BGR2RGB)


def _open_exr(data: bytes | Path, where: str, *, header_only: bool = False, packed: bool = False) -> Any:
    try:
        import OpenEXR
    except ImportError as error:
        raise MissingRequirement(
            "EXR files require a package that is not installed. Install it with: pip install 'OpenEXR>=3.5'"
        ) from error
    try:
        source = str(data) if isinstance(data, Path) else io.BytesIO(data)
        file = OpenEXR.File(source, separate_channels=not packed, header_only=header_only, num_threads=0)
    except (RuntimeError, ValueError, OSError) as error:
        raise ClipError(f"{where} is damaged or not an EXR file: {error}") from error
    if len(file.parts) > 1:
        names = ", ".join(part.name() for part in file.parts)
        raise ClipError(f"{where} has {len(file.parts)} parts ({names}). Write one part per file.")
    return file


@isolated
def exr_size(data: bytes | Path, where: str) -> tuple[int, int]:
    """(height, width) from the header of an EXR file. Raises `ClipError`."""
    try:
        header = _open_exr(data, where, header_only=True).header()
        (left, top), (right, bottom) = (corner.tolist() for corner in header["dataWindow"])
        display_window = [corner.tolist() for corner in header["displayWindow"]]
    except (RuntimeError, ValueError, KeyError) as error:
        raise ClipError(f"{where} is damaged or not an EXR file: {error}") from error
    if display_window != [[left, top], [right, bottom]]:
        raise ClipError(f"{where} is cropped: data window and display window must be equal. Render whole frames.")
    return bottom - top + 1, right - left + 1


def _read_exr(data: bytes | Path, where: str) -> np.ndarray:
    """Read the R, G, B (or X, Y, Z, or single) channels without alpha: float16 or float32 [H, W, 1 or 3].

    Raises `ClipError` for files with several layers or parts, and for integer channels.
    """
    try:
        names = [channel.name for channel in _open_exr(data, where, header_only=True).header()["channels"]]
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise ClipError(f"{where} is damaged or not an EXR file: {error}") from error
    layout = _colour_channels(names, where)  # before pixels are read: a small file can declare thousands of channels
    pixels = _read_packed_exr(data, where)
    if pixels is None:
        pixels = _read_exr_channels(data, layout, where)
    return pixels if pixels.dtype == np.float16 else pixels.astype(np.float32, copy=False)


def _read_packed_exr(data: bytes | Path, where: str) -> np.ndarray | None:
    """Read R, G, B (with or without A) as packed by OpenEXR: [H, W, 3]; None if the channels cannot be packed."""
    try:
        channels = _open_exr(data, where, packed=True).channels()
    except (ClipError, RuntimeError, ValueError):  # mixed types or damage; `_read_exr_channels` reports which
        return None
    names = set(channels)
    pixels: np.ndarray | None = channels[names.pop()].pixels[..., :3] if names in ({"RGB"}, {"RGBA"}) else None
    return pixels if pixels is not None and pixels.dtype.kind == "f" else None


def _colour_channels(names: list[str], where: str) -> list[str]:
    """The channels without alpha, in the order R G B, X Y Z, or a single one; `names`: of all channels."""
    listed = ", ".join(sorted(names)[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")
    layers: dict[str, dict[str, str]] = {}
    for name in names:
        layer, _, part = name.rpartition(".")
        if part.upper() != "A":
            layers.setdefault(layer, {})[part.upper()] = name
    if not layers:
        raise ClipError(f"{where} has no colour, only {listed}. Write R G B, X Y Z, or one channel.")
    if len(layers) != 1:
        raise ClipError(f"{where} has {len(layers)} layers ({listed}). Write one layer per file.")
    (parts,) = layers.values()
    order = next((order for order in ("RGB", "XYZ") if set(order) == set(parts)), "")
    colours = [parts[name] for name in order] if order else list(parts.values())
    if len(colours) not in (1, 3) or (len(colours) == 3 and not order) or len(names) > MAX_LISTED:
        raise ClipError(f"{where} has the channels {listed}. Allowed: R G B, X Y Z, or one channel.")
    return colours


def _read_exr_channels(data: bytes | Path, names: list[str], where: str) -> np.ndarray:
    """Read these channels one by one and stack them: [H, W, 1 or 3]."""
    try:
        channels = _open_exr(data, where).channels()
        planes = [channels[name].pixels for name in names]
    except (RuntimeError, ValueError, KeyError) as error:  # reading the pixels failed
        raise ClipError(f"{where} is damaged: {error}") from error
    if any(plane.shape != planes[0].shape for plane in planes):
        raise ClipError(f"{where} has channels of different sizes. Write all channels without subsampling.")
    if any(plane.dtype.kind != "f" for plane in planes):  # the value of 1.0 would be unknown
        raise ClipError(f"{where} has integer channels (UINT). Allowed: HALF and FLOAT. Write it in one of these.")
    return np.stack(planes, axis=-1)

"""Single images as arrays, from the bytes of their files: EXR (read by OpenEXR), PNG (OpenCV), JPEG (Pillow).

Bytes are hostile input: sizes are known from headers before anything unfolds, and a PNG's checksums are proved, as
OpenCV passes over wrong ones. `where` names the file in errors.
"""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from openuni.manifests.errors import ClipError, MissingRequirement

# kinds of files, by their usual suffix
KINDS = ("exr", "png", "jpg")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def image_size(data: bytes, kind: str, where: str) -> tuple[int, int]:
    """Height and width by the header; raises `ClipError` for what is no such image, or a PNG with a wrong checksum."""
    if kind == "exr":
        return _exr_size(data, where)
    try:
        return _png_size(data) if kind == "png" else _jpeg_size(data)
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise ClipError(f"{where} is damaged or no image: {error}") from error


def read_image(data: bytes | Path, kind: str, where: str) -> np.ndarray:
    """[H, W, 1 or 3]: uint8 or uint16 of PNG and JPEG, float16 or float32 of EXR, as they stand there.

    Opaque: a transparent picture is refused; EXR's alpha is left out. Raises `ClipError`. `data`: a path serves too;
    EXR is better read by its path, as of bytes the reader asks Python for each block, which threads wait for.
    """
    if kind == "exr":
        return _read_exr(data, where)
    data = data.read_bytes() if isinstance(data, Path) else data
    return _read_png(data, where) if kind == "png" else _read_jpeg(data, where)


class ValueLookup:
    """A function of single values (levels of 8 and 16 bits as 0..1, floats as they are), applied to whole images.

    `function`: float32 of any shape -> the same shape; `dtype`: of the images. Of 8 or 16 bits there are so few
    different values that each is computed once.
    """

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], dtype: np.dtype) -> None:
        self.function = function
        self.bits = np.dtype(f"u{dtype.itemsize}")
        self.table: np.ndarray | None = None
        if dtype.itemsize <= 2:
            patterns = np.arange(1 << 8 * dtype.itemsize).astype(self.bits)
            values = patterns.view(np.float16) if dtype.kind == "f" else patterns / np.float32(patterns[-1])
            with np.errstate(all="ignore"):  # the table has entries for NaN too, whether it occurs or not
                self.table = function(values.astype(np.float32))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """[H, W, C] as stored -> the same shape."""
        import cv2

        if self.table is None:
            return self.function(image)
        return cv2.LUT(np.ascontiguousarray(image).view(self.bits), self.table).reshape(image.shape)


def _png_size(data: bytes) -> tuple[int, int]:
    """Height and width; the checksum of every chunk is computed."""
    if data[:8] != PNG_MAGIC or data[12:16] != b"IHDR":
        raise ValueError("it does not begin as a PNG does")
    width_px, height_px = struct.unpack(">II", data[16:24])
    view = memoryview(data)
    place, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        end = place + 8 + length
        if struct.pack(">I", zlib.crc32(view[place + 4 : end])) != data[end : end + 4]:
            raise ValueError(f"the checksum of the chunk at byte {place} is wrong")
        place = end + 4
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
    except (OSError, SyntaxError, ValueError) as error:
        raise ClipError(f"{where} is damaged: {error}") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _read_png(data: bytes, where: str) -> np.ndarray:
    import cv2

    try:
        levels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # such as more pixels than it reads
        raise ClipError(f"{where} is damaged or no PNG that can be read: {error}") from error
    if levels is None or levels.dtype not in (np.uint8, np.uint16):
        raise ClipError(f"{where} is damaged or no PNG of 8 or 16 bits")
    if levels.ndim == 2:
        return levels[..., None]
    if levels.shape[-1] == 4:
        if int(levels[..., 3].min()) < (255 if levels.dtype == np.uint8 else 65535):
            raise ClipError(f"{where} is transparent in places: give pictures without an alpha channel")
        levels = levels[..., :3]
    return cv2.cvtColor(levels, cv2.COLOR_BGR2RGB)


def _exr(data: bytes | Path, where: str, *, header_only: bool = False, packed: bool = False) -> Any:
    try:
        import OpenEXR
    except ImportError as error:
        raise MissingRequirement(
            "EXR files need a package that is not installed: pip install 'OpenEXR>=3.5'"
        ) from error
    try:
        source = str(data) if isinstance(data, Path) else io.BytesIO(data)
        file = OpenEXR.File(source, separate_channels=not packed, header_only=header_only, num_threads=0)
    except (RuntimeError, ValueError, OSError) as error:
        raise ClipError(f"{where} is damaged or no EXR file: {error}") from error
    if len(file.parts) > 1:
        names = ", ".join(part.name() for part in file.parts)
        raise ClipError(f"{where} has {len(file.parts)} parts ({names}): write one part per file")
    return file


def _exr_size(data: bytes | Path, where: str) -> tuple[int, int]:
    try:
        header = _exr(data, where, header_only=True).header()
        (left, top), (right, bottom) = (corner.tolist() for corner in header["dataWindow"])
        shown = [corner.tolist() for corner in header["displayWindow"]]
    except (RuntimeError, ValueError, KeyError) as error:
        raise ClipError(f"{where} is damaged or no EXR file: {error}") from error
    if shown != [[left, top], [right, bottom]]:
        raise ClipError(f"{where} is cropped: its data window is not its display window; render whole frames")
    return bottom - top + 1, right - left + 1


def _read_exr(data: bytes | Path, where: str) -> np.ndarray:
    """float16 or float32 [H, W, 1 or 3]: the file's only R, G, B (or X, Y, Z, or single) channels, without alpha.

    Raises `ClipError` for layers, parts and whole numbers.
    """
    pixels = _interleaved(data, where)
    if pixels is None:
        pixels = _joined_planes(data, where)
    return pixels if pixels.dtype == np.float16 else pixels.astype(np.float32, copy=False)


def _interleaved(data: bytes | Path, where: str) -> np.ndarray | None:
    """[H, W, 3] as the reader itself puts R, G, B together, with or without A; None where it cannot."""
    try:
        channels = _exr(data, where, packed=True).channels()
    except (ClipError, RuntimeError, ValueError):  # types that differ, or damage: the other way says which
        return None
    names = set(channels)
    pixels: np.ndarray | None = channels[names.pop()].pixels[..., :3] if names in ({"RGB"}, {"RGBA"}) else None
    return pixels if pixels is not None and pixels.dtype.kind == "f" else None


def _joined_planes(data: bytes | Path, where: str) -> np.ndarray:
    """[H, W, 1 or 3] of a file whose channels must be looked at one by one."""
    try:
        channels = _exr(data, where).channels()
    except (RuntimeError, ValueError) as error:  # reading the pixels failed
        raise ClipError(f"{where} is damaged: {error}") from error
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, channel in channels.items():
        layer, _, part = name.rpartition(".")
        if part.upper() != "A":
            layers.setdefault(layer, {})[part.upper()] = channel.pixels
    if not layers:
        raise ClipError(f"{where} has no colour, only {', '.join(sorted(channels))}: write R G B, X Y Z, or one alone")
    if len(layers) != 1:
        raise ClipError(f"{where} has {len(layers)} layers ({', '.join(sorted(channels))}): write one layer per file")
    (parts,) = layers.values()
    order = next((names for names in ("RGB", "XYZ") if set(names) == set(parts)), "")
    planes = [parts[name] for name in order] if order else list(parts.values())
    if len(planes) not in (1, 3) or (len(planes) == 3 and not order):
        raise ClipError(f"{where} has the channels {', '.join(sorted(channels))}; read are R G B, X Y Z, or one alone")
    if any(plane.shape != planes[0].shape for plane in planes):
        raise ClipError(f"{where}: its channels are sampled at different sizes")
    if any(plane.dtype.kind != "f" for plane in planes):  # it is not known which number stands for 1
        raise ClipError(f"{where} has channels of whole numbers (UINT). Allowed: HALF and FLOAT; write it anew so.")
    return np.stack(planes, axis=-1)

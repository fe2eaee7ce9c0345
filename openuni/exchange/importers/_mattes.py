"""Compositing: layers, backgrounds for mattes, and detection of straight and premultiplied foregrounds."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from openuni.exchange.importers._alignment import align_by_values, format_shift, shifted, thumbnails
from openuni.exchange.importers._dataset_layout import SPLITS
from openuni.exchange.importers._sequences import VIDEOS, StreamFiles, read_stream
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.modalities.background import Background
from openuni.manifests.video.probe import make_clip, probe

STILLS = (".jpg", ".jpeg", ".png")
GENERATED = "generated"
WHOLE_LEVEL = 1e-3  # rounding of float32 in levels 0..255
SOFT = (0.1, 0.9)  # alpha of edges, at which straight and premultiplied foregrounds differ
OPAQUE = 0.98
TESTED_FRAMES = 8
MIN_PIXELS = 64  # minimum number of edge pixels close to opaque ones
CLEAR_LEVELS = 4.0  # minimum mean difference between the two forms
CLEARLY = 0.6  # maximum ratio of the errors of the two forms
ROUNDING_LEVELS = 8.0  # tolerated excess of a premultiplied colour over its alpha, caused by 8-bit coding
BLACK_LEVEL = 8  # black may be raised to this level by coding
OVER_SHARE = 0.02  # maximum share of edge pixels with more excess


class Backdrop(NamedTuple):
    """A background and its source: a path within the folder of backgrounds, or "generated"."""

    array: np.ndarray  # uint8 [T, H, W, 3]
    file: str


def composite(alpha: np.ndarray, foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] = round(alpha x foreground + (1 - alpha) x background), of sRGB values.

    `alpha`: float32 [T, H, W, 1], 0..1; the layers: uint8 [T, H, W, 3].
    """
    import cv2

    out = np.empty(foreground.shape, np.uint8)
    for target, cover, front, rear in zip(out, alpha, foreground, background, strict=True):
        levels = cover * np.float32(255)
        whole = np.rint(levels)
        if np.abs(levels - whole).max() < WHOLE_LEVEL:
            _composite_of_levels(target, whole.astype(np.uint8), front, rear)
            continue
        covers = cv2.merge((cover, cover, cover))
        mixed = covers * front
        mixed += (1 - covers) * rear
        target[:] = np.rint(mixed, out=mixed)
    return out


def _composite_of_levels(target: np.ndarray, cover: np.ndarray, front: np.ndarray, rear: np.ndarray) -> None:
    """The same for alpha in 255ths, in exact 16-bit arithmetic: no sum of products is halfway between two levels."""
    import cv2

    covers = cv2.merge((cover, cover, cover))
    mixed = np.multiply(covers, front, dtype=np.uint16)
    mixed += np.multiply(255 - covers, rear, dtype=np.uint16)
    mixed += 128
    mixed += mixed >> 8  # together with the shift below: divide by 255 and round
    np.right_shift(mixed, 8, out=mixed)
    target[:] = mixed


def classify_foreground(foreground: np.ndarray, alpha: np.ndarray) -> str:
    """ "straight", "premultiplied" or "cannot tell", judged at soft edges.

    There, a straight foreground has the colours of the opaque parts next to it; a premultiplied one has those times
    alpha and is never brighter than alpha allows. Black foregrounds, and binary and empty mattes, cannot be classified.
    """
    straight = premultiplied = difference = 0.0
    pixels = over = 0
    chosen = np.unique(np.linspace(0, len(alpha) - 1, TESTED_FRAMES).astype(int))
    for front, cover in zip(foreground[chosen], alpha[chosen], strict=True):
        weight, weighted = _interior(front, cover)
        soft = (weight > 0.02) & (cover[..., 0] > SOFT[0]) & (cover[..., 0] < SOFT[1])
        inner = weighted[soft] / weight[soft][:, None]  # mean colour of nearby opaque pixels
        colour, share = front[soft].astype(np.float32), cover[soft]
        straight += float(np.abs(colour - inner).sum())
        premultiplied += float(np.abs(colour - share * inner).sum())
        difference += float(((1 - share) * inner).sum())
        over += int((colour > 255 * share + ROUNDING_LEVELS).any(axis=-1).sum())
        pixels += int(soft.sum())
    if pixels < MIN_PIXELS or difference < CLEAR_LEVELS * 3 * pixels:
        return "cannot tell"
    if premultiplied < CLEARLY * straight and over <= OVER_SHARE * pixels:
        return "premultiplied"
    return "straight" if straight < premultiplied or over > OVER_SHARE * pixels else "cannot tell"


def unpremultiply(foreground: np.ndarray, alpha: np.ndarray, where: Path) -> np.ndarray:
    """A premultiplied foreground divided by alpha, uint8 [T, H, W, 3]; black where alpha is 0.

    Raises `ClipError` if colours are brighter than a premultiplied foreground can be.
    """
    out = np.zeros(foreground.shape, np.uint8)
    over = soft = 0
    for target, front, cover in zip(out, foreground, alpha, strict=True):
        some = cover[..., 0] > 1 / 510
        edge = some & (cover[..., 0] < SOFT[1])
        over += int((front[edge] > 255 * cover[edge] + ROUNDING_LEVELS).any(axis=-1).sum())
        soft += int(edge.sum())
        target[some] = np.clip(np.rint(front[some] / cover[some]), 0, 255)
    if over > OVER_SHARE * soft:
        text = f"{over / soft:.0%} of its edge pixels are brighter than alpha allows"
        raise ClipError(f"{where} is not premultiplied: {text}. Remove premultiplied = true.")
    return out


def check_support(alpha: np.ndarray, foreground: np.ndarray, where: Path) -> bool:
    """Check the alignment of a matte and a foreground that is black outside it; True if motion confirms it.

    Returns False if the foreground is not black outside the matte. Raises `ClipError` for a matte that is frames ahead
    or behind.
    """
    front = np.empty(alpha.shape, np.bool_)
    for lit, image in zip(front[..., 0], foreground, strict=True):
        red, green, blue = (image[..., channel] for channel in range(3))
        np.greater(np.maximum(np.maximum(red, green), blue), BLACK_LEVEL, out=lit)
    covered, mostly = alpha > 0, alpha > 0.5
    outside, within = covered.size - np.count_nonzero(covered), np.count_nonzero(mostly)
    lit_outside, lit_within = np.count_nonzero(front & ~covered), np.count_nonzero(front & mostly)
    if not outside or not within or lit_outside > 0.2 * outside or lit_within < 0.5 * within:
        return False
    reference, cover = thumbnails(front), thumbnails(covered)
    alignment = align_by_values(lambda frames: shifted(cover, frames), reference)
    if alignment.shift:
        text = f"{where} is {format_shift(alignment.shift)}: shifted, it covers the foreground much better"
        raise ClipError(f"{text}. Correct the order of its frames.")
    return alignment.confirmed


def backdrop(folder: str, name: str, split: str | None, seed: int, shape: tuple[int, int, int]) -> Backdrop:
    """A background of `shape` (frames, height_px, width_px), deterministic for a name, seed and folder.

    Images are repeated; videos play from the start, forwards and backwards if they are too short. If the folder has
    subfolders named after splits, a clip of such a split takes its background from there, so that no background is
    in two splits. Without a folder: a smooth texture with a slow pan.
    """
    if not folder:
        return Backdrop(generated(name, seed, shape), GENERATED)
    listed = _listed(folder)
    held = [path for path in listed if split is not None and SPLITS.get(path.split("/")[0].lower()) == split]
    # rendezvous hashing: adding files changes few choices
    chosen = max(held or listed, key=lambda path: xxhash.xxh3_64_intdigest(f"{seed}\0{name}\0{path}".encode()))
    return Backdrop(_load_backdrop(Path(folder) / chosen, *shape), chosen)


def generated(name: str, seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 [T, H, W, 3]: gradients and noise of three scales; the view moves by at most one pixel per frame."""
    import cv2

    frames, height_px, width_px = shape
    rng = np.random.default_rng([seed, xxhash.xxh3_64_intdigest(name.encode())])
    canvas = np.zeros((height_px + frames, width_px + frames, 3), np.float32)
    for cells, strength in ((3, 1.0), (9, 0.35), (40, 0.12)):
        grid = rng.random((cells, cells, 3), np.float32) - 0.5
        canvas += strength * cv2.resize(grid, canvas.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    spread = float(np.abs(canvas).max()) or 1.0
    levels = np.rint(127.5 + canvas * (127.5 / spread)).astype(np.uint8)
    down, right = np.rint(np.outer(rng.random(2), np.arange(frames))).astype(int)
    windows = [levels[top : top + height_px, left : left + width_px] for top, left in zip(down, right, strict=True)]
    return np.stack(windows)


@lru_cache(maxsize=4)
def _listed(folder: str) -> tuple[str, ...]:
    """Paths of the images and videos in a folder of backgrounds, relative to it."""
    root = Path(folder)
    found = (path for path in sorted(root.rglob("*")) if path.suffix.lower() in (*STILLS, *VIDEOS))
    listed = tuple(path.relative_to(root).as_posix() for path in found if path.is_file())
    if not listed:
        raise OpenUniError(f"backgrounds = {folder!r} has no images ({', '.join(STILLS)}) and no videos")
    return listed


def _load_backdrop(path: Path, frames: int, height_px: int, width_px: int) -> np.ndarray:
    """uint8 [T, H, W, 3]: an image or video scaled to cover the frame and cropped."""
    if path.suffix.lower() in VIDEOS:
        info = probe(str(path))
        clip = make_clip(str(path), info, 0, min(frames, len(info.pts)))
        scale = max(height_px / info.height_px, width_px / info.width_px)
        picture = decode(clip, short_side_px=int(np.ceil(min(info.height_px, info.width_px) * scale))).frames
    else:
        picture = read_stream(StreamFiles(path.name, "png" if path.suffix.lower() == ".png" else "jpg", (path,)))
        if picture.dtype != np.uint8:
            picture = np.rint(picture / 257).astype(np.uint8)
        picture = np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture
    fitted = Background(np.ascontiguousarray(picture)).fit(height_px, width_px).array
    there_and_back = np.concatenate([np.arange(len(fitted)), np.arange(len(fitted) - 2, 0, -1)])
    return fitted[there_and_back[np.arange(frames) % len(there_and_back)]]


def _interior(front: np.ndarray, cover: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of opaque pixels nearby, float32 [H, W], 0..1, and their mean colour times that share, [H, W, 3]."""
    import cv2

    opaque = (cover[..., 0] > OPAQUE).astype(np.float32)
    side = max(5, min(opaque.shape) // 12 | 1)
    return cv2.blur(opaque, (side, side)), cv2.blur(front * cv2.merge((opaque, opaque, opaque)), (side, side))

"""Layers: composites, backgrounds to put behind mattes, and whether a foreground is straight or premultiplied."""

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
WHOLE_LEVEL = 1e-3  # what float32 may make of a level of 255
SOFT = (0.1, 0.9)  # coverage of edges, where straight and premultiplied differ
OPAQUE = 0.98
TESTED_FRAMES = 8
MIN_PIXELS = 64  # with soft coverage and an interior nearby, to tell anything
CLEAR_LEVELS = 4.0  # mean difference that the two forms must have, to tell anything
CLEARLY = 0.6  # ratio of the errors of the two forms
ROUNDING_LEVELS = 8.0  # that a premultiplied colour may lie above its coverage: coding of 8-bit videos
BLACK_LEVEL = 8  # up to which coding may lift black
OVER_SHARE = 0.02  # of the soft pixels that may lie above that


class Backdrop(NamedTuple):
    """A background and where it is from: a path within the folder of backgrounds, or "generated"."""

    array: np.ndarray  # uint8 [T, H, W, 3]
    file: str


def composite(alpha: np.ndarray, foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] = alpha x foreground + (1 - alpha) x background of sRGB values, rounded.

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
    """The same of coverage in 255ths, which 16 bits hold: no sum of products lies halfway between two levels."""
    import cv2

    covers = cv2.merge((cover, cover, cover))
    mixed = np.multiply(covers, front, dtype=np.uint16)
    mixed += np.multiply(255 - covers, rear, dtype=np.uint16)
    mixed += 128
    mixed += mixed >> 8  # with the shift below: divided by 255, rounded
    np.right_shift(mixed, 8, out=mixed)
    target[:] = mixed


def classify_foreground(foreground: np.ndarray, alpha: np.ndarray) -> str:
    """ "straight", "premultiplied" or "cannot tell", by the soft edges.

    There a straight foreground has the colours of the opaque parts beside it, a premultiplied one those times the
    coverage, and is nowhere brighter than the coverage allows. Black, binary and empty mattes cannot tell.
    """
    straight = premultiplied = difference = 0.0
    pixels = over = 0
    chosen = np.unique(np.linspace(0, len(alpha) - 1, TESTED_FRAMES).astype(int))
    for front, cover in zip(foreground[chosen], alpha[chosen], strict=True):
        weight, weighted = _interior(front, cover)
        soft = (weight > 0.02) & (cover[..., 0] > SOFT[0]) & (cover[..., 0] < SOFT[1])
        inner = weighted[soft] / weight[soft][:, None]  # the mean colour of the opaque pixels nearby
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
    """uint8 [T, H, W, 3]: a premultiplied foreground divided by its coverage; black where there is none.

    Raises `ClipError` where colours are brighter than a premultiplied foreground can be.
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
        text = f"{over / soft:.0%} of its edges are brighter than their coverage"
        raise ClipError(f"{where} is not premultiplied: {text}. Leave out premultiplied = true.")
    return out


def check_support(alpha: np.ndarray, foreground: np.ndarray, where: Path) -> bool:
    """Hold a matte against a foreground that is black outside it; True where motion proves them in step.

    A foreground whose colours go on beyond the matte cannot tell. Raises `ClipError` for a matte that is frames ahead
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
    shown, cover = thumbnails(front), thumbnails(covered)
    verdict = align_by_values(lambda frames: shifted(cover, frames), shown)
    if verdict.shift:
        text = f"{where} is {format_shift(verdict.shift)}: it then covers the foreground clearly better"
        raise ClipError(f"{text}. Mend the order of its frames.")
    return verdict.sure


def backdrop(folder: str, name: str, split: str | None, seed: int, shape: tuple[int, int, int]) -> Backdrop:
    """A background of `shape` (frames, height_px, width_px), always the same for one name, seed and folder.

    A picture stands still; a video plays from its beginning, there and back again when it is too short. Where the
    folder has train, val or test folders, a clip of such a split takes its background from there: none is in two.
    Without a folder: a smooth texture with a slow pan.
    """
    if not folder:
        return Backdrop(generated(name, seed, shape), GENERATED)
    listed = _listed(folder)
    held = [path for path in listed if split is not None and SPLITS.get(path.split("/")[0].lower()) == split]
    # of all files the one with the largest hash: adding others changes few choices
    chosen = max(held or listed, key=lambda path: xxhash.xxh3_64_intdigest(f"{seed}\0{name}\0{path}".encode()))
    return Backdrop(_load_backdrop(Path(folder) / chosen, *shape), chosen)


def generated(name: str, seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 [T, H, W, 3]: gradients and noise of three sizes, seen through a window that moves at most a pixel per
    frame.
    """
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
    """The pictures and videos in a folder of backgrounds, as paths within it."""
    root = Path(folder)
    found = (path for path in sorted(root.rglob("*")) if path.suffix.lower() in (*STILLS, *VIDEOS))
    listed = tuple(path.relative_to(root).as_posix() for path in found if path.is_file())
    if not listed:
        raise OpenUniError(f"backgrounds = {folder!r} holds no pictures ({', '.join(STILLS)}) and no videos")
    return listed


def _load_backdrop(path: Path, frames: int, height_px: int, width_px: int) -> np.ndarray:
    """uint8 [T, H, W, 3]: a picture or video that covers the frame, cut at its sides."""
    if path.suffix.lower() in VIDEOS:
        info = probe(str(path))
        clip = make_clip(str(path), info, 0, min(frames, len(info.pts)))
        scale = max(height_px / info.height_px, width_px / info.width_px)
        shown = decode(clip, short_side_px=int(np.ceil(min(info.height_px, info.width_px) * scale))).frames
    else:
        shown = read_stream(StreamFiles(path.name, "png" if path.suffix.lower() == ".png" else "jpg", (path,)))
        if shown.dtype != np.uint8:
            shown = np.rint(shown / 257).astype(np.uint8)
        shown = np.repeat(shown, 3, axis=-1) if shown.shape[-1] == 1 else shown
    fitted = Background(np.ascontiguousarray(shown)).fit(height_px, width_px).array
    there_and_back = np.concatenate([np.arange(len(fitted)), np.arange(len(fitted) - 2, 0, -1)])
    return fitted[there_and_back[np.arange(frames) % len(there_and_back)]]


def _interior(front: np.ndarray, cover: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [H, W]: how many of the pixels nearby are opaque, 0..1; [H, W, 3]: the mean colour, theirs times that."""
    import cv2

    opaque = (cover[..., 0] > OPAQUE).astype(np.float32)
    side = max(5, min(opaque.shape) // 12 | 1)
    return cv2.blur(opaque, (side, side)), cv2.blur(front * cv2.merge((opaque, opaque, opaque)), (side, side))

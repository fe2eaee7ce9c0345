"""Clips of the world as ordinary files: videos with captions, and their ground truth beside them.

One clip is these files in one folder, the "supplied layout" (format `openuni-supplied-1`):

    solids-000007.mp4                H.264, what a camera would have recorded; lossy
    solids-000007.txt                the caption, one line of UTF-8
    solids-000007.depth.mkv          what `Depth.encode` gives: FFV1, within the bound that class states
    solids-000007.flow.mkv           what `Flow.encode` gives, occlusions included
    solids-000007.segmentation.mkv   what `Segmentation.encode` gives, exact
    solids-000007.json               facts and constants; written last: where it is, the clip is whole

and the JSON file is an object with these keys:

    format       "openuni-supplied-1"
    fps          frames per second, a number
    frames       how many frames the video and every map has
    caption      as in the .txt
    modalities   by name: {"file": a name in the same folder, "constants": the fields of the modality's constants}
    preset, seed, height_px, width_px, focal_px     where the clip comes from, and the pinhole's intrinsics

`bytes of the file` and `constants` are all that `Modality.decode` needs. Ground truth of any origin can be supplied
in this layout; the keys of the last line are the world's own and optional.
"""

import json
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

from manifests.errors import OpenUniError
from manifests.video import write_video
from openuni.world.clips import WorldClip, make_clip
from openuni.world.sample import find_preset

FORMAT = "openuni-supplied-1"
SUPPLIED = ("depth", "flow", "segmentation")
CRF = 14  # of the video: textures of small frames stay sharp
CLIPS_PER_WORKER = 8  # starting a process takes about as long as rendering this many small clips


class ClipSize(TypedDict, total=False):
    """Length and size of clips; the defaults are those of `make_clip`."""

    frames: int
    height_px: int
    width_px: int
    fps: float


class Order(NamedTuple):
    """One clip to write."""

    folder: Path
    seed: int
    preset: str
    size: ClipSize

    @property
    def name(self) -> str:
        """The name of its files, without suffix."""
        return f"{self.preset}-{self.seed:06d}"


def write_clips(
    out_dir: str | Path,
    seeds: Iterable[int],
    *,
    preset: str | Sequence[str] = "solids",
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    **size: Unpack[ClipSize],
) -> list[Path]:
    """Render one clip per seed into `out_dir`, in the layout described above; returns the videos in the seeds' order.

    `preset`: one for all, or one per seed. `size`: `frames`, `height_px`, `width_px` (both even, as H.264 wants) and
    `fps` as in `make_clip`. `progress` is called with the number of finished clips. `workers`: processes; None for as
    many as there are cores when there are many clips, 1 for none besides this one. The files do not depend on it. As
    always with processes, a script that calls this must do so under `if __name__ == "__main__"`.
    Raises `OpenUniError` for unknown presets, sizes that cannot be written, and clips ordered twice.
    """
    orders = _orders(Path(out_dir), list(seeds), preset, size)
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    wanted = min(_core_count(), len(orders) // CLIPS_PER_WORKER) if workers is None else workers
    count = min(wanted, len(orders))
    if count <= 1:
        return _collect(map(_write_order, orders), progress)
    # spawned, not forked: a fork of a process that runs threads (Ray, torch) may hang
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        return _collect(pool.map(_write_order, orders), progress)


def write_clip(folder: Path, name: str, clip: WorldClip, facts: dict[str, Any]) -> Path:
    """Write one clip in the layout described above, the JSON file last; returns the video.

    `facts`: more keys for the JSON file. Every file appears under its name only when whole.
    """
    index = folder / f"{name}.json"
    index.unlink(missing_ok=True)  # while files are replaced, none may claim that they belong together
    entries = {}
    for modality in SUPPLIED:
        payload = clip.modalities[modality].encode(clip.fps)
        file = f"{name}.{modality}.{payload.suffix}"
        _put(folder / file, payload.data)
        constants: Any = payload.constants  # a NamedTuple
        entries[modality] = {"file": file, "constants": constants._asdict()}
    video = folder / f"{name}.mp4"
    write_video(video, clip.frames, clip.fps, crf=CRF)
    _put(folder / f"{name}.txt", f"{clip.caption}\n".encode())
    own = {
        "format": FORMAT,
        "fps": clip.fps,
        "frames": len(clip.frames),
        "caption": clip.caption,
        "modalities": entries,
    }
    _put(index, json.dumps(own | facts, indent=1).encode())
    return video


def _orders(folder: Path, seeds: list[int], preset: str | Sequence[str], size: ClipSize) -> list[Order]:
    """The clips to write, checked before anything is started."""
    presets = [preset] * len(seeds) if isinstance(preset, str) else list(preset)
    if len(presets) != len(seeds):
        raise OpenUniError(f"world: {len(seeds)} seeds but {len(presets)} presets. Give one preset, or one per seed.")
    for name in presets:
        find_preset(name)
    if size.get("height_px", 2) % 2 or size.get("width_px", 2) % 2:
        given = f"height_px = {size.get('height_px')}, width_px = {size.get('width_px')}"
        raise OpenUniError(f"world: {given}. Allowed: even numbers, because H.264 stores colour at half the size.")
    orders = [Order(folder, seed, name, size) for seed, name in zip(seeds, presets, strict=True)]
    names = [order.name for order in orders]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise OpenUniError(f"world: clip {twice} is ordered twice. Give every seed once per preset.")
    return orders


def _write_order(order: Order) -> Path:
    clip = make_clip(order.seed, preset=order.preset, **order.size)
    _, height_px, width_px, _ = clip.frames.shape
    facts = {
        "preset": order.preset,
        "seed": order.seed,
        "height_px": height_px,
        "width_px": width_px,
        "focal_px": clip.lens.focal_px,
    }
    return write_clip(order.folder, order.name, clip, facts)


def _collect(written: Iterable[Path], progress: Callable[[int], None] | None) -> list[Path]:
    videos = []
    for video in written:
        videos.append(video)
        if progress is not None:
            progress(len(videos))
    return videos


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _put(path: Path, data: bytes) -> None:
    """The whole file or none."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)

"""Clips of the world as ordinary files: videos with captions, and their ground truth beside them.

One clip is these files in one folder, the "supplied layout" (format `openuni-supplied-1`):

    person-000007.mp4                 H.264, what a camera would have recorded; lossy
    person-000007.txt                 the caption, one line of UTF-8
    person-000007.MODALITY.SUFFIX     per modality what its `encode` gives: exact, or within the bound that class states
    person-000007.json                facts and constants; written last: where it is, the clip is whole

and the JSON file is an object with these keys:

    format       "openuni-supplied-1"
    fps          frames per second, a number
    frames       how many frames the video and every map has
    caption      as in the .txt
    modalities   by name: {"file": a name in the same folder, "constants": the fields of the modality's constants}
    caption_brief   the main things alone
    preset, seed, height_px, width_px    where the clip comes from
    focal_px     focal length of the pinhole; its principal point is the middle of the picture
    exposure     factor on the scene's light before the sRGB transfer; irradiance has it in it already
    world        version of what renders; a clip of another version is made again

`bytes of the file` and `constants` are all that `Modality.decode` needs. Ground truth of any origin can be supplied
in this layout; the keys after `modalities` are the world's own and optional.
"""

import json
import os
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.encode import write_video
from openuni.world.clips import WorldClip, make_clip, preset_modalities

FORMAT = "openuni-supplied-1"
WORLD_VERSION = 2  # goes up when a seed gives other bytes than before
CRF = 14  # of the video: textures of small frames stay sharp
CLIPS_PER_WORKER = 8  # starting a process takes about as long as rendering this many small clips


class ClipSize(TypedDict, total=False):
    """Length and size of clips; the defaults are those of `make_clip`."""

    frames: int
    height_px: int
    width_px: int
    fps: float


class RenderJob(NamedTuple):
    """One clip to write."""

    folder: Path
    seed: int
    preset: str
    modalities: tuple[str, ...]
    size: ClipSize

    @property
    def name(self) -> str:
        """The name of its files, without suffix."""
        return f"{self.preset}-{self.seed:06d}"

    @property
    def facts(self) -> dict[str, Any]:
        """What tells this clip from others, as its JSON file has it."""
        return {"preset": self.preset, "seed": self.seed, "world": WORLD_VERSION, **self.size}

    def is_done(self) -> bool:
        """Whether this very clip is there, whole."""
        try:
            found = json.loads((self.folder / f"{self.name}.json").read_bytes())
            entries = found["modalities"]
            files = [f"{self.name}.mp4", f"{self.name}.txt", *(entry["file"] for entry in entries.values())]
            same = all(found[key] == value for key, value in self.facts.items())
            return (
                same and set(entries) == set(self.modalities) and all((self.folder / file).is_file() for file in files)
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, not JSON, or not ours
            return False


def write_clips(
    out_dir: str | Path,
    seeds: Iterable[int],
    *,
    preset: str | Sequence[str] = "solids",
    modalities: Collection[str] | None = None,
    workers: int | None = None,
    resume: bool = False,
    progress: Callable[[int], None] | None = None,
    **size: Unpack[ClipSize],
) -> list[Path]:
    """Render one clip per seed into `out_dir`, in the layout described above; returns the videos in the seeds' order.

    `preset`: one for all, or one per seed. `modalities`: which ground truth to write; None for all that each preset
    has. `size`: `frames`, `height_px`, `width_px` (both even, as H.264 wants) and `fps` as in `make_clip`. `resume`:
    leave clips as they are that are there and fit the order; else all are made again. `progress` is called with the
    number of finished clips, those that were there included. `workers`: processes; None for as many as there are cores
    when there are many clips, 1 for none besides this one. The files do not depend on it. As always with processes, a
    script that calls this must do so under `if __name__ == "__main__"`.
    Raises `OpenUniError` for unknown presets and modalities, sizes that cannot be written, and clips ordered twice.
    """
    orders = _orders(Path(out_dir), list(seeds), preset, modalities, size)
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    left = [order for order in orders if not (resume and order.is_done())]
    there = len(orders) - len(left)
    if there and progress is not None:
        progress(there)
    wanted = min(_core_count(), len(left) // CLIPS_PER_WORKER) if workers is None else workers
    count = min(wanted, len(left))
    if count <= 1:
        _count(map(_write_order, left), there, progress)
    else:
        # spawned, not forked: a fork of a process that runs threads (Ray, torch) may hang
        others = set(active_children())
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            writing = [pool.submit(_write_order, order) for order in left]
            try:
                _count((one.result() for one in writing), there, progress)
            except BaseException:  # Ctrl-C too: nobody waits for clips in the making, files are whole or not there
                for process in set(active_children()) - others:
                    process.terminate()
                raise
    return [order.folder / f"{order.name}.mp4" for order in orders]


def write_clip(folder: Path, name: str, clip: WorldClip, facts: dict[str, Any]) -> Path:
    """Write one clip in the layout described above, the JSON file last; returns the video.

    `facts`: more keys for the JSON file. Every file appears under its name only when whole.
    """
    index = folder / f"{name}.json"
    index.unlink(missing_ok=True)  # while files are replaced, none may claim that they belong together
    entries = {}
    for kind, modality in clip.modalities.items():
        if kind == "rgb":
            continue  # the video itself
        payload = modality.encode(clip.fps)
        file = f"{name}.{kind}.{payload.suffix}"
        _put(folder / file, payload.data)
        constants: Any = payload.constants  # a NamedTuple
        entries[kind] = {"file": file, "constants": constants._asdict()}
    video = folder / f"{name}.mp4"
    write_video(video, clip.frames, clip.fps, crf=CRF)
    _put(folder / f"{name}.txt", f"{clip.caption}\n".encode())
    own = {
        "format": FORMAT,
        "fps": clip.fps,
        "frames": len(clip.frames),
        "caption": clip.caption,
        "modalities": entries,
        "caption_brief": clip.brief,
        "height_px": clip.lens.height_px,
        "width_px": clip.lens.width_px,
        "focal_px": clip.lens.focal_px,
        "exposure": clip.exposure,
    }
    _put(index, json.dumps(own | facts, indent=1).encode())
    return video


def _orders(
    folder: Path, seeds: list[int], preset: str | Sequence[str], modalities: Collection[str] | None, size: ClipSize
) -> list[RenderJob]:
    """The clips to write, checked before anything is started."""
    presets = [preset] * len(seeds) if isinstance(preset, str) else list(preset)
    if len(presets) != len(seeds):
        raise OpenUniError(f"world: {len(seeds)} seeds but {len(presets)} presets. Give one preset, or one per seed.")
    wanted = {name: preset_modalities(name, modalities) for name in set(presets)}
    defaults: Any = make_clip.__kwdefaults__
    whole = ClipSize(**{key: size.get(key, defaults[key]) for key in ClipSize.__annotations__})  # type: ignore[typeddict-item]
    if whole["height_px"] % 2 or whole["width_px"] % 2:
        given = f"height_px = {whole['height_px']}, width_px = {whole['width_px']}"
        raise OpenUniError(f"world: {given}. Allowed: even numbers, because H.264 stores colour at half the size.")
    orders = [RenderJob(folder, seed, name, wanted[name], whole) for seed, name in zip(seeds, presets, strict=True)]
    names = [order.name for order in orders]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise OpenUniError(f"world: clip {twice} is ordered twice. Give every seed once per preset.")
    return orders


def _write_order(order: RenderJob) -> None:
    for leftover in order.folder.glob(f".{order.name}.*.tmp"):  # of a process that was killed
        leftover.unlink(missing_ok=True)
    clip = make_clip(order.seed, preset=order.preset, modalities=order.modalities, **order.size)
    write_clip(order.folder, order.name, clip, order.facts)


def _count(written: Iterable[None], there: int, progress: Callable[[int], None] | None) -> None:
    for done, _ in enumerate(written, start=there + 1):
        if progress is not None:
            progress(done)


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

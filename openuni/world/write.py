"""Clips of the world as ordinary files: videos with captions, and their ground truth as sidecar files.

One clip is these files in one folder, the "supplied layout" (format `openuni-supplied-1`):

    person-000007.mp4                 H.264 video, lossy
    person-000007.txt                 the caption, one line of UTF-8
    person-000007.MODALITY.SUFFIX     result of the modality's `encode`: exact, or within the error bound of its class
    person-000007.json                metadata and constants; written last, so that its presence marks a complete clip

The JSON file is an object with these keys:

    format       "openuni-supplied-1"
    fps          frames per second, a number
    frames       number of frames of the video and of every map
    caption      as in the .txt
    modalities   by name: {"file": a name in the same folder, "constants": the fields of the modality's constants}
    caption_brief   the short caption
    preset, seed, height_px, width_px    parameters of the clip
    focal_px     focal length of the pinhole camera; the principal point is the image centre
    exposure     factor on the scene's light before the sRGB transfer, already included in irradiance
    world        version of the renderer; clips of another version are rendered again

`Modality.decode` needs only the bytes of the file and `constants`. Ground truth of any origin can be supplied in this
layout; the keys after `modalities` are specific to the world and optional.
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
from openuni.manifests.video.encode import exact_fps, write_video
from openuni.world.clips import WorldClip, make_clip, preset_modalities

FORMAT = "openuni-supplied-1"
WORLD_VERSION = 2  # increment when a seed gives different bytes
CRF = 14  # of the video: keeps textures of small frames sharp
CLIPS_PER_WORKER = 8  # starting a process costs about as much as rendering this many small clips


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
        """The stem of its file names."""
        return f"{self.preset}-{self.seed:06d}"

    @property
    def facts(self) -> dict[str, Any]:
        """The keys of its JSON file that identify this clip."""
        return {"preset": self.preset, "seed": self.seed, "world": WORLD_VERSION, **self.size}

    def is_done(self) -> bool:
        """Whether exactly this clip exists and is complete."""
        try:
            found = json.loads((self.folder / f"{self.name}.json").read_bytes())
            entries = found["modalities"]
            files = [f"{self.name}.mp4", f"{self.name}.txt", *(entry["file"] for entry in entries.values())]
            found["fps"] = exact_fps(found["fps"])  # earlier versions stated 29.97 for 30000/1001
            same = all(found[key] == value for key, value in self.facts.items())
            return (
                same and set(entries) == set(self.modalities) and all((self.folder / file).is_file() for file in files)
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, not JSON, or of another format
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
    """Render one clip per seed into `out_dir`, in the layout described above; returns the videos in order of `seeds`.

    `preset`: one for all clips, or one per seed. `modalities`: ground truth to write; None: all of the preset. `size`:
    `frames`, `height_px`, `width_px` (both even, for H.264) and `fps` as in `make_clip`. `resume`: skip clips that are
    complete and match the request; otherwise all are rendered again. `progress`: called with the number of finished
    clips, including skipped ones. `workers`: number of processes; None: one per core if there are many clips; 1:
    in-process. The files do not depend on it. As always with processes, scripts must call this under
    `if __name__ == "__main__"`. Raises `OpenUniError` for unknown presets and modalities, invalid sizes, and duplicate
    clips.
    """
    jobs = _render_jobs(Path(out_dir), list(seeds), preset, modalities, size)
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    remaining = [job for job in jobs if not (resume and job.is_done())]
    done_before = len(jobs) - len(remaining)
    if done_before and progress is not None:
        progress(done_before)
    wanted = min(_core_count(), len(remaining) // CLIPS_PER_WORKER) if workers is None else workers
    count = min(wanted, len(remaining))
    if count <= 1:
        _count(map(_write_job, remaining), done_before, progress)
    else:
        # spawn, because forking a process with threads (Ray, torch) may deadlock
        others = set(active_children())
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            writing = [pool.submit(_write_job, job) for job in remaining]
            try:
                _count((one.result() for one in writing), done_before, progress)
            except BaseException:  # including Ctrl-C: unfinished clips are abandoned; files are complete or absent
                for process in set(active_children()) - others:
                    process.terminate()
                raise
    return [job.folder / f"{job.name}.mp4" for job in jobs]


def write_clip(folder: Path, name: str, clip: WorldClip, facts: dict[str, Any]) -> Path:
    """Write one clip in the layout described above, the JSON file last; returns the video.

    `facts`: additional keys for the JSON file. Every file is renamed into place when complete.
    """
    index = folder / f"{name}.json"
    index.unlink(missing_ok=True)  # while files are replaced, the clip must not be marked as complete
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


def _render_jobs(
    folder: Path, seeds: list[int], preset: str | Sequence[str], modalities: Collection[str] | None, size: ClipSize
) -> list[RenderJob]:
    """The clips to render, validated before anything is started."""
    presets = [preset] * len(seeds) if isinstance(preset, str) else list(preset)
    if len(presets) != len(seeds):
        raise OpenUniError(f"world: {len(seeds)} seeds but {len(presets)} presets. Pass one preset, or one per seed.")
    wanted = {name: preset_modalities(name, modalities) for name in set(presets)}
    defaults: Any = make_clip.__kwdefaults__
    whole = ClipSize(**{key: size.get(key, defaults[key]) for key in ClipSize.__annotations__})  # type: ignore[typeddict-item]
    if whole["height_px"] % 2 or whole["width_px"] % 2:
        given = f"height_px = {whole['height_px']}, width_px = {whole['width_px']}"
        raise OpenUniError(
            f"world: {given}. Allowed: even numbers, because H.264 stores colour at half the resolution."
        )
    jobs = [RenderJob(folder, seed, name, wanted[name], whole) for seed, name in zip(seeds, presets, strict=True)]
    names = [job.name for job in jobs]
    if len(set(names)) != len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise OpenUniError(f"world: clip {repeated} is requested twice. Pass every seed once per preset.")
    return jobs


def _write_job(job: RenderJob) -> None:
    for leftover in job.folder.glob(f".{job.name}.*.tmp"):  # left by a killed process
        leftover.unlink(missing_ok=True)
    clip = make_clip(job.seed, preset=job.preset, modalities=job.modalities, **job.size)
    write_clip(job.folder, job.name, clip, job.facts)


def _count(written: Iterable[None], done_before: int, progress: Callable[[int], None] | None) -> None:
    for done, _ in enumerate(written, start=done_before + 1):
        if progress is not None:
            progress(done)


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _put(path: Path, data: bytes) -> None:
    """Write the complete file or none."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)

"""`openuni generate`: read conditions from video files, generate, write videos and arrays."""

import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console

from openuni.inference.sampling_progress import sampling_progress
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.contracts.modality import Modality, find_modality, picture_levels, read_rendering
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.store import TEMP_FILE, require_folder
from openuni.manifests.video.encode import MAX_FPS, PixelFormat, check_fps, write_video
from openuni.manifests.video.probe import make_clip, probe
from openuni.manifests.video.video_errors import VideoError

if TYPE_CHECKING:
    from openuni.training.objectives.flow_matching import Solver

DEFAULT_FPS = 16.0  # of Wan's videos; for runs that do not record the rate of their clips
SAME_FPS = 0.05  # frames per second by which rates of the same videos may differ, through rounded timestamps


@dataclass(frozen=True)
class GenerateRequest:
    """Targets, conditions and sampling options of one generation."""

    make: tuple[str, ...]  # target modalities, or "text"
    prompt: str = ""
    given: tuple[str, ...] = ()  # conditions as MODALITY=FILE: a video of the modality's rendering
    size: str | None = None  # FRAMESxHEIGHTxWIDTH; default: size of the training data
    fps: float | None = None  # frame rate of the output videos; None: of the conditions, else of the training clips
    steps: int = 30
    guidance_scale: float = 1.0  # for the prompt
    seed: int = 0
    condition_guidance_scale: float = 1.0
    temperature: float = 1.0  # for text tokens
    negative_prompt: str = ""  # replaces the empty caption in guidance
    subject: str = ""  # follows the modality-type prompts
    solver: "Solver" = "euler"
    shift: float | None = None  # timestep shift of the noise levels; None: that of the training


def generate_files(run_dir: Path, request: GenerateRequest, out: Path, console: Console | None = None) -> list[Path]:
    """Generate the targets; return the files written to `out`.

    A modality is written as a video of its rendering (`NAME.mp4`) and as its exact array (`NAME.npy`), text as
    `text.txt` (UTF-8, one line). `console`: where to show progress; None shows none. Raises `OpenUniError` for a task
    that the run was not trained for, and for conditions and sizes that cannot be used.
    """
    from openuni.training.export.exported_model import open_trained
    from openuni.training.sampler import SamplingOptions

    size = _size(request.size)
    if request.fps is not None:
        check_fps(request.fps, "--fps")
    require_folder(out)  # before the time that generating takes
    paths = _paths(request.given)
    run = open_trained(run_dir)
    conditions = {name: _read(name, path) for name, path in paths.items()}
    fps = _output_fps(request.fps, {name: found.fps for name, found in conditions.items()}, run.record)
    given: dict[str, Modality | np.ndarray] = {name: found.signal for name, found in conditions.items()}
    task = run.task_of(request.make, list(given))
    sampling = SamplingOptions(
        steps=request.steps,
        shift=run.shift(task) if request.shift is None else request.shift,
        guidance_scale=request.guidance_scale,
        seed=request.seed,
        condition_guidance_scale=request.condition_guidance_scale,
        temperature=request.temperature,
        negative_prompt=request.negative_prompt,
        solver=request.solver,
    )
    with sampling_progress(run, task, request.steps, console) if console else nullcontext():
        generated = run.generate(request.prompt, list(request.make), given or None, size, sampling, request.subject)
    for path in out.glob(".*.tmp"):
        if TEMP_FILE.fullmatch(path.name) and path.name.split(".")[1] in generated:
            path.unlink(missing_ok=True)  # of a process that was killed while it wrote this file
    return [path for name, signal in generated.items() for path in _write(name, signal, out, fps)]


def _paths(given: tuple[str, ...]) -> dict[str, str]:
    """Modality -> video of the conditions."""
    paths: dict[str, str] = {}
    for name, path in map(_pair, given):
        if name in paths:
            raise OpenUniError(f"--given {name} twice: {paths[name]} and {path}. Give one video per modality.")
        paths[name] = path
    return paths


def _output_fps(asked: float | None, given: dict[str, float], record: dict[str, Any]) -> float:
    """Frame rate of the output: as asked for, else of the conditions, else of the clips that the run was trained on."""
    if asked is not None:
        return asked  # `write_video` takes 29.97 for 30000/1001
    if not given:
        return record["data"].get("fps") or DEFAULT_FPS
    if max(given.values()) - min(given.values()) > SAME_FPS:
        rates = ", ".join(f"{name} has {fps:g}" for name, fps in given.items())
        raise OpenUniError(f"the videos of --given differ in their frames per second: {rates}. State one with --fps.")
    return min(MAX_FPS, max(1.0, next(iter(given.values()))))


def _pair(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise OpenUniError(f'--given "{text}": must be MODALITY=VIDEO, such as --given depth=clip.mp4')
    return name, path


class _Condition(NamedTuple):
    """A condition and the frame rate of its video."""

    signal: Modality
    fps: float


def _read(name: str, path: str) -> _Condition:
    """Read a video of a modality's rendering: as the modality, or as RGB if its rendering cannot be inverted."""
    source = str(Path(path).resolve()) if "://" not in path else path
    try:
        info = probe(source)
        frames = decode(make_clip(source, info)).frames
    except VideoError as error:
        raise OpenUniError(f"--given {name}={path}: {error}") from error
    return _Condition(read_rendering(name, frames.astype(np.float32) / 255), info.fps)


def _size(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    parts = re.fullmatch("([0-9]{1,9})x([0-9]{1,9})x([0-9]{1,9})", text.lower())
    if parts is None:
        raise OpenUniError(f'--size "{text}": must be FRAMESxHEIGHTxWIDTH, such as 17x256x448')
    return int(parts[1]), int(parts[2]), int(parts[3])


def _write(name: str, signal: Modality | str, out: Path, fps: float) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(signal, str):
        (out / f"{name}.txt").write_text(f"{signal}\n", encoding="utf-8")
        return [out / f"{name}.txt"]
    picture = picture_levels(name, signal.to_rgb())
    # the colours of a map are values: with chroma subsampling the video could not be used as a condition
    pixels: PixelFormat = "yuv420p" if find_modality(name).is_picture else "yuv444p"
    write_video(out / f"{name}.mp4", picture, fps, pixels=pixels)
    np.save(out / f"{name}.npy", signal.array)
    return [out / f"{name}.mp4", out / f"{name}.npy"]

"""`openuni generate`: from files and a prompt to files."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.contracts.modality import Modality, find_modality, read_rendering
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.encode import PixelFormat, check_fps, write_video
from openuni.manifests.video.probe import make_clip, probe
from openuni.manifests.video.video_errors import VideoError


@dataclass(frozen=True)
class GenerateRequest:
    """What to make, of what."""

    make: tuple[str, ...]
    prompt: str = ""
    given: tuple[str, ...] = ()  # MODALITY=FILE: a rendering of the modality as a video
    size: str | None = None  # FRAMESxHEIGHTxWIDTH
    fps: float = 16.0  # of the videos written
    steps: int = 30
    guidance: float = 1.0
    seed: int = 0
    given_guidance: float = 1.0
    temperature: float = 1.0  # of a made text


def generate_files(run_dir: Path, request: GenerateRequest, out: Path) -> list[Path]:
    """Make the modalities; write each as a video to look at (`NAME.mp4`) and, exactly, as `NAME.npy`.

    A made text is written as `text.txt`, UTF-8 with a line break at its end.
    """
    from openuni.training.run import Run
    from openuni.training.sampler import SamplingOptions

    size = _size(request.size)
    check_fps(request.fps, "--fps")
    run = Run.open(run_dir)
    given: dict[str, Modality | np.ndarray] = {name: _read(name, path) for name, path in map(_pair, request.given)}
    task = run.task_of(request.make, list(given))
    sampling = SamplingOptions(
        steps=request.steps,
        shift=run.shift(task),
        guidance=request.guidance,
        seed=request.seed,
        given_guidance=request.given_guidance,
        temperature=request.temperature,
    )
    made = run.generate(request.prompt, list(request.make), given or None, size, sampling)
    return [path for name, signal in made.items() for path in _write(name, signal, out, request.fps)]


def _pair(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise OpenUniError(f'--given "{text}": write MODALITY=VIDEO, such as --given depth=clip.mp4')
    return name, path


def _read(name: str, path: str) -> Modality:
    """A video of a modality's RGB rendering, as the modality, or as a picture where it cannot be read back."""
    source = str(Path(path).resolve()) if "://" not in path else path
    try:
        info = probe(source)
        frames = decode(make_clip(source, info)).frames
    except VideoError as error:
        raise OpenUniError(f"--given {name}={path}: {error}") from error
    return read_rendering(name, frames.astype(np.float32) / 255)


def _size(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    parts = re.fullmatch("([0-9]{1,9})x([0-9]{1,9})x([0-9]{1,9})", text.lower())
    if parts is None:
        raise OpenUniError(f'--size "{text}": write FRAMESxHEIGHTxWIDTH, such as 17x256x448')
    return int(parts[1]), int(parts[2]), int(parts[3])


def _write(name: str, signal: Modality | str, out: Path, fps: float) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(signal, str):
        (out / f"{name}.txt").write_text(f"{signal}\n", encoding="utf-8")
        return [out / f"{name}.txt"]
    picture = np.round(signal.to_rgb() * 255).astype(np.uint8)
    # colours of a map are values: a video with halved colour could not be given back
    pixels: PixelFormat = "yuv420p" if find_modality(name).is_picture else "yuv444p"
    write_video(out / f"{name}.mp4", picture, fps, pixels=pixels)
    np.save(out / f"{name}.npy", signal.array)
    return [out / f"{name}.mp4", out / f"{name}.npy"]

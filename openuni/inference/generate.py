"""`openuni generate`: read conditions from video files, generate, write videos and arrays."""

import dataclasses
import json
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console

from openuni.inference.conditions import RECORD_FILE, condition_paths, read_condition, read_generation
from openuni.inference.sampling_progress import sampling_progress
from openuni.manifests.contracts.component import fingerprint
from openuni.manifests.contracts.modality import Modality, find_modality, picture_levels
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.checksums import file_checksum
from openuni.manifests.storage.store import TEMP_FILE, Store, require_folder
from openuni.manifests.video.encode import MAX_FPS, PixelFormat, check_fps, write_video
from openuni.training.run_files import CHECKSUMS_FILE

if TYPE_CHECKING:
    from openuni.training.objectives.flow_matching import Solver
    from openuni.training.run import Run
    from openuni.training.sampler import SamplingOptions
    from openuni.training.tasks import Task

DEFAULT_FPS = 16.0  # of Wan's videos; for runs that do not record the rate of their clips
SAME_FPS = 0.05  # frames per second by which rates of the same videos may differ, through rounded timestamps


@dataclass(frozen=True)
class GenerateRequest:
    """Task, conditions and sampling options of one generation."""

    make: tuple[str, ...] = ()  # target modalities, or "text"; may be omitted with `task`
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
    task: str = ""  # any name of a task; empty: as `make` and `given` say


class Generation(NamedTuple):
    """What was generated: the files, and the record that is written beside them."""

    files: list[Path]
    record: dict[str, Any]


class _Prepared(NamedTuple):
    """A request whose inputs are checked, except for the contents of its videos."""

    name: str
    request: GenerateRequest
    out: Path
    task: "Task"
    paths: dict[str, str]
    size: tuple[int, int, int] | None
    sampling: "SamplingOptions"


def generate_files(run_dir: Path, request: GenerateRequest, out: Path, console: Console | None = None) -> list[Path]:
    """`generate_all` of one request; the files written to `out`."""
    (done,) = generate_all(run_dir, {"": request}, out, console)
    return done.files


def generate_all(
    run_dir: Path, requests: Mapping[str, GenerateRequest], out: Path, console: Console | None = None
) -> list[Generation]:
    """Generate the targets of every request and write them to its folder in `out`: the key of `requests`.

    A modality is written as a video of its rendering (`NAME.mp4`) and as its exact array (`NAME.npy`), text as
    `text.txt` (UTF-8, one line); then `generation.json`, which says what was done. `console`: where to show progress;
    None shows none. Raises `OpenUniError` for a task that the run was not trained for, and for conditions and sizes
    that cannot be used; all but the contents of videos is checked before the first is generated. Requests with a name
    whose results are there already, from equal inputs, are not generated again.
    """
    from openuni.training.export.exported_model import open_trained

    for request in requests.values():
        _size(request.size)
        condition_paths(request.given)
        if request.fps is not None:
            check_fps(request.fps, "--fps")
    require_folder(out)  # before the time that generating takes
    run = open_trained(run_dir)
    prepared = []
    for name, request in requests.items():
        try:
            prepared.append(_prepared(run, name, request, out / name))
        except OpenUniError as error:
            if not name:
                raise
            raise OpenUniError(f"{name}: {error}") from error
    return [_finished(run, one) or _generate(run, one, console) for one in prepared]


def _prepared(run: "Run", name: str, request: GenerateRequest, out: Path) -> _Prepared:
    from openuni.training.guidance import check_guidance, check_prompt
    from openuni.training.sampler import SamplingOptions

    paths = condition_paths(request.given)
    task = _task(run, request, list(paths))
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
    check_prompt(run.architecture, run.recipe, task, request.prompt)
    check_guidance(run.architecture, run.recipe, run.tasks, task, sampling)
    return _Prepared(name, request, out, task, paths, _size(request.size), sampling)


def _task(run: "Run", request: GenerateRequest, given: list[str]) -> "Task":
    """The task of a request. Raises `OpenUniError` if its name, targets and conditions do not agree."""
    if not request.task:
        if not request.make:
            names = ", ".join(task.names[-1] for task in run.tasks)
            raise OpenUniError(
                f"--task is missing: one of {names}; or say what to --make. All names: openuni tasks {run.folder}"
            )
        return run.task_of(request.make, given)
    task = run.require_trained_task(request.task)
    targets = {*task.targets, *(["text"] if task.generates_text else [])}
    if request.make and set(request.make) != targets:
        raise OpenUniError(
            f"--task {request.task} generates {', '.join(sorted(targets))}, but --make says "
            f"{', '.join(request.make)}. Remove --make."
        )
    if set(given) != set(task.conditions):
        needed = " ".join(f"--given {name}=VIDEO" for name in task.conditions) or "no --given"
        raise OpenUniError(
            f"--task {request.task} ({task}) needs {needed}; found: {', '.join(given) or 'no condition'}."
        )
    return task


def _inputs(run: "Run", prepared: _Prepared) -> str:
    """Fingerprint of all that the results follow from: weights, request, and the contents of local condition videos."""
    weights = run.checkpoint.path / CHECKSUMS_FILE
    digests = {name: file_checksum(Path(path)) for name, path in prepared.paths.items() if Path(path).is_file()}
    return fingerprint(
        run=str(run.folder.resolve()),
        weights=file_checksum(weights) if weights.is_file() else run.checkpoint.step,
        request=dataclasses.asdict(prepared.request),
        given=digests,
    )


def _finished(run: "Run", prepared: _Prepared) -> Generation | None:
    """The results of an earlier run of the same command, for a request with a name; None if they are not complete."""
    if not prepared.name:
        return None
    record = read_generation(prepared.out / RECORD_FILE)
    if record is None or record.get("inputs") != _inputs(run, prepared):
        return None
    files = [prepared.out / name for names in record["files"].values() for name in names]
    return Generation(files, record) if all(path.is_file() for path in files) else None


def _generate(run: "Run", prepared: _Prepared, console: Console | None) -> Generation:
    _, request, out, task, paths, size, sampling = prepared
    conditions = {name: read_condition(name, path) for name, path in paths.items()}
    fps = _output_fps(request.fps, {name: found.fps for name, found in conditions.items()}, run.record)
    given: dict[str, Modality | np.ndarray] = {name: found.signal for name, found in conditions.items()}
    targets = [*task.targets, *(["text"] if task.generates_text else [])]
    with sampling_progress(run, task, request.steps, console) if console else nullcontext():
        generated = run.generate(request.prompt, targets, given or None, size, sampling, request.subject)
    for path in out.glob(".*.tmp"):
        if TEMP_FILE.fullmatch(path.name) and path.name.split(".")[1] in (*generated, Path(RECORD_FILE).stem):
            path.unlink(missing_ok=True)  # of a process that was killed while it wrote this file
    files = {name: _write(name, signal, out, fps) for name, signal in generated.items()}
    record = _record(run, prepared, fps) | {
        "files": {name: [path.name for path in paths] for name, paths in files.items()},
        "text": generated.get("text"),
        "inputs": _inputs(run, prepared),
    }
    Store(str(out)).put(RECORD_FILE, json.dumps(record, indent=2).encode() + b"\n")
    return Generation([path for paths in files.values() for path in paths], record)


def _record(run: "Run", prepared: _Prepared, fps: float) -> dict[str, Any]:
    """What `generation.json` says, without the files."""
    _, request, out, task, paths, size, sampling = prepared
    return {
        "run": str(run.folder),
        "step": run.checkpoint.step,
        "task": str(task),
        "names": list(task.names[1:]),
        "folder": str(out),
        "prompt": request.prompt,
        "subject": request.subject,
        "given": paths,
        "size": list(size or (run.record["latents"]["frames"], *run.record["latents"]["size_px"])),
        "fps": fps,
        **{name: getattr(sampling, name) for name in type(sampling).__dataclass_fields__},
    }


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

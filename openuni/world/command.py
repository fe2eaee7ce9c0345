"""`openuni world`: render many clips, resume, and print the next command."""

import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from openuni.console.progress import Reporter
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.store import require_folder
from openuni.manifests.video.encode import check_fps, exact_fps
from openuni.world.clips import preset_modalities
from openuni.world.write import write_clips


@dataclass(frozen=True)
class WorldRequest:
    """The flags of `openuni world`."""

    preset: str
    clips: int
    out: Path
    frames: int
    size: str  # HEIGHTxWIDTH
    fps: float
    seed: int
    modalities: str  # comma-separated; empty: all
    workers: int | None


def make_world(request: WorldRequest, reporter: Reporter) -> str:
    """Write the clips of seeds `seed` to `seed + clips - 1`; returns a report with the next command.

    Complete, up-to-date clips are skipped. Raises `OpenUniError` for invalid requests.
    """
    height_px, width_px = read_size(request.size)
    check_fps(request.fps, "--fps")
    require_folder(request.out)
    names = [name.strip() for name in request.modalities.split(",") if name.strip()]
    seeds = range(request.seed, request.seed + request.clips)
    with reporter, reporter.phase("world", request.clips) as counter:

        def show(done: int) -> None:
            for _ in range(done - counter.phase.ok):
                counter.add("ok")

        videos = write_clips(
            request.out,
            seeds,
            preset=request.preset,
            modalities=names or None,
            workers=request.workers,
            resume=True,
            progress=show,
            frames=request.frames,
            height_px=height_px,
            width_px=width_px,
            fps=exact_fps(request.fps),
        )
    recipe = request.out / f"{request.preset}.toml"
    supplied = preset_modalities(request.preset, names or None)
    notice = write_recipe(recipe, supplied)
    following = shlex.join(["openuni", "run", str(recipe), str(request.out), "--out", "corpus/"])
    return (
        f"{len(videos)} clips of {request.frames} frames, {width_px} x {height_px}, with {', '.join(supplied)} in "
        f"{request.out}.{notice} Next: {following}"
    )


def write_recipe(path: Path, modalities: Collection[str]) -> str:
    """Write the recipe that imports the ground truth, unless it was edited; returns a notice in that case."""
    text = recipe_text(path.name, modalities)
    before = path.read_text() if path.exists() else ""
    named = re.findall(r'"([a-z_]+)"', before.rpartition("modalities = ")[2])
    if before and _settings(before) != _settings(recipe_text(path.name, named)):
        return f" {path} was edited and is not overwritten: check its modalities."
    if _settings(before) != _settings(text):
        path.write_text(text)
    return ""


def _settings(recipe: str) -> list[str]:
    """The lines of a recipe without comments, whose wording differs between versions."""
    return [line.partition("#")[0].strip() for line in recipe.splitlines() if line.partition("#")[0].strip()]


def read_size(text: str) -> tuple[int, int]:
    """Height and width in pixels from "480x640"."""
    found = re.fullmatch(r"(\d{1,5})[x×](\d{1,5})", text.strip())
    if found is None:
        raise OpenUniError(f'--size "{text}": must be HEIGHTxWIDTH in pixels, both even, such as 480x640.')
    return int(found[1]), int(found[2])


def recipe_text(file: str, modalities: Collection[str]) -> str:
    """A recipe that imports the ground truth into a corpus."""
    quoted = ", ".join(f'"{name}"' for name in modalities)
    return f"""# Imports the ground truth in the sidecar files of `openuni world` as is. Run it with
#     openuni run {file} FOLDER --out corpus/
# All options: openuni init OTHER.toml

[work]
short_side_px = 0  # no scaling of maps and frames

[annotators.supplied]
modalities = [{quoted}]
"""

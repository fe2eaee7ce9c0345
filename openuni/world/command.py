"""What `openuni world` does: write many clips, go on where it stopped, and say what to do with them."""

import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from openuni.console.progress import Reporter
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.encode import check_fps
from openuni.world.clips import preset_modalities
from openuni.world.write import write_clips


@dataclass(frozen=True)
class WorldRequest:
    """What to make: the flags of `openuni world`."""

    preset: str
    clips: int
    out: Path
    frames: int
    size: str  # HEIGHTxWIDTH
    fps: float
    seed: int
    modalities: str  # names with commas between; empty: all
    workers: int | None


def make_world(request: WorldRequest, reporter: Reporter) -> str:
    """Write the clips of seeds `seed` to `seed + clips - 1`; returns what to do next.

    Clips that are there and fit are left as they are. Raises `OpenUniError` for what cannot be made.
    """
    height_px, width_px = read_size(request.size)
    check_fps(request.fps, "--fps")
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
            fps=request.fps,
        )
    recipe = request.out / f"{request.preset}.toml"
    supplied = preset_modalities(request.preset, names or None)
    kept = write_recipe(recipe, supplied)
    following = shlex.join(["openuni", "run", str(recipe), str(request.out), "--out", "corpus/"])
    return (
        f"{len(videos)} clips of {request.frames} frames, {width_px} x {height_px}, with {', '.join(supplied)} in "
        f"{request.out}.{kept} Next: {following}"
    )


def write_recipe(path: Path, modalities: Collection[str]) -> str:
    """Write the recipe that takes these over, in place of one of ours; returns what to say of one that was edited."""
    text = recipe_text(path.name, modalities)
    before = path.read_text() if path.exists() else ""
    named = re.findall(r'"([a-z_]+)"', before.rpartition("modalities = ")[2])
    if before and before != recipe_text(path.name, named):
        return f" {path} was edited, so it stays: see that its modalities are these."
    if before != text:
        path.write_text(text)
    return ""


def read_size(text: str) -> tuple[int, int]:
    """Height and width from "480x640"."""
    found = re.fullmatch(r"(\d{1,5})[x×](\d{1,5})", text.strip())
    if found is None:
        raise OpenUniError(f'--size "{text}" is no size. Give HEIGHTxWIDTH in pixels, both even, such as 480x640.')
    return int(found[1]), int(found[2])


def recipe_text(file: str, modalities: Collection[str]) -> str:
    """A recipe that takes the ground truth over into a corpus."""
    quoted = ", ".join(f'"{name}"' for name in modalities)
    return f"""# Takes over the ground truth that lies beside the clips of `openuni world`. Run it with
#     openuni run {file} FOLDER --out corpus/
# All options: openuni init OTHER.toml

[work]
short_side_px = 0  # maps and frames as they are

[annotators.supplied]
modalities = [{quoted}]
"""

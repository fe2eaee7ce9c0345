"""Home-made clips: world, demo."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from openuni.cli.app import app, command_from_dataclass


@dataclass(frozen=True)
class WorldFlags:
    """Flags of `openuni world`."""

    preset: Annotated[
        str,
        typer.Option(help="Kind of scene: person, persons, scenes, interiors, layers, solids, still or dark"),
    ]
    out: Annotated[Path, typer.Option("--out", help="Folder for the clips")]
    clips: Annotated[int, typer.Option(min=1, help="How many")] = 10
    frames: Annotated[int, typer.Option(min=1, help="Frames of each clip")] = 21
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels, both even")] = "480x640"
    fps: Annotated[float, typer.Option(min=1, help="Frames per second")] = 16.0
    seed: Annotated[int, typer.Option(min=0, help="Of the first clip; the others count on from it")] = 0
    modalities: Annotated[str, typer.Option(help="Which ground truth, with commas between. Default: all there is")] = ""
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core")] = None


@app.command()
@command_from_dataclass(WorldFlags)
def world(given: WorldFlags) -> None:
    """Make clips of synthetic scenes with exact ground truth beside them. Run it again to resume."""
    from openuni.console.progress import Reporter
    from openuni.world.command import WorldRequest, make_world

    print(make_world(WorldRequest(**vars(given)), Reporter()))


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A smaller one, under 90 seconds on 2 cores")] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder for clips, corpus, run and page")] = Path("openuni-demo"),
) -> None:
    """Do all of it on home-made clips: build a corpus, train a small model, write a page that shows what came out."""
    from openuni.demo.demo import run_demo

    page = run_demo(out, quick=quick)
    print(f"the page is {page.resolve().as_uri()}")

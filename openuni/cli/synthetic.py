"""Commands on synthetic data: world, demo."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from openuni.cli.app import app, command_from_dataclass
from openuni.console.terminal import print_text


@dataclass(frozen=True)
class WorldFlags:
    """Flags of `openuni world`."""

    preset: Annotated[
        str,
        typer.Option(help="Kind of scene: person, persons, scenes, interiors, layers, solids, still or dark"),
    ]
    out: Annotated[Path, typer.Option("--out", "-o", help="Output directory")]
    clips: Annotated[int, typer.Option(min=1, help="Number of clips")] = 10
    frames: Annotated[int, typer.Option(min=1, help="Number of frames per clip")] = 21
    size: Annotated[str, typer.Option(metavar="HEIGHTxWIDTH", help="Size in pixels, both even")] = "480x640"
    fps: Annotated[float, typer.Option(min=1, help="Frames per second")] = 16.0
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed of the first clip; incremented for each further clip")
    ] = 0
    modalities: Annotated[str, typer.Option(help="Comma-separated ground-truth modalities. Default: all")] = ""
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes. Default: one per core")] = None


@app.command()
@command_from_dataclass(WorldFlags)
def world(flags: WorldFlags) -> None:
    """Render synthetic clips with exact ground truth.

    Ground truth is written as sidecar files of the clips. Rerun to resume.
    """
    from openuni.console.progress import Reporter
    from openuni.world.command import WorldRequest, make_world

    print_text(make_world(WorldRequest(**vars(flags)), Reporter()))


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller demo: about 90 s on 2 CPU cores")] = False,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Output directory for clips, corpus, training run and report")
    ] = Path("openuni-demo"),
) -> None:
    """Run the end-to-end demo on synthetic clips.

    Builds a corpus, trains a small model and writes an HTML report. Nothing is downloaded. Rerun to resume.
    """
    from openuni.demo.demo import run_demo

    report = run_demo(out, quick=quick)
    print_text(f"report: {report.resolve().as_uri()}")

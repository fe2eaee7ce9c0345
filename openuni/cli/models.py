"""Models: train, generate."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openuni.cli.app import OutOption, app, command_from_dataclass

if TYPE_CHECKING:
    from openuni.training.run import Run


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe of train/recipes by name, or a file")],
    corpus: Annotated[str, typer.Option(help="The corpus to train on")],
    out: OutOption,
) -> None:
    """Train a unified model on a corpus's latents. Run it again to resume."""
    from openuni import api
    from openuni.console.progress import Reporter, TrainingProgress
    from openuni.training.recipe import TrainingRecipe

    steps = TrainingRecipe.load(recipe).optimizer.steps
    with Reporter() as reporter:
        finished = api.train(recipe, corpus, out=out, progress=TrainingProgress(reporter, steps))
    print(f"trained {finished.checkpoint.step:,} steps: {out}. Next, for example: {_generating(finished)}")


def _generating(run: "Run") -> str:
    """A command that makes something with the run: the first of its tasks."""
    task = run.tasks[0]
    given = [f"--given {name}=VIDEO" for name in task.conditions]
    made = [f"--make {name}" for name in (*task.targets, *(["text"] if task.generates_text else []))]
    prompt = ["--prompt '...'"] if run.caption_streams(task) else []
    return " ".join([f"openuni generate {run.folder}", *given, *made, *prompt, "--out FOLDER"])


@dataclass(frozen=True)
class GenerateFlags:
    """Flags of `openuni generate`."""

    run: Annotated[Path, typer.Argument(help="A training run")]
    make: Annotated[list[str], typer.Option(help="A modality to make, or text; may be repeated")]
    out: Annotated[Path, typer.Option("--out", help="Folder for the results")]
    prompt: Annotated[str, typer.Option(help="What the video shows")] = ""
    given: Annotated[list[str] | None, typer.Option(help="MODALITY=VIDEO that is given; may be repeated")] = None
    size: Annotated[str | None, typer.Option(help="FRAMESxHEIGHTxWIDTH, frames 4k + 1. Default: as trained")] = None
    fps: Annotated[float, typer.Option(min=1, help="Frames per second of the videos written")] = 16.0
    steps: Annotated[int, typer.Option(min=1, help="Solver steps")] = 30
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance on the prompt; 1: none")] = 1.0
    given_guidance: Annotated[float, typer.Option(help="The same on what is given; 1: none")] = 1.0
    seed: Annotated[int, typer.Option(help="Of the noise")] = 0
    temperature: Annotated[
        float, typer.Option(min=0, help="Of a made text: 1 as learnt; less: likelier words; 0: the likeliest")
    ] = 1.0


@app.command()
@command_from_dataclass(GenerateFlags)
def generate(given: GenerateFlags) -> None:
    """Make modalities with a trained model: from text, from other modalities, or both. Or the text itself.

    A text that is made is printed, and written to text.txt: --make text --given rgb=clip.mp4
    """
    from openuni.inference.generate import GenerateRequest, generate_files

    wanted = GenerateRequest(
        make=tuple(given.make),
        prompt=given.prompt,
        given=tuple(given.given or ()),
        size=given.size,
        fps=given.fps,
        steps=given.steps,
        guidance=given.guidance,
        given_guidance=given.given_guidance,
        seed=given.seed,
        temperature=given.temperature,
    )
    for path in generate_files(given.run, wanted, given.out):
        print(path)
        if path.suffix == ".txt":
            print(path.read_text(encoding="utf-8"), end="")

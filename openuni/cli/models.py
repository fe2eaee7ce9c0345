"""Commands on models: train, generate."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from openuni.cli.app import app, command_from_dataclass, is_first_rank
from openuni.cli.former_flags import accepts_former_flags
from openuni.console.terminal import print_text
from openuni.manifests.errors import OpenUniError

if TYPE_CHECKING:
    from openuni.training.run import Run


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Training recipe: a name (see `openuni list`) or a TOML file")],
    corpus: Annotated[str, typer.Option(help="Corpus to train on: folder or URL")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output directory; with several nodes one that all of them see")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION=VALUE", help="Option of the recipe, such as optimizer.steps=1000; repeatable"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Train nothing: print tokens, memory and FLOPs per step, and the data plan"),
    ] = False,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="--dry-run: number of GPUs. Default: those of this machine, or 1")
    ] = None,
    gpu_memory_gb: Annotated[
        float | None, typer.Option(min=0.1, help="--dry-run: memory of each. Default: that of this machine's GPUs")
    ] = None,
) -> None:
    """Train a unified model on the latents of a corpus.

    Rerun to resume from the latest training checkpoint. On several GPUs:
    torchrun --nproc-per-node GPUS -m openuni train ...
    """
    from openuni import api
    from openuni.config.recipe import parse_assignments
    from openuni.console.progress import Reporter, TrainingProgress
    from openuni.training.loop.ranks import training_ranks
    from openuni.training.recipe import TrainingRecipe
    from openuni.training.recipe_changes import changed

    def load() -> TrainingRecipe:
        record, where = TrainingRecipe.read(recipe)
        return TrainingRecipe.from_dict(changed(record, parse_assignments(set or (), "--set"), "--set"), where)

    if dry_run:
        print_text(api.training_estimate(load(), corpus, gpus, gpu_memory_gb))
        return
    if out is None:
        raise OpenUniError("--out is missing: the folder of the training run. Or pass --dry-run.")
    with training_ranks() as ranks:
        loaded = ranks.together(load)
        with Reporter(quiet=not ranks.is_first) as reporter:
            finished = api.train(loaded, corpus, out=out, progress=TrainingProgress(reporter, loaded.optimizer.steps))
    if not is_first_rank():
        return
    print_text(f"trained {finished.checkpoint.step:,} steps: {out}")
    if Path(recipe).stem.endswith("_debug"):
        print_text("A debug recipe tests the pipeline: the model is tiny and does not learn, whatever its loss.")
    print_text(f"Next, for example: {_generate_command(finished)}")


def _generate_command(run: "Run") -> str:
    """A `generate` command for the first task of the run."""
    task = run.tasks[0]
    conditions = [f"--given {name}=VIDEO" for name in task.conditions]
    targets = [f"--make {name}" for name in (*task.targets, *(["text"] if task.generates_text else []))]
    prompt = ["--prompt '...'"] if run.caption_streams(task) else []
    return " ".join([f"openuni generate {run.folder}", *conditions, *targets, *prompt, "--out FOLDER"])


@dataclass(frozen=True)
class ExportModelFlags:
    """Flags of `openuni export-model`."""

    run: Annotated[Path, typer.Argument(help="Training run: the folder that `openuni train` wrote")]
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Output directory; must not exist or be empty")] = None
    push_to: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Hugging Face Hub repository to upload to")
    ] = None
    private: Annotated[bool, typer.Option("--private", help="--push-to: create the repository as private")] = False
    format: Annotated[
        Literal["openuni", "diffusers", "peft"],
        typer.Option(help="openuni: whole model; diffusers: also a Wan transformer for diffusers; peft: LoRAs only"),
    ] = "openuni"
    weights: Annotated[Literal["ema", "model"], typer.Option(help="EMA weights, or those of the last step")] = "ema"
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="bfloat16 halves the size; with bfloat16 autocast, as on GPUs, outputs are the same"),
    ] = "float32"
    licence: Annotated[
        str, typer.Option(help="Licence of the weights, such as apache-2.0. Default: that of the base model's card")
    ] = ""
    hub_name: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH=OWNER/NAME", help="Hub name of a checkpoint that the run has by path; repeatable"),
    ] = None
    include_base: Annotated[
        bool, typer.Option("--include-base", help="Store a frozen base model, too. Default: its hub name")
    ] = False


@app.command("export-model")
@command_from_dataclass(ExportModelFlags)
def export_model(flags: ExportModelFlags) -> None:
    """Export a trained model for others, with a model card.

    Writes safetensors and JSON only. openuni.from_pretrained and `openuni generate` open the result.
    """
    from openuni import api

    if flags.out is None and flags.push_to is None:
        raise OpenUniError("nothing to write to: pass --out FOLDER, or --push-to OWNER/NAME")
    pairs = [(text, *text.rpartition("=")) for text in flags.hub_name or ()]
    if odd := [text for text, path, _, name in pairs if not path or not name]:
        raise OpenUniError(f'--hub-name "{odd[0]}": must be PATH=OWNER/NAME')
    options: dict[str, Any] = {
        "format": flags.format,
        "weights": flags.weights,
        "licence": flags.licence,
        "hub_names": {path: name for _, path, _, name in pairs},
        "include_base": flags.include_base,
        "dtype": flags.dtype,
    }
    run = api.open_run(flags.run)
    if flags.out is not None:
        print_text(f"exported: {run.save_pretrained(flags.out, **options)}")
    if flags.push_to is not None:
        print_text(f"uploaded: {run.push_to_hub(flags.push_to, private=flags.private, **options)}")


@dataclass(frozen=True)
class GenerateFlags:
    """Flags of `openuni generate`."""

    run: Annotated[Path, typer.Argument(help="Training run, or exported model (folder)")]
    make: Annotated[list[str], typer.Option(metavar="MODALITY", help="Target modality, or text; repeatable")]
    out: Annotated[Path, typer.Option("--out", "-o", help="Output directory")]
    prompt: Annotated[str, typer.Option(help="Text prompt")] = ""
    given: Annotated[
        list[str] | None, typer.Option(metavar="MODALITY=VIDEO", help="Condition: a video of a modality; repeatable")
    ] = None
    size: Annotated[
        str | None,
        typer.Option(
            metavar="FRAMESxHEIGHTxWIDTH",
            help="Size of the videos; the number of frames is 4k + 1. Default: size of the training data",
        ),
    ] = None
    fps: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Frame rate of the output videos. Default: that of the --given videos, else of the training clips",
        ),
    ] = None
    steps: Annotated[int, typer.Option(min=1, help="Number of solver steps")] = 30
    guidance_scale: Annotated[
        float, typer.Option(help="Classifier-free guidance scale for the prompt; 1 disables guidance")
    ] = 1.0
    condition_guidance_scale: Annotated[
        float, typer.Option(help="Guidance scale for the condition streams; 1 disables guidance")
    ] = 1.0
    seed: Annotated[int, typer.Option(help="Random seed of the noise")] = 0
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature for text; 0 is greedy decoding")] = 1.0


FORMER_FLAGS = {"--guidance": "--guidance-scale", "--given-guidance": "--condition-guidance-scale"}


@app.command(cls=accepts_former_flags(FORMER_FLAGS))
@command_from_dataclass(GenerateFlags)
def generate(flags: GenerateFlags) -> None:
    """Generate modalities or text with a trained model.

    Conditions are the prompt and the videos given with --given. Every modality is written as a video (NAME.mp4) and
    as an array (NAME.npy). Text is printed and written to text.txt, for example: --make text --given rgb=clip.mp4
    """
    from rich.console import Console

    from openuni.inference.generate import GenerateRequest, generate_files

    request = GenerateRequest(
        make=tuple(flags.make),
        prompt=flags.prompt,
        given=tuple(flags.given or ()),
        size=flags.size,
        fps=flags.fps,
        steps=flags.steps,
        guidance_scale=flags.guidance_scale,
        condition_guidance_scale=flags.condition_guidance_scale,
        seed=flags.seed,
        temperature=flags.temperature,
    )
    for path in generate_files(flags.run, request, flags.out, Console(stderr=True, soft_wrap=True)):
        print_text(path)
        if path.suffix == ".txt":
            print_text(path.read_text(encoding="utf-8"), end="")
